"""Whether texts follow one another, as plain values. Knows no call."""

from __future__ import annotations

from dataclasses import dataclass

from aimass.classification.v1 import classification_service_pb2 as pb
from aimass.classifications import Answers
from aimass.embeddings import item_error_of
from aimass.usage import timings_of, usage_of


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
        model=response_pb.model,
        model_version=response_pb.model_version,
        usage=usage_of(response_pb.usage),
        timings=timings_of(response_pb.timings),
    )
