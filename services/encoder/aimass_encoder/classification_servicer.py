"""`ClassificationService`: translates between the wire and the engines, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aimass.classification.v1 import classification_service_pb2 as pb
from aimass.classification.v1.classification_service_pb2_grpc import ClassificationServiceServicer
from aimass.common.v1 import usage_pb2
from aimass.model.v1.manifest_pb2 import TASK_TEXT_CLASSIFICATION
from aimass_serving.errors import AimassError
from aimass_serving.registry import ModelRegistry
from aimass_serving.request_context import request_context

from aimass_encoder.classification import ClassifiedText, ClassifyOptions, ClassifyRequest
from aimass_encoder.labels import LabelScore, ProblemType
from aimass_encoder.messages import annotate_call, chosen, item_error_pb, timings_pb
from aimass_encoder.request import Truncation
from aimass_encoder.served import served_engine
from aimass_encoder.task_engine import TaskEngine
from aimass_encoder.text_classifier import TextClassifier
from aimass_encoder.tokenization import TextInput

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ClassificationService"].full_name

_TRUNCATIONS: Mapping[int, Truncation] = {
    pb.TRUNCATION_UNSPECIFIED: Truncation.END,
    pb.TRUNCATION_NONE: Truncation.NONE,
    pb.TRUNCATION_END: Truncation.END,
    pb.TRUNCATION_START: Truncation.START,
}
_SCORE_KINDS: Mapping[ProblemType, pb.ScoreKind.ValueType] = {
    ProblemType.SINGLE_LABEL: pb.SCORE_KIND_SINGLE_LABEL,
    ProblemType.MULTI_LABEL: pb.SCORE_KIND_MULTI_LABEL,
    ProblemType.REGRESSION: pb.SCORE_KIND_REGRESSION,
}


class ClassificationServicer(ClassificationServiceServicer):
    """Answers with the labels of the engines in the registry."""

    def __init__(self, registry: ModelRegistry[TaskEngine]) -> None:
        self._registry = registry

    async def ClassifyText(  # noqa: N802
        self, request: pb.ClassifyTextRequest, context: Any
    ) -> pb.ClassifyTextResponse:
        """Return the labels of each input, in order. One bad input fails its own result, not the call."""
        call = request_context(context, request.request_id)
        served, engine = served_engine(
            self._registry, request.model, TASK_TEXT_CLASSIFICATION, TextClassifier
        )
        inputs = [text_input(item) for item in request.inputs]
        reply = await engine.classify(
            ClassifyRequest(inputs, classify_options(request.options), deadline_s=call.deadline_s)
        )
        annotate_call("classify_text", served.name, reply.num_tokens)
        return pb.ClassifyTextResponse(
            results=[classify_text_result_pb(result) for result in reply.results],
            score_kind=_SCORE_KINDS[reply.problem_type],
            model=served.name,
            model_version=served.version,
            usage=usage_pb2.Usage(input_tokens=reply.num_tokens),
            timings=timings_pb(reply.timings),
        )


def text_input(item: pb.TextInput) -> TextInput:
    """Return a text, or a pair of texts."""
    return (item.text, item.text_pair) if item.HasField("text_pair") else item.text


def truncation_of(number: int) -> Truncation:
    """Return what is to be cut. Raises `InvalidField`."""
    return chosen(_TRUNCATIONS, number, "options.truncation", pb.Truncation)


def classify_options(options: pb.ClassifyOptions) -> ClassifyOptions:
    """Return the engine's options. Raises `InvalidField`."""
    return ClassifyOptions(
        top_k=options.top_k if options.HasField("top_k") else None,
        threshold=options.threshold if options.HasField("threshold") else None,
        labels=tuple(options.labels),
        truncation=truncation_of(options.truncation),
    )


def classify_text_result_pb(result: ClassifiedText | AimassError) -> pb.ClassifyTextResult:
    """Return one input's result as it travels."""
    if isinstance(result, AimassError):
        return pb.ClassifyTextResult(error=item_error_pb(result))
    return pb.ClassifyTextResult(
        classification=pb.Classification(
            labels=[label_score_pb(label) for label in result.labels],
            tokens=result.num_tokens,
            truncated_tokens=result.num_truncated_tokens,
        )
    )


def label_score_pb(label: LabelScore) -> pb.LabelScore:
    """Return a label and its score as they travel."""
    return pb.LabelScore(label=label.label, score=label.score, index=label.index)
