"""What images show, asked for and returned as plain values. Knows no call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aimass.classification.v1 import classification_service_pb2 as pb
from aimass.classifications import Answers, LabelScore, ScoreKind
from aimass.common.v1 import usage_pb2
from aimass.embeddings import item_error_of
from aimass.usage import timings_of, usage_of
from aimass.wire import enum_word, set_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """Which labels to return. What is None takes the server's default."""

    top_k: int | None = None
    """At most this many, best first; 5 where exactly one label is right."""
    threshold: float | None = None
    """Least score of a label."""
    labels: Sequence[str] = ()
    """Only these of the model's labels; empty for all."""

    def message(self) -> pb.ClassifyImageOptions:
        """Return the options as a message; raise `InvalidRequest` when a value fits no field."""
        options_pb = pb.ClassifyImageOptions()
        set_fields(options_pb, self, ("top_k", "threshold", "labels"), path="options.")
        return options_pb


@dataclass(frozen=True, slots=True)
class ImageLabels:
    """The labels of one image."""

    labels: Sequence[LabelScore]
    """Best first; empty when none reaches the threshold."""
    width: int
    """In pixels, as the image is looked at."""
    height: int


@dataclass(frozen=True, slots=True)
class LabelledImages(Answers[ImageLabels]):
    """The labels of the images of one call, in their order."""

    score_kind: ScoreKind


def labelled_images_of(response_pb: pb.ClassifyImageResponse) -> LabelledImages:
    """Return the message as a value."""
    return LabelledImages(
        results=[
            item_error_of(r.error) if r.HasField("error") else _labels_of(r.classification)
            for r in response_pb.results
        ],
        model=response_pb.model,
        model_version=response_pb.model_version,
        usage=usage_of(usage_pb2.Usage()),
        timings=timings_of(response_pb.timings),
        score_kind=ScoreKind(enum_word(pb.ScoreKind, "SCORE_KIND_", response_pb.score_kind)),
    )


def _labels_of(image_pb: pb.ImageClassification) -> ImageLabels:
    labels = [LabelScore(s.label, s.score, s.index) for s in image_pb.labels]
    return ImageLabels(labels, image_pb.width, image_pb.height)
