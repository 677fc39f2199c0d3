"""Token classification as it travels: between messages and the engine's own words."""

from __future__ import annotations

from collections.abc import Mapping

from aimass.classification.v1 import token_classification_pb2 as pb
from aimass_serving.errors import AimassError
from aimass_serving.registry import ServedModel

from aimass_encoder.entities import Aggregation, Entity
from aimass_encoder.messages import chosen, item_error_pb, reply_fields
from aimass_encoder.tagging import TaggedText, TagOptions, TagReply, TagRequest
from aimass_encoder.task_engine import TaskEngine

_AGGREGATIONS: Mapping[int, Aggregation] = {
    pb.AGGREGATION_UNSPECIFIED: Aggregation.SIMPLE,
    pb.AGGREGATION_NONE: Aggregation.NONE,
    pb.AGGREGATION_SIMPLE: Aggregation.SIMPLE,
    pb.AGGREGATION_FIRST: Aggregation.FIRST,
    pb.AGGREGATION_AVERAGE: Aggregation.AVERAGE,
    pb.AGGREGATION_MAX: Aggregation.MAX,
}


def tag_request(request: pb.ClassifyTokensRequest, *, deadline_s: float | None) -> TagRequest:
    """Return the engine's request. Raises `InvalidField`."""
    options = request.options
    return TagRequest(
        request.texts,
        TagOptions(
            aggregation=chosen(_AGGREGATIONS, options.aggregation, "options.aggregation", pb.Aggregation),
            labels=tuple(options.labels),
            threshold=options.threshold,
            overlap_tokens=options.overlap_tokens if options.HasField("overlap_tokens") else None,
        ),
        deadline_s=deadline_s,
    )


def tag_response(
    reply: TagReply, request: pb.ClassifyTokensRequest, served: ServedModel[TaskEngine]
) -> pb.ClassifyTokensResponse:
    """Return the reply as it travels."""
    return pb.ClassifyTokensResponse(
        results=[_result(result, text) for result, text in zip(reply.results, request.texts, strict=True)],
        **reply_fields(reply, served),
    )


def _result(result: TaggedText | AimassError, text: str) -> pb.ClassifyTokensResult:
    if isinstance(result, AimassError):
        return pb.ClassifyTokensResult(error=item_error_pb(result))
    return pb.ClassifyTokensResult(
        classification=pb.TokenClassification(
            entities=[_entity(entity, text) for entity in result.entities],
            tokens=result.num_tokens,
            windows=result.num_windows,
        )
    )


def _entity(entity: Entity, text: str) -> pb.Entity:
    return pb.Entity(
        label=entity.label,
        score=entity.score,
        start=entity.start,
        end=entity.end,
        text=text[entity.start : entity.end],
    )
