"""`ClassificationService.ClassifyFeatures`: translates between the wire and the engine, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aimass.classification.v1 import classification_service_pb2 as pb
from aimass.classification.v1 import features_pb2
from aimass.model.v1.manifest_pb2 import TASK_FEATURE_CLASSIFICATION
from aimass_serving.errors import AimassError
from aimass_serving.registry import ModelRegistry
from aimass_serving.request_context import request_context

from aimass_encoder.messages import annotate_call, item_error_pb, timings_pb
from aimass_encoder.served import served_engine
from aimass_encoder.tables.model import TableModel
from aimass_encoder.tables.request import Cell, RowAnswer, TableRequest
from aimass_encoder.tables.spec import TableTask
from aimass_encoder.task_engine import TaskEngine

_KINDS: Mapping[TableTask, features_pb2.EstimatorKind.ValueType] = {
    TableTask.CLASSIFIER: features_pb2.ESTIMATOR_KIND_CLASSIFIER,
    TableTask.REGRESSOR: features_pb2.ESTIMATOR_KIND_REGRESSOR,
    TableTask.CLUSTERER: features_pb2.ESTIMATOR_KIND_CLUSTERER,
}


class TableRpcs:
    """The part of the servicer that tells something of rows of tables."""

    _registry: ModelRegistry[TaskEngine]

    async def ClassifyFeatures(  # noqa: N802
        self, request: pb.ClassifyFeaturesRequest, context: Any
    ) -> pb.ClassifyFeaturesResponse:
        """Return what the model says of each row, in order. A bad row fails its own result, not the call."""
        call = request_context(context, request.request_id)
        asked = _table_request(request, deadline_s=call.deadline_s)
        served, engine = served_engine(self._registry, request.model, TASK_FEATURE_CLASSIFICATION, TableModel)
        reply = await engine.answer(asked)
        annotate_call("classify_features", served.name, 0)
        return pb.ClassifyFeaturesResponse(
            results=[_result_pb(result) for result in reply.results],
            kind=_KINDS[reply.task],
            columns=reply.columns,
            model=served.name,
            model_version=served.version,
            timings=timings_pb(reply.timings),
        )


def _table_request(request: pb.ClassifyFeaturesRequest, *, deadline_s: float | None) -> TableRequest:
    options = request.options
    return TableRequest(
        [[_cell(value) for value in row.values] for row in request.rows],
        tuple(request.columns),
        top_k=options.top_k if options.HasField("top_k") else None,
        labels=tuple(options.labels),
        deadline_s=deadline_s,
    )


def _cell(value: features_pb2.FeatureValue) -> Cell:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    return value.number if kind == "number" else value.text


def _result_pb(result: RowAnswer | AimassError) -> pb.ClassifyFeaturesResult:
    if isinstance(result, AimassError):
        return pb.ClassifyFeaturesResult(error=item_error_pb(result))
    return pb.ClassifyFeaturesResult(
        answer=pb.FeatureAnswer(
            labels=[pb.LabelScore(label=s.label, score=s.score, index=s.index) for s in result.labels],
            values=result.values,
            cluster=result.cluster,
        )
    )
