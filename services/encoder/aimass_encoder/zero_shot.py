"""Labels of the caller's own, tried one by one with a model that tells what a text entails.

What is asked and how scores come about; knows no wire format and runs no model. The arithmetic is that of
transformers' zero-shot pipeline (Yin et al. 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from aimass_serving.errors import InvalidField
from numpy.typing import NDArray

from aimass_encoder.labels import LabelScore, Values, ranked, softmax
from aimass_encoder.request import Truncation

DEFAULT_TEMPLATE, PLACEHOLDER = "This example is {}.", "{}"
MAX_SENTENCE_CHARS = 1000


@dataclass(frozen=True, slots=True)
class ZeroShotOptions:
    """How labels are tried, and which to return."""

    hypothesis_template: str = DEFAULT_TEMPLATE
    """The sentence that is tried, `{}` stands for the label."""
    multi_label: bool = False
    """Whether any number of labels can be right."""
    top_k: int | None = None
    threshold: float | None = None
    truncation: Truncation = Truncation.END

    def __post_init__(self) -> None:
        """Refuse values outside their range, naming the field as the wire names it."""
        if self.hypothesis_template.count(PLACEHOLDER) != 1:
            raise InvalidField(
                "options.hypothesis_template", expected="a sentence with one {}", got=self.hypothesis_template
            )
        if len(self.hypothesis_template) > MAX_SENTENCE_CHARS:
            expected = f"at most {MAX_SENTENCE_CHARS} characters"
            raise InvalidField(
                "options.hypothesis_template", expected=expected, got=len(self.hypothesis_template)
            )
        if self.top_k is not None and self.top_k < 1:
            raise InvalidField("options.top_k", expected="at least 1", got=self.top_k)
        if self.threshold is not None and not self.threshold == self.threshold:
            raise InvalidField("options.threshold", expected="a number", got=self.threshold)


@dataclass(frozen=True, slots=True)
class ZeroShotRequest:
    """Texts of one call and the labels to try on each."""

    texts: Sequence[str]
    """At least one. A text that is bad by itself fails its own result, not the call."""
    labels: Sequence[str]
    """At least one, each not empty and not twice."""
    options: ZeroShotOptions = field(default_factory=ZeroShotOptions)
    deadline_s: float | None = None
    """On `time.monotonic`: past it, waiting texts are dropped and the call fails."""

    def __post_init__(self) -> None:
        """Refuse a call without texts, and labels that say nothing."""
        if not self.texts:
            raise InvalidField("texts", expected="at least one text", got="none")
        if not self.labels:
            raise InvalidField("labels", expected="at least one label", got="none")
        for i, label in enumerate(self.labels):
            if not label.strip():
                raise InvalidField(f"labels[{i}]", expected="a label that is not empty", got=label)
            if len(label) > MAX_SENTENCE_CHARS:
                expected = f"at most {MAX_SENTENCE_CHARS} characters"
                raise InvalidField(f"labels[{i}]", expected=expected, got=len(label))
        seen: set[str] = set()
        for i, label in enumerate(self.labels):
            if label in seen:
                raise InvalidField(f"labels[{i}]", expected="no label twice", got=label)
            seen.add(label)

    @property
    def pairs(self) -> Sequence[tuple[str, str]]:
        """Each text with the sentence of each label, label by label within a text."""
        sentences = [self.options.hypothesis_template.replace(PLACEHOLDER, label) for label in self.labels]
        return [(text, sentence) for text in self.texts for sentence in sentences]


@dataclass(frozen=True, slots=True)
class EntailmentLogits:
    """Which logits of a classifier say that a text entails a sentence, and that it contradicts it."""

    entailment: int
    contradiction: int

    @classmethod
    def of(cls, labels: Sequence[str]) -> EntailmentLogits | None:
        """Find them among a model's labels; None when it is no model of entailment."""
        found = [i for i, label in enumerate(labels) if label.lower().startswith("entail")]
        if len(found) != 1 or len(labels) < 2:
            return None
        named = [i for i, label in enumerate(labels) if label.lower().startswith("contradict")]
        others = named or [len(labels) - 1 if found[0] == 0 else 0]
        return cls(found[0], others[0])


def label_scores(
    logits: NDArray[np.float32], request: ZeroShotRequest, places: EntailmentLogits
) -> Sequence[LabelScore]:
    """Return the labels of one text, best first; `logits` is [request's labels, model's labels]."""
    options = request.options
    return ranked(
        _scores(logits, places, multi_label=options.multi_label or len(request.labels) == 1),
        request.labels,
        top_k=options.top_k,
        threshold=options.threshold,
    )


def _scores(logits: NDArray[np.float32], places: EntailmentLogits, *, multi_label: bool) -> Values:
    if not multi_label:
        return softmax(logits[:, places.entailment])
    against: Values = softmax(logits[:, [places.contradiction, places.entailment]])[:, 1]
    return against
