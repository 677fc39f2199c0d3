"""The bundle of an image classifier to an engine, warmed up and checked. Must not know the wire."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from aimass.model.v1 import image_spec_pb2
from aimass_serving.adaptive_session import each_variant
from aimass_serving.bundle import Bundle
from aimass_serving.errors import BadBundle
from aimass_serving.service import LoadContext
from aimass_serving.session import Session
from PIL import Image

from aimass_encoder.config import EncoderConfig
from aimass_encoder.golden import check_golden
from aimass_encoder.images.classifier import ImageClassifier
from aimass_encoder.images.decoding import Framing
from aimass_encoder.images.runner import PIXELS, ImageBatch, ImageRow, ImageRunner
from aimass_encoder.labels import ProblemType
from aimass_encoder.runner import LOGITS
from aimass_encoder.text_classifier import ClassifierSpec

_INTERPOLATIONS: Mapping[image_spec_pb2.ImageInterpolation.ValueType, Image.Resampling] = {
    image_spec_pb2.IMAGE_INTERPOLATION_BILINEAR: Image.Resampling.BILINEAR,
    image_spec_pb2.IMAGE_INTERPOLATION_BICUBIC: Image.Resampling.BICUBIC,
}


def image_engine_on(session: Session, bundle: Bundle, context: LoadContext) -> ImageClassifier:
    """Return an engine for images, not started. Raises `BadBundle`."""
    spec = bundle.manifest.image_classification
    framing = framing_of(spec, bundle.ref)
    if [i.name for i in session.inputs] != [PIXELS] or LOGITS not in [o.name for o in session.outputs]:
        raise BadBundle(bundle.ref, detail=f"expected a graph of {PIXELS} and {LOGITS}")
    runner = ImageRunner(session, mean=spec.mean, std=spec.std)
    config = context.config(EncoderConfig)
    blank = ImageRow(np.zeros((framing.size, framing.size, 3), np.uint8))
    for _ in each_variant(session):
        replay_golden_images(runner, bundle)
        runner.run(runner.lay_out([blank] * config.images_per_batch, length=1))
    problem_type = ProblemType.MULTI_LABEL if spec.is_multi_label else ProblemType.SINGLE_LABEL
    return ImageClassifier(
        runner,
        framing,
        ClassifierSpec(tuple(spec.labels), problem_type),
        model=bundle.manifest.name,
        config=config,
        permit=context.permit,
    )


def framing_of(spec: image_spec_pb2.ImageClassificationSpec, bundle: str) -> Framing:
    """Return what the manifest says of the image's size. Raises `BadBundle` where it says too little."""
    is_known = spec.resize in (
        image_spec_pb2.IMAGE_RESIZE_EXACT,
        image_spec_pb2.IMAGE_RESIZE_SHORTER_SIDE,
    )
    has_scale = len(spec.mean) == len(spec.std) == 3 and all(std > 0 for std in spec.std)
    if not (is_known and has_scale and spec.labels and 1 <= spec.image_size <= spec.resize_to):
        detail = "expected image_classification with sizes, resize, three means and deviations, and labels"
        raise BadBundle(bundle, detail=detail)
    if spec.interpolation not in _INTERPOLATIONS:
        raise BadBundle(bundle, detail="expected image_classification with a known interpolation")
    return Framing(
        size=spec.image_size,
        resize_to=spec.resize_to,
        keeps_proportions=spec.resize == image_spec_pb2.IMAGE_RESIZE_SHORTER_SIDE,
        interpolation=_INTERPOLATIONS[spec.interpolation],
    )


def replay_golden_images(runner: ImageRunner, bundle: Bundle) -> None:
    """Run the pixels that the export recorded. Raises `BadBundle` when the logits differ too much."""
    golden = bundle.golden()
    try:
        pixels, expected = golden[PIXELS].astype(np.float32), golden[LOGITS]
        tolerance = float(golden["tolerance"])
    except KeyError as error:
        raise BadBundle(bundle.ref, detail=f"golden.npz has no array named {error}") from error
    got = runner.run(ImageBatch(pixels, np.ones((len(pixels), 1), np.int64)))[LOGITS]
    check_golden(bundle.ref, LOGITS, got, expected, tolerance=tolerance)
