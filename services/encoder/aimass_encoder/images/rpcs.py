"""`ClassificationService.ClassifyImage`: translates between the wire and the engine, and nothing else."""

from __future__ import annotations

from typing import Any

from aimass.classification.v1 import classification_service_pb2 as pb
from aimass.model.v1.manifest_pb2 import TASK_IMAGE_CLASSIFICATION
from aimass_serving.errors import AimassError
from aimass_serving.registry import ModelRegistry
from aimass_serving.request_context import request_context

from aimass_encoder.images.classifier import ImageClassifier
from aimass_encoder.images.request import ClassifiedImage, ImageRequest
from aimass_encoder.labels import ProblemType
from aimass_encoder.messages import annotate_call, item_error_pb, timings_pb
from aimass_encoder.served import served_engine
from aimass_encoder.task_engine import TaskEngine


class ImageRpcs:
    """The part of the servicer that tells what images show."""

    _registry: ModelRegistry[TaskEngine]

    async def ClassifyImage(  # noqa: N802
        self, request: pb.ClassifyImageRequest, context: Any
    ) -> pb.ClassifyImageResponse:
        """Return the labels of each image, in order. One bad image fails its own result, not the call."""
        call = request_context(context, request.request_id)
        asked = _image_request(request, deadline_s=call.deadline_s)
        served, engine = served_engine(
            self._registry, request.model, TASK_IMAGE_CLASSIFICATION, ImageClassifier
        )
        reply = await engine.classify(asked)
        annotate_call("classify_image", served.name, 0)
        is_single = reply.problem_type is ProblemType.SINGLE_LABEL
        return pb.ClassifyImageResponse(
            results=[_result_pb(result) for result in reply.results],
            score_kind=pb.SCORE_KIND_SINGLE_LABEL if is_single else pb.SCORE_KIND_MULTI_LABEL,
            model=served.name,
            model_version=served.version,
            timings=timings_pb(reply.timings),
        )


def _image_request(request: pb.ClassifyImageRequest, *, deadline_s: float | None) -> ImageRequest:
    options = request.options
    return ImageRequest(
        request.images,
        top_k=options.top_k if options.HasField("top_k") else None,
        threshold=options.threshold if options.HasField("threshold") else None,
        labels=tuple(options.labels),
        deadline_s=deadline_s,
    )


def _result_pb(result: ClassifiedImage | AimassError) -> pb.ClassifyImageResult:
    if isinstance(result, AimassError):
        return pb.ClassifyImageResult(error=item_error_pb(result))
    return pb.ClassifyImageResult(
        classification=pb.ImageClassification(
            labels=[pb.LabelScore(label=s.label, score=s.score, index=s.index) for s in result.labels],
            width=result.width,
            height=result.height,
        )
    )
