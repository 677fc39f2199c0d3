"""The caller's own labels, and next sentences, as they travel: between messages and the engines' words."""

from __future__ import annotations

from collections.abc import Mapping

from aimass.classification.v1 import classification_service_pb2 as pb
from aimass_serving.errors import AimassError
from aimass_serving.registry import ServedModel

from aimass_encoder.messages import chosen, item_error_pb, reply_fields
from aimass_encoder.next_sentence import NextSentence, NextSentenceReply, NextSentenceRequest
from aimass_encoder.request import Truncation
from aimass_encoder.task_engine import TaskEngine
from aimass_encoder.zero_shot import DEFAULT_TEMPLATE, ZeroShotOptions, ZeroShotRequest

_TRUNCATIONS: Mapping[int, Truncation] = {
    pb.TRUNCATION_UNSPECIFIED: Truncation.END,
    pb.TRUNCATION_NONE: Truncation.NONE,
    pb.TRUNCATION_END: Truncation.END,
    pb.TRUNCATION_START: Truncation.START,
}


def truncation_of(number: int, field: str) -> Truncation:
    """Return what is to be cut. Raises `InvalidField`."""
    return chosen(_TRUNCATIONS, number, field, pb.Truncation)


def zero_shot_request(request: pb.ClassifyZeroShotRequest, *, deadline_s: float | None) -> ZeroShotRequest:
    """Return the engine's request. Raises `InvalidField`."""
    options = request.options
    return ZeroShotRequest(
        request.texts,
        request.labels,
        ZeroShotOptions(
            hypothesis_template=options.hypothesis_template or DEFAULT_TEMPLATE,
            multi_label=options.multi_label,
            top_k=options.top_k if options.HasField("top_k") else None,
            threshold=options.threshold if options.HasField("threshold") else None,
            truncation=truncation_of(options.truncation, "options.truncation"),
        ),
        deadline_s=deadline_s,
    )


def next_sentence_request(
    request: pb.PredictNextSentenceRequest, *, deadline_s: float | None
) -> NextSentenceRequest:
    """Return the engine's request. Raises `InvalidField`."""
    return NextSentenceRequest(
        [(pair.text, pair.next_text) for pair in request.pairs],
        truncation_of(request.truncation, "truncation"),
        deadline_s=deadline_s,
    )


def next_sentence_response(
    reply: NextSentenceReply, served: ServedModel[TaskEngine]
) -> pb.PredictNextSentenceResponse:
    """Return the reply as it travels."""
    return pb.PredictNextSentenceResponse(
        results=[_prediction(result) for result in reply.results],
        **reply_fields(reply, served),
    )


def _prediction(result: NextSentence | AimassError) -> pb.NextSentenceResult:
    if isinstance(result, AimassError):
        return pb.NextSentenceResult(error=item_error_pb(result))
    return pb.NextSentenceResult(
        prediction=pb.NextSentencePrediction(
            score=result.score, tokens=result.num_tokens, truncated_tokens=result.num_truncated_tokens
        )
    )
