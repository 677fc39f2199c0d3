"""Texts with masks in, words for them out. Must not know the wire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from aimass_serving.errors import AimassError, InvalidField
from numpy.typing import NDArray

from aimass_encoder.characters import trimmed
from aimass_encoder.mask_head import MaskHead, MaskReading
from aimass_encoder.masks import (
    MAX_WORDS,
    FilledMask,
    FilledText,
    FillOptions,
    FillReply,
    FillRequest,
    MaskWord,
)
from aimass_encoder.task_engine import TextTaskEngine
from aimass_encoder.text_encoder import TextEncoder
from aimass_encoder.tokenization import TextTokenizer, TokenizedText
from aimass_encoder.windowed_texts import WindowedText, encode_windows, whole_texts
from aimass_encoder.windows import Window, cut_windows, most_central, window_room


@dataclass(frozen=True, slots=True)
class MaskSpec:
    """What a masked language model's logits stand for."""

    mask_token_id: int
    vocab_size: int


class MaskFiller(TextTaskEngine):
    """One masked language model."""

    def __init__(self, encoder: TextEncoder, tokenizer: TextTokenizer, spec: MaskSpec) -> None:
        super().__init__(encoder)
        self.spec = spec
        self._tokenizer = tokenizer
        self._words = tokenizer.words(spec.vocab_size)

    @property
    def mask_token(self) -> str:
        """The text that stands for a mask, such as `[MASK]`."""
        return self._words[self.spec.mask_token_id]

    async def fill(self, request: FillRequest) -> FillReply:
        """Return one result for each text, in order; a bad text has an error in its place.

        Raises `InvalidField` for targets that are no token of this model or too many texts, `Overloaded`,
        `DeadlineExceeded`, `Draining`.
        """
        with self._encoder.measured("fill_mask"):
            call = whole_texts(request.texts, deadline_s=request.deadline_s)

            def cut(index: int, text: TokenizedText) -> Sequence[Window] | AimassError:
                return self._windows_with_masks(index, text, request)

            encoded = await encode_windows(self._encoder, call, cut, self._head(request.options))
            results = [
                r if isinstance(r, AimassError) else self._filled(r, text)
                for r, text in zip(encoded.results, request.texts, strict=True)
            ]
            return FillReply(results, self.mask_token, encoded.num_tokens, encoded.timings)

    def _head(self, options: FillOptions) -> MaskHead:
        tokens = [self._target(word, f"options.targets[{i}]") for i, word in enumerate(options.targets)]
        return MaskHead(
            self.spec.mask_token_id,
            self.spec.vocab_size,
            options.top_k,
            np.array(list(dict.fromkeys(tokens)), np.int64) if tokens else None,
            self._encoder.model,
        )

    def _target(self, word: str, field: str) -> int:
        token = self._tokenizer.token_of(word)
        if token is None:
            raise InvalidField(field, expected="a word that is one token of this model", got=word)
        return token

    def _windows_with_masks(
        self, index: int, text: TokenizedText, request: FillRequest
    ) -> Sequence[Window] | AimassError:
        """Return the windows in which a mask has most text on both sides; no other one is computed."""
        masks = np.flatnonzero(text.token_ids == self.spec.mask_token_id)
        if not len(masks):
            expected = f"a text with the mask token {self.mask_token}"
            return InvalidField(f"texts[{index}]", expected=expected, got=request.texts[index])
        largest = MAX_WORDS // request.options.top_k
        if len(masks) > largest:
            expected = f"at most {largest} masks, for {request.options.top_k} words each"
            return InvalidField(f"texts[{index}]", expected=expected, got=len(masks))
        room = window_room(text, max_tokens=self._encoder.max_tokens)
        windows = cut_windows(text, max_tokens=self._encoder.max_tokens, overlap=room // 2)
        chosen = most_central(windows, num_tokens=len(text.token_ids))[masks]
        return [windows[number] for number in np.unique(chosen).tolist()]

    def _filled(self, encoded: WindowedText[MaskReading], text: str) -> FilledText:
        spans = encoded.text.spans
        assert spans is not None, "the call asked for spans"
        whole = len(encoded.text.token_ids)
        chosen = most_central(encoded.windows, num_tokens=whole)
        masks: dict[int, FilledMask] = {}
        for number, (window, reading) in enumerate(zip(encoded.windows, encoded.readings, strict=True)):
            for row, place in enumerate(window.places[reading.places].tolist()):
                if chosen[place] == number:
                    start, end = trimmed(text, *spans.offsets[place].tolist())
                    words = self._mask_words(reading.token_ids[row], reading.scores[row])
                    masks[place] = FilledMask(start, end, words)
        filled = [masks[place] for place in sorted(masks)]
        return FilledText(filled, encoded.num_tokens, len(encoded.windows))

    def _mask_words(self, tokens: NDArray[np.int64], scores: NDArray[np.float64]) -> Sequence[MaskWord]:
        return [
            MaskWord(self._tokenizer.text_of(token), self._words[token], token, score)
            for token, score in zip(tokens.tolist(), scores.tolist(), strict=True)
        ]
