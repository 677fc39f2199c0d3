"""Which models a service has, in Python. Any aimass service answers; knows no one task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from aimass.channel import Connection, ConnectionOptions, ServiceClient
from aimass.model.v1 import manifest_pb2
from aimass.model.v1 import model_service_pb2 as pb
from aimass.model.v1 import model_service_pb2_grpc as pb_grpc
from aimass.wire import enum_word, refusing


class ModelState(StrEnum):
    """Where a model stands."""

    UNSPECIFIED = "unspecified"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ParityMeasure:
    """One number the export measured against PyTorch, and the bound it was held to."""

    name: str
    value: float
    bound: float
    comparison: str
    """`at_most` or `at_least`."""
    num_samples: int


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that requests to a model may name."""

    name: str
    rank: int
    """Largest rank among its layers."""
    targets: Sequence[str]
    """Kinds of layers that it changes."""
    licence: str
    parity: Sequence[ParityMeasure]


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What a request must stay within; 0 where a limit does not apply."""

    max_tokens: int
    max_concurrent_sequences: int
    max_batch_items: int
    dimensions: int


@dataclass(frozen=True, slots=True)
class Model:
    """A model as a service serves it."""

    name: str
    version: str
    task: str
    """Such as `text_generation` or `embedding`."""
    family: str
    """Architecture, such as `llama` or `bert`."""
    precision: str
    """Such as `fp32` or `int8`."""
    execution_provider: str
    """ONNX Runtime execution provider that runs it."""
    state: ModelState
    state_detail: str
    """Why it failed, or which check was skipped on the operator's word."""
    is_verified: bool
    """Whether checksums and golden inputs were verified when it was loaded."""
    licence: str
    source: str
    limits: ModelLimits
    parity_reference: str
    """What parity was measured against."""
    parity: Sequence[ParityMeasure]
    adapters: Sequence[Adapter] = ()
    """Adapters that a request may name."""

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests."""
        return self.state is ModelState.READY


class ModelClient(ServiceClient):
    """Tells which models a service has. Thread-safe; close it, or use it in a `with` block.

    Every method raises `aimass.errors.RpcError` or one of its kinds.
    """

    def __init__(
        self, target: str | Connection | None = None, options: ConnectionOptions | None = None
    ) -> None:
        super().__init__(target, options)
        self._stub = pb_grpc.ModelServiceStub(self._connection.channel)

    def list(self, *, deadline_s: float | None = None) -> Sequence[Model]:
        """Return every model of the service, ready or not: by name, then newest version first."""
        response = self._connection.call(self._stub.ListModels, pb.ListModelsRequest(), deadline_s=deadline_s)
        return tuple(_model_of(model_pb) for model_pb in response.models)

    def get(self, model: str, *, deadline_s: float | None = None) -> Model:
        """Return one model by `name` or `name@version`; raise `ModelNotFound` when the service lacks it."""
        request = pb.GetModelRequest()
        with refusing("model"):
            request.model = model
        return _model_of(self._connection.call(self._stub.GetModel, request, deadline_s=deadline_s).model)


def _model_of(model_pb: pb.Model) -> Model:
    return Model(
        name=model_pb.name,
        version=model_pb.version,
        task=enum_word(manifest_pb2.Task, "TASK_", model_pb.task),
        family=model_pb.family,
        precision=enum_word(manifest_pb2.Precision, "PRECISION_", model_pb.precision),
        execution_provider=model_pb.execution_provider,
        state=ModelState(enum_word(pb.ModelState, "MODEL_STATE_", model_pb.state)),
        state_detail=model_pb.state_detail,
        is_verified=model_pb.verified,
        licence=model_pb.licence,
        source=model_pb.source,
        limits=_limits_of(model_pb.limits),
        parity_reference=model_pb.parity.reference,
        parity=_measures_of(model_pb.parity),
        adapters=tuple(_adapter_of(adapter_pb) for adapter_pb in model_pb.adapters),
    )


def _adapter_of(adapter_pb: manifest_pb2.AdapterSpec) -> Adapter:
    return Adapter(
        name=adapter_pb.name,
        rank=adapter_pb.rank,
        targets=tuple(adapter_pb.targets),
        licence=adapter_pb.licence,
        parity=_measures_of(adapter_pb.parity),
    )


def _limits_of(limits_pb: pb.ModelLimits) -> ModelLimits:
    return ModelLimits(
        max_tokens=limits_pb.max_tokens,
        max_concurrent_sequences=limits_pb.max_concurrent_sequences,
        max_batch_items=limits_pb.max_batch_items,
        dimensions=limits_pb.dimensions,
    )


def _measures_of(parity_pb: manifest_pb2.ParityRecord) -> Sequence[ParityMeasure]:
    return tuple(_measure_of(measure_pb) for measure_pb in parity_pb.measures)


def _measure_of(measure_pb: manifest_pb2.ParityMeasure) -> ParityMeasure:
    return ParityMeasure(
        name=measure_pb.name,
        value=measure_pb.value,
        bound=measure_pb.bound,
        comparison=enum_word(manifest_pb2.ParityMeasure.Comparison, "COMPARISON_", measure_pb.comparison),
        num_samples=measure_pb.num_samples,
    )
