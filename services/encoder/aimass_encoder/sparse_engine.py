"""Texts in, weights of words out. Must not know the wire."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from aimass.model.v1.model_service_pb2 import ModelLimits
from aimass_serving.errors import AimassError
from numpy.typing import NDArray

from aimass_encoder.head import SparseHead
from aimass_encoder.sparse import SparseReply, SparseRequest, SparseText, heaviest
from aimass_encoder.task_engine import TextTaskEngine
from aimass_encoder.text_encoder import Encoded, TextCall, TextEncoder


class SparseEngine(TextTaskEngine):
    """One model for sparse embeddings."""

    def __init__(self, encoder: TextEncoder, vocabulary: Sequence[str]) -> None:
        super().__init__(encoder)
        self._vocabulary = vocabulary
        self._head = SparseHead(encoder.model)

    @property
    def limits(self) -> ModelLimits:
        """What a request must stay within."""
        limits = ModelLimits(dimensions=len(self._vocabulary))
        limits.MergeFrom(super().limits)
        return limits

    async def embed(self, request: SparseRequest) -> SparseReply:
        """Return one result for each text, in order; a bad text has an error in its place.

        Raises `InvalidField` for too many texts, `Overloaded`, `DeadlineExceeded`, `Draining`.
        """
        with self._encoder.measured("embeddings"):
            call = TextCall(
                request.texts,
                lambda index: f"texts[{index}]",
                "texts",
                truncation=request.truncation,
                deadline_s=request.deadline_s,
            )
            encoded = await self._encoder.encode(call, self._head)
            return SparseReply(
                results=[self._sparse(item, request.top_k) for item in encoded.results],
                vocabulary_size=len(self._vocabulary),
                num_tokens=encoded.num_tokens,
                timings=encoded.timings,
            )

    def _sparse(
        self, item: Encoded[NDArray[np.float32]] | AimassError, top_k: int | None
    ) -> SparseText | AimassError:
        if isinstance(item, AimassError):
            return item
        places = heaviest(item.reading, top_k)
        words = [self._vocabulary[place] for place in places.tolist()]
        return SparseText(
            places, item.reading[places], words, len(item.text.token_ids), item.text.num_truncated_tokens
        )
