"""What a classification returns, as plain values. Knows no call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from aimass.classification.v1 import classification_service_pb2 as pb
from aimass.embeddings import ItemError, TextRefused, item_error_of
from aimass.usage import Timings, Usage, reply_fields
from aimass.wire import enum_word

Value = TypeVar("Value")


class ScoreKind(StrEnum):
    """What a score is."""

    UNSPECIFIED = "unspecified"
    SINGLE_LABEL = "single_label"
    """Exactly one label is right; the scores of all labels add up to 1."""
    MULTI_LABEL = "multi_label"
    """Any number of labels is right; each score is 0 to 1 by itself."""
    REGRESSION = "regression"
    """A number of any size, such as a relevance."""


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One label and its score."""

    label: str
    score: float
    index: int
    """Place of the label among the model's, counted from 0."""


@dataclass(frozen=True, slots=True)
class TextClass:
    """The labels of one text."""

    labels: Sequence[LabelScore]
    """Best first; empty when none reaches the threshold."""
    tokens: int
    truncated_tokens: int

    @property
    def best(self) -> LabelScore | None:
        """The label with the highest score; None when none reaches the threshold."""
        return self.labels[0] if self.labels else None


@dataclass(frozen=True, slots=True)
class Answers(Generic[Value]):
    """The answers to the items of one call, in their order: a value or the reason there is none."""

    results: Sequence[Value | ItemError]
    model: str
    model_version: str
    usage: Usage
    timings: Timings

    def require_all(self) -> Sequence[Value]:
        """Return the values; raise `TextRefused` if any item has none."""
        return list(self._required())

    def _required(self) -> Iterator[Value]:
        for index, result in enumerate(self.results):
            if isinstance(result, ItemError):
                raise TextRefused(index, result)
            yield result


@dataclass(frozen=True, slots=True)
class TextClasses(Answers[TextClass]):
    """The labels of the texts of one call, in their order."""

    score_kind: ScoreKind


def text_classes_of(response_pb: pb.ClassifyTextResponse | pb.ClassifyZeroShotResponse) -> TextClasses:
    """Return the message as a value."""
    return TextClasses(
        results=[
            item_error_of(r.error) if r.HasField("error") else _text_class_of(r.classification)
            for r in response_pb.results
        ],
        **reply_fields(response_pb),
        score_kind=ScoreKind(enum_word(pb.ScoreKind, "SCORE_KIND_", response_pb.score_kind)),
    )


def _text_class_of(classification_pb: pb.Classification) -> TextClass:
    labels = [LabelScore(s.label, s.score, s.index) for s in classification_pb.labels]
    return TextClass(labels, classification_pb.tokens, classification_pb.truncated_tokens)
