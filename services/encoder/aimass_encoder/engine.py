"""Texts in, vectors out: has texts encoded, and finishes the vectors. Must not know the wire."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
from aimass.model.v1.model_service_pb2 import ModelLimits
from aimass_serving.errors import AimassError, InvalidField
from numpy.typing import NDArray

from aimass_encoder.config import EncoderConfig
from aimass_encoder.head import PoolingHead
from aimass_encoder.pooling import l2_normalize
from aimass_encoder.request import EmbeddedText, EmbedOptions, EmbedReply, EmbedRequest
from aimass_encoder.runner import EncoderRunner
from aimass_encoder.spec import EmbeddingSpec
from aimass_encoder.task_engine import TaskEngine
from aimass_encoder.text_encoder import Encoded, TextCall, TextEncoder, good, merged
from aimass_encoder.tokenization import TokenizedText, Tokenizer


class EncoderEngine(TaskEngine):
    """One embedding model."""

    def __init__(
        self,
        runner: EncoderRunner,
        tokenizer: Tokenizer,
        spec: EmbeddingSpec,
        *,
        model: str,
        config: EncoderConfig,
        permit: AbstractContextManager[None],
    ) -> None:
        super().__init__(TextEncoder(runner, tokenizer, model=model, config=config, permit=permit))
        self._spec = spec
        self._head = PoolingHead(spec.pooling, model)

    @property
    def limits(self) -> ModelLimits:
        """What a request must stay within."""
        limits = ModelLimits(dimensions=self._spec.hidden_size)
        limits.MergeFrom(super().limits)
        return limits

    @property
    def stream_window(self) -> int:
        """Texts of one stream that may be in work at once."""
        return self._encoder.config.stream_window

    def check_options(self, options: EmbedOptions) -> None:
        """Raise `InvalidField` when this model cannot make such vectors."""
        if options.dimensions is not None and options.dimensions > self._spec.hidden_size:
            raise InvalidField(
                "options.dimensions",
                expected=f"a number from 1 to {self._spec.hidden_size}",
                got=options.dimensions,
            )
        if options.prompt_name and options.prompt_name not in self._spec.prompts:
            names = ", ".join(sorted(self._spec.prompts)) or "no name: this model has no prompts"
            raise InvalidField("options.prompt_name", expected=f"one of: {names}", got=options.prompt_name)

    async def embed(self, request: EmbedRequest) -> EmbedReply:
        """Return one result for each text, in order; a bad text has an error in its place.

        Vectors are the same, up to rounding, whatever else runs at the time. Raises `InvalidField` for
        options this model does not have or too many texts, `Overloaded`, `DeadlineExceeded`, `Draining`.
        """
        with self._encoder.measured("embeddings"):
            self.check_options(request.options)
            encoded = await self._encoder.encode(self._call(request), self._head)
            return EmbedReply(
                results=self._finish(encoded.results, request.options),
                dimensions=request.options.dimensions or self._spec.hidden_size,
                timings=encoded.timings,
            )

    def _call(self, request: EmbedRequest) -> TextCall:
        options = request.options
        return TextCall(
            request.texts,
            request.field_of,
            "texts",
            truncation=options.truncation,
            deadline_s=request.deadline_s,
            prefix=self._spec.prompts[options.prompt_name] if options.prompt_name else "",
        )

    def _finish(
        self, results: Sequence[Encoded[NDArray[np.float32]] | AimassError], options: EmbedOptions
    ) -> Sequence[EmbeddedText | AimassError]:
        encoded = good(results)
        vectors = self._shaped([item.reading for item in encoded], options)
        embedded = [_embedded(v, item.text) for v, item in zip(vectors, encoded, strict=True)]
        return merged(results, embedded)

    def _shaped(
        self, vectors: Sequence[NDArray[np.float32]], options: EmbedOptions
    ) -> Sequence[NDArray[np.float32]]:
        """Cut vectors to the asked-for dimensions, then scale them."""
        if not vectors:
            return []
        cut = np.stack(vectors)[:, : options.dimensions]  # [texts, dimensions]
        wants_unit = self._spec.normalize if options.normalize is None else options.normalize
        return list(l2_normalize(cut) if wants_unit else cut)


def _embedded(vector: NDArray[np.float32], text: TokenizedText) -> EmbeddedText:
    return EmbeddedText(vector, len(text.token_ids), text.num_truncated_tokens)
