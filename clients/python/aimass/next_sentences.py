"""Whether texts follow one another, as plain values. Knows no call."""

from __future__ import annotations

from dataclasses import dataclass

from aimass.classification.v1 import classification_service_pb2 as pb
from aimass.classifications import Answers
from aimass.embeddings import item_error_of
from aimass.usage import reply_fields


@dataclass(frozen=True, slots=True)
class NextSentence:
    """The prediction for one pair."""

    score: float
    """Probability that the second text follows the first."""
    tokens: int
    truncated_tokens: int


@dataclass(frozen=True, slots=True)
class NextSentences(Answers[NextSentence]):
    """The predictions for the pairs of one call, in their order."""


def next_sentences_of(response_pb: pb.PredictNextSentenceResponse) -> NextSentences:
    """Return the message as a value."""
    return NextSentences(
        results=[
            item_error_of(r.error)
            if r.HasField("error")
            else NextSentence(r.prediction.score, r.prediction.tokens, r.prediction.truncated_tokens)
            for r in response_pb.results
        ],
        **reply_fields(response_pb),
    )
