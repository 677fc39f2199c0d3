"""What a caller asks when texts are to be compared, and what comes back. Construction is validation.

Knows no wire format and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from aimass_serving.errors import AimassError, InvalidField
from numpy.typing import NDArray

from aimass_encoder.request import PhaseTimings, Truncation


class SimilarityMetric(StrEnum):
    """How two vectors are compared."""

    COSINE = "cosine"
    DOT = "dot"
    """As the model gives the vectors."""


class RankingMethod(StrEnum):
    """What decided about the order of documents."""

    CROSS_ENCODER = "cross_encoder"
    BI_ENCODER = "bi_encoder"


class RelevanceScore(StrEnum):
    """What a document's score is."""

    SIGMOID = "sigmoid"
    RAW = "raw"
    COSINE = "cosine"


SCORES_OF: dict[RankingMethod, tuple[RelevanceScore, ...]] = {
    RankingMethod.CROSS_ENCODER: (RelevanceScore.SIGMOID, RelevanceScore.RAW),
    RankingMethod.BI_ENCODER: (RelevanceScore.COSINE,),
}
"""What each method can give; the first is the default."""


@dataclass(frozen=True, slots=True)
class SimilarityRequest:
    """Texts to compare with texts."""

    queries: Sequence[str]
    """At least one."""
    documents: Sequence[str] = ()
    """None: the queries with one another."""
    metric: SimilarityMetric = SimilarityMetric.COSINE
    truncation: Truncation = Truncation.END
    chunk_overlap: int | None = None
    """Split long texts; tokens that a piece shares with the one before. None cuts them."""
    dimensions: int | None = None
    """Leading dimensions to keep; None keeps all."""
    query_prompt_name: str = ""
    document_prompt_name: str = ""
    deadline_s: float | None = None
    """On `time.monotonic`: past it, waiting texts are dropped and the call fails."""

    def __post_init__(self) -> None:
        """Refuse a call without queries."""
        if not self.queries:
            raise InvalidField("queries", expected="at least one text", got="none")


@dataclass(frozen=True, slots=True)
class ReadText:
    """How a text was read."""

    num_tokens: int
    num_truncated_tokens: int
    num_chunks: int


@dataclass(frozen=True, slots=True)
class SimilarityReply:
    """A number for each query and document."""

    scores: NDArray[np.float32]  # [queries, documents]
    """NaN where either text has an error."""
    queries: Sequence[ReadText | AimassError]
    documents: Sequence[ReadText | AimassError]
    num_tokens: int
    timings: PhaseTimings


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """A query, and documents to put in order."""

    query: str
    documents: Sequence[str]
    """At least one. A document that is bad by itself gets an error, not the call."""
    top_n: int | None = None
    """Only this many, at least 1; None for all."""
    score: RelevanceScore | None = None
    """None for the method's own."""
    truncation: Truncation = Truncation.END
    chunk_overlap: int | None = None
    """Split long documents; tokens that a piece shares with the one before. None cuts them."""
    query_prompt_name: str = ""
    document_prompt_name: str = ""
    deadline_s: float | None = None
    """On `time.monotonic`: past it, waiting texts are dropped and the call fails."""

    def __post_init__(self) -> None:
        """Refuse values outside their range, naming the field as the wire names it."""
        if not self.query:
            raise InvalidField("query", expected="a text that is not empty", got=self.query)
        if not self.documents:
            raise InvalidField("documents", expected="at least one text", got="none")
        if self.top_n is not None and self.top_n < 1:
            raise InvalidField("options.top_n", expected="at least 1", got=self.top_n)

    def score_by(self, method: RankingMethod) -> RelevanceScore:
        """Return what the scores are to be. Raises `InvalidField` for what the method cannot give."""
        possible = SCORES_OF[method]
        if self.score is not None and self.score not in possible:
            expected = f"{' or '.join(possible)}, as this model is a {method.replace('_', '-')}"
            raise InvalidField("options.score", expected=expected, got=self.score.value)
        return self.score or possible[0]


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """One document and its score."""

    index: int
    """Its place in the request."""
    score: float
    read: ReadText


@dataclass(frozen=True, slots=True)
class RerankReply:
    """Documents, the best first."""

    ranked: Sequence[RankedDocument]
    errors: Sequence[tuple[int, AimassError]]
    """Documents that could not be read, by their place."""
    method: RankingMethod
    score: RelevanceScore
    num_tokens: int
    timings: PhaseTimings


def best_first(
    scored: Sequence[tuple[float, ReadText] | AimassError], top_n: int | None
) -> tuple[Sequence[RankedDocument], Sequence[tuple[int, AimassError]]]:
    """Return the documents by score, of equal ones the first first, and the errors with their places."""
    ranked = [RankedDocument(i, *s) for i, s in enumerate(scored) if not isinstance(s, AimassError)]
    errors = [(i, s) for i, s in enumerate(scored) if isinstance(s, AimassError)]
    return sorted(ranked, key=lambda document: -document.score)[:top_n], errors
