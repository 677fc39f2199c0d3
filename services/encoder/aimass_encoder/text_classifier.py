"""Texts in, labels out. Must not know the wire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from aimass_serving.errors import AimassError, InvalidField
from numpy.typing import NDArray

from aimass_encoder.classification import ClassifiedText, ClassifyOptions, ClassifyReply, ClassifyRequest
from aimass_encoder.head import RowHead
from aimass_encoder.labels import ProblemType, ranked, scores_of
from aimass_encoder.runner import LOGITS
from aimass_encoder.task_engine import TaskEngine
from aimass_encoder.text_encoder import Encoded, TextCall, TextEncoder

MULTI_LABEL_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class ClassifierSpec:
    """What a classifier's logits stand for."""

    labels: Sequence[str]
    """In the order of the logits."""
    problem_type: ProblemType
    threshold: float | None = None
    """Least score of a label unless a request says otherwise; None for none."""


class TextClassifier(TaskEngine):
    """One sequence classifier."""

    def __init__(self, encoder: TextEncoder, spec: ClassifierSpec) -> None:
        super().__init__(encoder)
        self.spec = spec
        self._head = RowHead(LOGITS, encoder.model)

    async def classify(self, request: ClassifyRequest) -> ClassifyReply:
        """Return one result for each input, in order; a bad input has an error in its place.

        Raises `InvalidField` for labels this model does not have or too many inputs, `Overloaded`,
        `DeadlineExceeded`, `Draining`.
        """
        with self._encoder.measured("classify_text"):
            options = self._completed(request.options)
            call = TextCall(
                request.inputs,
                request.field_of,
                "inputs",
                truncation=options.truncation,
                deadline_s=request.deadline_s,
            )
            encoded = await self._encoder.encode(call, self._head)
            return ClassifyReply(
                results=[self._classified(item, options) for item in encoded.results],
                problem_type=self.spec.problem_type,
                num_tokens=encoded.num_tokens,
                timings=encoded.timings,
            )

    def _completed(self, options: ClassifyOptions) -> ClassifyOptions:
        """Check the options against the model, and fill in what it decides. Raises `InvalidField`."""
        for i, label in enumerate(options.labels):
            if label not in self.spec.labels:
                known = ", ".join(self.spec.labels[:20]) + (", ..." if len(self.spec.labels) > 20 else "")
                raise InvalidField(f"options.labels[{i}]", expected=f"one of {known}", got=label)
        is_single = self.spec.problem_type is ProblemType.SINGLE_LABEL
        return ClassifyOptions(
            top_k=options.top_k or (1 if is_single else None),
            threshold=self._default_threshold() if options.threshold is None else options.threshold,
            labels=options.labels,
            truncation=options.truncation,
        )

    def _default_threshold(self) -> float | None:
        if self.spec.threshold is not None:
            return self.spec.threshold
        return MULTI_LABEL_THRESHOLD if self.spec.problem_type is ProblemType.MULTI_LABEL else None

    def _classified(
        self, item: Encoded[NDArray[np.float32]] | AimassError, options: ClassifyOptions
    ) -> ClassifiedText | AimassError:
        if isinstance(item, AimassError):
            return item
        labels = ranked(
            scores_of(item.reading, self.spec.problem_type),
            self.spec.labels,
            top_k=options.top_k,
            threshold=options.threshold,
            among=options.labels,
        )
        return ClassifiedText(labels, len(item.text.token_ids), item.text.num_truncated_tokens)
