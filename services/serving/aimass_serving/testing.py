"""Fakes and a real in-process server, for the tests of every service."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from aimass.model.v1.manifest_pb2 import (
    PRECISION_FP32,
    TASK_EMBEDDING,
    TASK_TEXT_GENERATION,
    BundleFile,
    ModelManifest,
    ParityMeasure,
    Task,
)
from google.protobuf import json_format
from numpy.typing import DTypeLike, NDArray
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from aimass_serving import telemetry
from aimass_serving.bundle import GOLDEN_FILE, MANIFEST_FILE
from aimass_serving.config import ServiceConfig
from aimass_serving.lifecycle import RunningService
from aimass_serving.plan import ServicePlan
from aimass_serving.registry import E
from aimass_serving.session import CPU_PROVIDER, BufferView, DeviceBuffer, TensorInfo
from aimass_serving.store import ModelStore, open_store

Graph = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
"""A graph written in Python. Its inputs are views: writing into one is what an in-place graph does."""


class FakeSession:
    """A `Session` whose graph is a Python function.

    `num_runs` counts runs of any kind. A bound output whose memory the function already wrote in place may be
    left out of what it returns.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        inputs: Sequence[TensorInfo] = (),
        outputs: Sequence[TensorInfo] = (),
        execution_provider: str = CPU_PROVIDER,
    ) -> None:
        self._graph = graph
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self._execution_provider = execution_provider
        self.num_runs = 0

    @property
    def inputs(self) -> Sequence[TensorInfo]:
        return self._inputs

    @property
    def outputs(self) -> Sequence[TensorInfo]:
        return self._outputs

    @property
    def execution_provider(self) -> str:
        return self._execution_provider

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.num_runs += 1
        return dict(self._graph(feeds))

    def run_each(self, batches: Sequence[Mapping[str, NDArray[Any]]]) -> list[dict[str, NDArray[Any]]]:
        return [self.run(feeds) for feeds in batches]

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceBuffer:
        return DeviceBuffer(shape, np.dtype(dtype), _HostMemory(np.zeros(shape, dtype)))

    def bind(self) -> FakeBinding:
        return FakeBinding(self)

    def copy(self, source: BufferView, target: BufferView) -> None:
        host_array(target)[...] = host_array(source)


class FakeBinding:
    """Binding of a `FakeSession`."""

    def __init__(self, session: FakeSession) -> None:
        self._session = session
        self._bound_inputs: dict[str, NDArray[Any]] = {}
        self._bound_outputs: dict[str, NDArray[Any]] = {}

    def bind_input(self, name: str, value: NDArray[Any] | BufferView) -> None:
        self._bound_inputs[name] = host_array(value)

    def bind_output(self, name: str, value: NDArray[Any] | BufferView) -> None:
        self._bound_outputs[name] = host_array(value)

    def run(self) -> None:
        results = self._session.run(self._bound_inputs)
        for name, memory in self._bound_outputs.items():
            if name in results:
                memory[...] = results[name]


class _HostMemory:
    """What `DeviceBuffer` needs of an ONNX Runtime value, over a NumPy array."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array

    def data_ptr(self) -> int:
        return int(self._array.ctypes.data)


def host_array(value: NDArray[Any] | BufferView) -> NDArray[Any]:
    """Return the memory of a view as an array. Host memory only; the buffer must outlive the array."""
    if not isinstance(value, BufferView):
        return value
    num_bytes = int(np.prod(value.shape, dtype=np.int64)) * value.dtype.itemsize
    memory = memoryview((ctypes.c_char * num_bytes).from_address(value.ptr)).cast("B")
    return np.frombuffer(memory, value.dtype).reshape(value.shape)


@contextlib.asynccontextmanager
async def running_service(
    plan: ServicePlan[E], store: ModelStore | Path | str, **settings: Any
) -> AsyncIterator[RunningService[E]]:
    """Run a service on a free port of this event loop, its models loaded; stop it at the end.

    `settings` are fields of any section of `ServiceConfig` by name, such as `max_receive_bytes=1024`, and
    `extra=[...]`, instances of the plan's config classes. Raises `StartFailure` as a real start does.
    """
    opened = open_store(str(store)) if isinstance(store, str | Path) else store
    service = RunningService(plan, opened, ServiceConfig().override({"port": 0} | settings))
    try:
        await service.start()
        await service.load()
        yield service
    finally:
        await service.stop()


class Recording:
    """The spans and measurements of a test."""

    def __init__(self) -> None:
        self._spans = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracer_provider = TracerProvider(shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._spans))
        self.meter_provider = MeterProvider([self._reader], shutdown_on_exit=False)

    @property
    def spans(self) -> list[ReadableSpan]:
        """Ended spans, in the order of their ends."""
        return list(self._spans.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        """Return the ended spans of this name."""
        return [span for span in self.spans if span.name == name]

    def points(self, name: str) -> list[Any]:
        """Return the data points of a metric."""
        data = self._reader.get_metrics_data()
        metrics = (
            [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics] if data else []
        )
        return [point for metric in metrics if metric.name == name for point in metric.data.data_points]


@contextlib.contextmanager
def recorded_telemetry() -> Iterator[Recording]:
    """Record the spans and measurements of this process, instead of sending them anywhere."""
    recording = Recording()
    telemetry.use_tracer_provider(recording.tracer_provider)
    telemetry.use_meter_provider(recording.meter_provider)
    try:
        yield recording
    finally:
        telemetry.shutdown_telemetry()


EMPTY_GRAPH = b"\x3a\x07\x12\x05empty"
"""A serialised ONNX model with an empty graph."""


def write_bundle(
    store: Path,
    name: str,
    *,
    version: int = 1,
    task: Task.ValueType = TASK_EMBEDDING,
    graph: bytes = EMPTY_GRAPH,
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a bundle that passes every check into `<store>/<name>/<version>/`; return its folder."""
    manifest = ModelManifest(schema_version=1, name=name, version=str(version), task=task, family="fake")
    manifest.precision, manifest.licence, manifest.source = PRECISION_FP32, "unknown", "testing"
    manifest.graphs.add(role="encoder", file="model.onnx")
    (manifest.decoder if task == TASK_TEXT_GENERATION else manifest.encoder).SetInParent()
    manifest.parity.reference = "none"
    manifest.parity.measures.add(
        name="difference", value=0, bound=1, comparison=ParityMeasure.COMPARISON_AT_MOST, num_samples=1
    )
    folder = store / name / str(version)
    for path, content in {"model.onnx": graph, GOLDEN_FILE: _golden(), **(files or {})}.items():
        manifest.files.append(_write_file(folder, path, content))
    write_manifest(folder, manifest)
    return folder


def write_manifest(folder: Path, manifest: ModelManifest) -> None:
    """Write `manifest.json` as exporters do."""
    text = json_format.MessageToJson(manifest, preserving_proto_field_name=True)
    (folder / MANIFEST_FILE).write_text(text)


def _write_file(folder: Path, path: str, content: bytes) -> BundleFile:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(content)
    return BundleFile(path=path, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


def _golden() -> bytes:
    archive = io.BytesIO()
    np.savez(archive, tolerance=np.float64(0))
    return archive.getvalue()
