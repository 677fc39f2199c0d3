"""Whether one text follows another: request, reply and engine. Must not know the wire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from aimass_serving.errors import AimassError, InvalidField
from numpy.typing import NDArray

from aimass_encoder.head import RowHead
from aimass_encoder.labels import softmax
from aimass_encoder.request import PhaseTimings, Truncation
from aimass_encoder.runner import LOGITS
from aimass_encoder.task_engine import TextTaskEngine
from aimass_encoder.text_encoder import Encoded, TextCall, TextEncoder


@dataclass(frozen=True, slots=True)
class NextSentenceRequest:
    """Pairs of one call: a text, and one that may follow it."""

    pairs: Sequence[tuple[str, str]]
    """At least one. A bad one fails its own result, not the call."""
    truncation: Truncation = Truncation.END
    deadline_s: float | None = None
    """On `time.monotonic`: past it, waiting texts are dropped and the call fails."""

    def __post_init__(self) -> None:
        """Refuse a call without pairs."""
        if not self.pairs:
            raise InvalidField("pairs", expected="at least one pair", got="none")


@dataclass(frozen=True, slots=True)
class NextSentence:
    """The prediction for one pair."""

    score: float
    """Probability that the second text follows the first."""
    num_tokens: int
    num_truncated_tokens: int


@dataclass(frozen=True, slots=True)
class NextSentenceReply:
    """One result for each pair of the request, in order."""

    results: Sequence[NextSentence | AimassError]
    num_tokens: int
    timings: PhaseTimings


class NextSentencePredictor(TextTaskEngine):
    """One model for next-sentence prediction, whose first logit stands for "follows"."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__(encoder)
        self._head = RowHead(LOGITS, encoder.model)

    async def predict(self, request: NextSentenceRequest) -> NextSentenceReply:
        """Return one result for each pair, in order; a bad pair has an error in its place.

        Raises `InvalidField` for too many pairs, `Overloaded`, `DeadlineExceeded`, `Draining`.
        """
        with self._encoder.measured("predict_next_sentence"):
            call = TextCall(
                request.pairs,
                lambda index: f"pairs[{index}]",
                "pairs",
                truncation=request.truncation,
                deadline_s=request.deadline_s,
                part_fields=(".text", ".next_text"),
            )
            encoded = await self._encoder.encode(call, self._head)
            results = [_prediction(item) for item in encoded.results]
            return NextSentenceReply(results, encoded.num_tokens, encoded.timings)


def _prediction(item: Encoded[NDArray[np.float32]] | AimassError) -> NextSentence | AimassError:
    if isinstance(item, AimassError):
        return item
    score = float(softmax(item.reading)[0])
    return NextSentence(score, len(item.text.token_ids), item.text.num_truncated_tokens)
