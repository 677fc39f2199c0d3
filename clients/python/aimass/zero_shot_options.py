"""How a caller's own labels are tried. Knows no text and no call."""

from __future__ import annotations

from dataclasses import dataclass

from aimass.classification.v1 import classification_service_pb2 as pb
from aimass.classification_options import truncation_pb
from aimass.embedding_options import Truncation
from aimass.wire import set_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroShotOptions:
    """How labels are tried, and which to return. What is None takes the server's default."""

    hypothesis_template: str | None = None
    """The sentence that is tried for each label; `{}` stands for the label."""
    multi_label: bool = False
    """Whether any number of labels can be right."""
    top_k: int | None = None
    """At most this many labels, best first."""
    threshold: float | None = None
    """Least score of a label."""
    truncation: Truncation = Truncation.END

    def message(self) -> pb.ZeroShotOptions:
        """Return the options as a message; raise `InvalidRequest` when a value fits no field."""
        options_pb = pb.ZeroShotOptions(truncation=truncation_pb(self.truncation))
        names = ("hypothesis_template", "multi_label", "top_k", "threshold")
        set_fields(options_pb, self, names, path="options.")
        return options_pb
