"""Which labels are wanted. Knows no text and no call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aimass.classification.v1 import classification_service_pb2 as pb
from aimass.embedding_options import Truncation
from aimass.wire import set_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyOptions:
    """Which labels to return. What is None takes the model's own default."""

    top_k: int | None = None
    """At most this many, best first."""
    threshold: float | None = None
    """Least score of a label."""
    labels: Sequence[str] = ()
    """Only these of the model's labels; empty for all."""
    truncation: Truncation = Truncation.END
    min_precision: float | None = None
    """Instead of a threshold: how often a best label is to be right, for models that were calibrated."""

    def message(self) -> pb.ClassifyOptions:
        """Return the options as a message; raise `InvalidRequest` when a value fits no field."""
        options_pb = pb.ClassifyOptions(truncation=truncation_pb(self.truncation))
        set_fields(options_pb, self, ("top_k", "threshold", "labels", "min_precision"), path="options.")
        return options_pb


def truncation_pb(truncation: Truncation) -> pb.Truncation.ValueType:
    """Return what is to be cut as it travels."""
    return pb.Truncation.Value(f"TRUNCATION_{truncation.name}")
