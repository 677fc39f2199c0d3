"""Texts in, labels out. Must not know the wire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from aimass_serving.errors import AimassError, InvalidField, WrongTask
from numpy.typing import NDArray

from aimass_encoder.classification import ClassifiedText, ClassifyOptions, ClassifyReply, ClassifyRequest
from aimass_encoder.cross_encoder import rerank_pairs
from aimass_encoder.head import RowHead
from aimass_encoder.labels import ProblemType, check_labels, ranked, scores_of
from aimass_encoder.ranking import RerankReply, RerankRequest
from aimass_encoder.runner import LOGITS
from aimass_encoder.task_engine import TextTaskEngine
from aimass_encoder.text_encoder import Encoded, EncodedTexts, TextCall, TextEncoder

MULTI_LABEL_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class ClassifierSpec:
    """What a classifier's logits stand for."""

    labels: Sequence[str]
    """In the order of the logits."""
    problem_type: ProblemType
    threshold: float | None = None
    """Least score of a label unless a request says otherwise; None for none."""
    temperature: float = 1.0
    """Logits are divided by this before they become scores."""
    points: Sequence[tuple[float, float]] = ()
    """Precisions on unseen texts and the least scores that reach them; empty if not calibrated."""


class TextClassifier(TextTaskEngine):
    """One sequence classifier."""

    def __init__(self, encoder: TextEncoder, spec: ClassifierSpec) -> None:
        super().__init__(encoder)
        self.spec = spec
        self._head = RowHead(LOGITS, encoder.model)

    @property
    def model(self) -> str:
        """The model's name."""
        return self._encoder.model

    async def classify(self, request: ClassifyRequest) -> ClassifyReply:
        """Return one result for each input, in order; a bad input has an error in its place.

        Raises `InvalidField` for labels this model does not have or too many inputs, `Overloaded`,
        `DeadlineExceeded`, `Draining`.
        """
        options = self._completed(request.options)
        call = TextCall(
            request.inputs,
            request.field_of,
            "inputs",
            truncation=options.truncation,
            deadline_s=request.deadline_s,
        )
        encoded = await self.read(call, "classify_text")
        return ClassifyReply(
            results=[self._classified(item, options) for item in encoded.results],
            problem_type=self.spec.problem_type,
            num_tokens=encoded.num_tokens,
            timings=encoded.timings,
        )

    async def read(self, call: TextCall, operation: str) -> EncodedTexts[NDArray[np.float32]]:
        """Return the logits [labels] of each text, in order; a bad text has an error in its place.

        Raises `InvalidField` for too many texts, `Overloaded`, `DeadlineExceeded`, `Draining`.
        """
        with self._encoder.measured(operation):
            return await self._encoder.encode(call, self._head)

    async def rerank(self, request: RerankRequest) -> RerankReply:
        """Return the documents by the model's one logit for the query and each of them.

        Raises `WrongTask` for a model with more labels, and what `rerank_pairs` does.
        """
        if len(self.spec.labels) != 1:
            raise WrongTask(
                self._encoder.model,
                expected="re-ranking (a classifier with one logit, or an embedding model)",
                got=f"classification with {len(self.spec.labels)} labels",
            )
        with self._encoder.measured("rerank"):
            return await rerank_pairs(self._encoder, self._head, request)

    def _completed(self, options: ClassifyOptions) -> ClassifyOptions:
        """Check the options against the model, and fill in what it decides. Raises `InvalidField`."""
        check_labels(options.labels, self.spec.labels)
        is_best_only = (
            self.spec.problem_type is ProblemType.SINGLE_LABEL and options.top_k is None
        ) or options.min_precision is not None
        return ClassifyOptions(
            top_k=1 if is_best_only else options.top_k,
            threshold=self._threshold(options),
            labels=options.labels,
            truncation=options.truncation,
        )

    def _threshold(self, options: ClassifyOptions) -> float | None:
        if options.threshold is not None:
            return options.threshold
        if options.min_precision is not None:
            return self._threshold_of(options.min_precision)
        if self.spec.threshold is not None:
            return self.spec.threshold
        return MULTI_LABEL_THRESHOLD if self.spec.problem_type is ProblemType.MULTI_LABEL else None

    def _threshold_of(self, precision: float) -> float:
        """Return the least score of a label that is right this often. Raises `InvalidField`."""
        enough = [threshold for reached, threshold in self.spec.points if reached >= precision]
        if not enough:
            expected = "none: this model was not calibrated on labelled texts"
            if self.spec.points:
                largest = max(reached for reached, _ in self.spec.points)
                expected = f"at most {largest:.3f}, what this model reached on labelled texts"
            raise InvalidField("options.min_precision", expected=expected, got=precision)
        return min(enough)

    def _classified(
        self, item: Encoded[NDArray[np.float32]] | AimassError, options: ClassifyOptions
    ) -> ClassifiedText | AimassError:
        if isinstance(item, AimassError):
            return item
        labels = ranked(
            scores_of(item.reading / self.spec.temperature, self.spec.problem_type),
            self.spec.labels,
            top_k=options.top_k,
            threshold=options.threshold,
            among=options.labels,
        )
        return ClassifiedText(labels, len(item.text.token_ids), item.text.num_truncated_tokens)
