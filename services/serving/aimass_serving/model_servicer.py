"""`ModelService`: tells which models this service has and in what state. Translates only."""

from __future__ import annotations

from typing import Any

from aimass.model.v1 import manifest_pb2, model_service_pb2, model_service_pb2_grpc

from aimass_serving.registry import ModelRegistry, ModelState, ServedModel

SERVICE_NAME = model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name

_STATES = {
    ModelState.LOADING: model_service_pb2.MODEL_STATE_LOADING,
    ModelState.READY: model_service_pb2.MODEL_STATE_READY,
    ModelState.FAILED: model_service_pb2.MODEL_STATE_FAILED,
}


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    """Answers from the registry."""

    def __init__(self, registry: ModelRegistry[Any]) -> None:
        self._registry = registry

    async def ListModels(  # noqa: N802
        self, request: model_service_pb2.ListModelsRequest, context: Any
    ) -> model_service_pb2.ListModelsResponse:
        """Return every model, ready or not."""
        return model_service_pb2.ListModelsResponse(models=[model_pb(m) for m in self._registry.models()])

    async def GetModel(  # noqa: N802
        self, request: model_service_pb2.GetModelRequest, context: Any
    ) -> model_service_pb2.GetModelResponse:
        """Return one model, ready or not."""
        return model_service_pb2.GetModelResponse(model=model_pb(self._registry.find(request.model)))


def model_pb(served: ServedModel[Any]) -> model_service_pb2.Model:
    """Return what callers may know of a model."""
    manifest = served.bundle.manifest if served.bundle else manifest_pb2.ModelManifest(task=served.ref.task)
    model = model_service_pb2.Model(
        name=served.name,
        version=served.version,
        task=manifest.task,
        family=manifest.family,
        precision=manifest.precision,
        state=_STATES[served.state],
        state_detail=served.detail,
        parity=manifest.parity,
        licence=manifest.licence,
        source=manifest.source,
        adapters=manifest.adapters,
    )
    if served.is_ready:
        model.execution_provider = served.engine.execution_provider
        model.limits.CopyFrom(served.engine.limits)
        model.verified = served.bundle is not None and served.bundle.is_verified
    return model
