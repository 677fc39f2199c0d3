"""Texts in, entities out. Must not know the wire."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from aimass_serving.errors import AimassError, InvalidField
from numpy.typing import NDArray

from aimass_encoder.entities import LabelSet, entities_of, split_mark
from aimass_encoder.head import TokenHead
from aimass_encoder.label_path import best_path, path_scores
from aimass_encoder.labels import softmax
from aimass_encoder.runner import LOGITS
from aimass_encoder.tagging import TaggedText, TagOptions, TagReply, TagRequest
from aimass_encoder.task_engine import TextTaskEngine
from aimass_encoder.text_encoder import TextEncoder
from aimass_encoder.tokenization import TokenizedText, TokenSpans
from aimass_encoder.windowed_texts import WindowedText, encode_windows, whole_texts
from aimass_encoder.windows import Window, cut_windows, joined, window_room

_OVERLAP_SHARE = 4


@dataclass(frozen=True, slots=True, eq=False)
class TaggerSpec:
    """What a token classifier's logits stand for."""

    labels: LabelSet
    transitions: NDArray[np.float32] | None = None  # [labels, labels]
    """Score of each label after each other (conditional random field); None: each token by itself."""


class TokenTagger(TextTaskEngine):
    """One token classifier."""

    def __init__(self, encoder: TextEncoder, spec: TaggerSpec) -> None:
        super().__init__(encoder)
        self.spec = spec
        self._head = TokenHead((LOGITS,), encoder.model)

    async def tag(self, request: TagRequest) -> TagReply:
        """Return one result for each text, in order; a bad text has an error in its place.

        Raises `InvalidField` for labels this model does not have or too many texts, `Overloaded`,
        `DeadlineExceeded`, `Draining`.
        """
        with self._encoder.measured("classify_tokens"):
            overlap = self._overlap(request.options)
            self._check_labels(request.options)
            call = whole_texts(request.texts, deadline_s=request.deadline_s)

            def cut(_index: int, text: TokenizedText) -> Sequence[Window]:
                room = window_room(text, max_tokens=self._encoder.max_tokens)
                return cut_windows(text, max_tokens=self._encoder.max_tokens, overlap=min(overlap, room - 1))

            encoded = await encode_windows(self._encoder, call, cut, self._head)
            results = await asyncio.to_thread(self._tagged_all, request, encoded.results)
            return TagReply(results, encoded.num_tokens, encoded.timings)

    def _overlap(self, options: TagOptions) -> int:
        """Return how many tokens neighbouring windows share. Raises `InvalidField`."""
        largest = self._encoder.max_tokens // 2
        if options.overlap_tokens is None:
            return self._encoder.max_tokens // _OVERLAP_SHARE
        if options.overlap_tokens > largest:
            raise InvalidField(
                "options.overlap_tokens",
                expected=f"a number from 0 to {largest}, half of what the model takes",
                got=options.overlap_tokens,
            )
        return options.overlap_tokens

    def _check_labels(self, options: TagOptions) -> None:
        tags = self.spec.labels.tags
        for i, label in enumerate(options.labels):
            if label not in tags:
                raise InvalidField(f"options.labels[{i}]", expected=f"one of {', '.join(tags)}", got=label)

    def _tagged_all(
        self, request: TagRequest, results: Sequence[WindowedText[NDArray[np.float32]] | AimassError]
    ) -> Sequence[TaggedText | AimassError]:
        return [
            result if isinstance(result, AimassError) else self._tagged(result, text, request.options)
            for result, text in zip(results, request.texts, strict=True)
        ]

    def _tagged(
        self, encoded: WindowedText[NDArray[np.float32]], text: str, options: TagOptions
    ) -> TaggedText:
        spans = encoded.text.spans
        assert spans is not None, "the call asked for spans"
        logits = joined(encoded.windows, encoded.readings, num_tokens=len(encoded.text.token_ids))
        own = np.flatnonzero((spans.parts == 0) & (spans.offsets[:, 0] < spans.offsets[:, 1]))
        scores, best = self._labelled(logits[own])
        found = entities_of(
            scores,
            best,
            TokenSpans(spans.offsets[own], spans.words[own], spans.parts[own]),
            self.spec.labels,
            aggregation=options.aggregation,
            text=text,
        )
        wanted = [
            entity
            for entity in found
            if entity.score >= options.threshold
            and (not options.labels or split_mark(entity.label)[1] in options.labels)
        ]
        return TaggedText(wanted, encoded.num_tokens, len(encoded.windows))

    def _labelled(self, logits: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the scores [tokens, labels] and the label [tokens] of each token."""
        if self.spec.transitions is None:
            scores = softmax(logits)
            return scores, scores.argmax(axis=-1)
        return path_scores(logits, self.spec.transitions), best_path(logits, self.spec.transitions)
