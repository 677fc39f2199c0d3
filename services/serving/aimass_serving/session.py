"""The only place that knows ONNX Runtime: devices, threads, buffers and IO binding.

Must not know tasks, tokens or requests. Everything above talks to the `Session` protocol, whose fake is
`aimass_serving.testing.FakeSession`.
"""

from __future__ import annotations

import errno
import logging
import mmap
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import aimass_kernels
import numpy as np
import onnxruntime as ort
from numpy.typing import DTypeLike, NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, RuntimeException

from aimass_serving.cpu import adds_int8_exactly, instructions, usable_cores
from aimass_serving.errors import DeviceUnavailable

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"

_NUMPY_OF_ONNX: Mapping[str, DTypeLike] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}

_PACKED_SHARE = 2.3
"""A packed graph holds its weights twice at most: as they are, and as the kernels want them."""
SPIN_US = 4000
"""How long an idle thread spins before it sleeps: longer than the gap between two runs, 2.4 ms at 16 rows.

By itself the runtime lets it spin for some 20 ms, in which it takes a core from another variant of the graph,
whose first runs then look slow (029), and from whoever answers the callers.
"""
_SAVE_PACKED: Mapping[str, str] = {
    "save_external_prepacked_constant_initializers": "1",
    "optimized_model_external_initializers_file_name": "packed.onnx.data",
    "optimized_model_external_initializers_min_size_in_bytes": "1024",
}
_LOGGER = logging.getLogger(__name__)


class Device(StrEnum):
    """Where a graph is asked to run. `AUTO` is CUDA when the runtime has it, else the CPU."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """How to open a graph."""

    device: Device = Device.AUTO
    """Where to run. `cuda` without CUDA fails the start; it never falls back to the CPU."""
    device_id: int = 0
    """Which CUDA device."""
    num_threads: int = 0
    """Threads inside one operator; 0 takes the cores the cgroup allows, or fewer by `adapt_threads`."""
    adapt_threads: bool = True
    """Let services that can choose the number of threads at run time, by measured time. CPU only, and only
    while `num_threads` is 0. Needs room for the graph's weights, about 2.2 times, in the temporary folder."""
    allow_spinning: bool = True
    """Let idle threads spin: faster when the machine is quiet, slower when it is busy."""
    spins_between_runs: bool = True
    """Let them spin on when a run has ended. Where graphs run in turn, each with threads of its own, the
    threads of one then take the cores from the next: False halves a voice's time on two cores."""
    own_kernels: bool = True
    """Let aimass's own operators take the place of the runtime's where the graph runs on a CPU that has the
    instructions they are written for (AVX-512 with VNNI)."""
    gpu_mem_limit_bytes: int = 0
    """Upper bound of the CUDA arena; 0 leaves it to the runtime."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Signature of one input or output of a graph."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class BufferView:
    """A contiguous piece of a `DeviceBuffer`: what IO binding needs, and no more."""

    ptr: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class DeviceBuffer:
    """A tensor allocated once in the memory of a session's device, first axis = rows.

    Its memory lives as long as this object. A view is a pointer offset: valid on the CPU and on CUDA alike.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    value: Any = field(repr=False)

    def rows(self, start: int, count: int) -> BufferView:
        """Return rows `start` to `start + count` as a view of shape `[count, *shape[1:]]`."""
        if not 0 <= start <= start + count <= self.shape[0]:
            raise IndexError(f"rows {start}..{start + count} of a buffer with {self.shape[0]} rows")
        row_bytes = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        return BufferView(self.value.data_ptr() + start * row_bytes, (count, *self.shape[1:]), self.dtype)


class Binding(Protocol):
    """Inputs and outputs of one run, bound to memory that stays where it is."""

    def bind_input(self, name: str, value: NDArray[Any] | BufferView) -> None:
        """Bind an input to device memory, or to a C-contiguous host array that is read at each run."""

    def bind_output(self, name: str, value: NDArray[Any] | BufferView) -> None:
        """Bind an output to memory that each run overwrites; it may be the memory of an input."""

    def run(self) -> None:
        """Run the graph. Host arrays bound as outputs hold the result when this returns."""


class Session(Protocol):
    """A graph, ready to run."""

    @property
    def inputs(self) -> Sequence[TensorInfo]:
        """Signatures of the inputs, in the graph's order."""

    @property
    def outputs(self) -> Sequence[TensorInfo]:
        """Signatures of the outputs, in the graph's order."""

    @property
    def execution_provider(self) -> str:
        """Name of the ONNX Runtime execution provider that runs the graph."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once from host arrays to host arrays."""

    def run_each(self, batches: Sequence[Mapping[str, NDArray[Any]]]) -> list[dict[str, NDArray[Any]]]:
        """Run once for each of some batches, side by side where the session has lanes for that."""

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceBuffer:
        """Allocate a buffer of undefined content in the memory of the session's device."""

    def bind(self) -> Binding:
        """Start a binding for runs on memory that stays in place."""

    def copy(self, source: BufferView, target: BufferView) -> None:
        """Copy a view over another of the same length in bytes, within the memory of the session's device."""


def open_session(graph: Path, config: SessionConfig) -> Session:
    """Open an ONNX graph on the configured device.

    Raises `DeviceUnavailable` when CUDA was asked for and is not what the runtime chose: the runtime itself
    only logs that and falls back to the CPU.
    """
    providers = _providers(config)
    session = _open(graph, config, providers)
    chosen = session.get_providers()
    if config.device is Device.CUDA and chosen[0] != CUDA_PROVIDER:
        raise DeviceUnavailable(config.device.value, available=chosen)
    return OrtSession(session, config.device_id)


def open_thread_variants(
    graph: Path, config: SessionConfig, thread_counts: Sequence[int], *, shares_weights: bool = True
) -> list[Session]:
    """Open an ONNX graph on the CPU once for each number of threads; all share one copy of the weights.

    The weights are packed for this CPU and written to a file in the temporary folder that every session maps
    into memory; the file has no name any more when this returns, and its room is free when the last session
    is gone. Measured on SmolLM2-135M in fp32: 521 MB for a second session of its own, 11 MB for a mapped one.
    Without `shares_weights` each session packs its own copy: ONNX Runtime 1.31 writes the packed weights of
    some MatMulNBits nodes such that they read back as others. Raises `OSError` when the temporary folder
    cannot take it.
    """
    if not shares_weights:
        return [open_session(graph, replace(config, num_threads=count)) for count in thread_counts]
    with tempfile.TemporaryDirectory(prefix="aimass-graph-", ignore_cleanup_errors=True) as folder:
        packed = _write_packed(graph, Path(folder))
        return [_open_packed(packed, replace(config, num_threads=count)) for count in thread_counts]


def _write_packed(graph: Path, folder: Path) -> Path:
    """Write the optimised graph with its weights as this CPU's kernels want them. Raises `OSError`."""
    needed = _PACKED_SHARE * sum(file.stat().st_size for file in graph.parent.glob(f"{graph.name}*"))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC, f"{needed / 2**20:.0f} MiB needed, {free / 2**20:.0f} MiB free", str(folder)
        )
    packed = folder / "packed.onnx"
    options = _options(SessionConfig(num_threads=1))
    options.optimized_model_filepath = str(packed)
    for name, value in _SAVE_PACKED.items():
        options.add_session_config_entry(f"session.{name}", value)
    ort.InferenceSession(str(graph), options, providers=[CPU_PROVIDER])
    return packed


def _open_packed(packed: Path, config: SessionConfig) -> Session:
    return OrtSession(_open(packed, config, [CPU_PROVIDER], is_optimised=True), 0)


def _open(
    graph: Path, config: SessionConfig, providers: Sequence[Any], *, is_optimised: bool = False
) -> ort.InferenceSession:
    """Open a graph with our own operators where they can run it, else with the runtime's."""
    library = own_kernels()
    if library and config.own_kernels and resolve_device(config) is Device.CPU and _has_own_operators(graph):
        options = _options(config, is_optimised=is_optimised)
        options.add_session_config_entry(aimass_kernels.THREADS_ENTRY, str(options.intra_op_num_threads))
        options.register_custom_ops_library(str(library))
        options.log_severity_level = 4  # what does not open is told below
        try:
            return ort.InferenceSession(str(graph), options, providers=providers)
        except (Fail, InvalidGraph, RuntimeException) as error:
            _LOGGER.info("%s runs without aimass's own kernels: %s", graph.name, error)
    return ort.InferenceSession(str(graph), _options(config, is_optimised=is_optimised), providers=providers)


def _has_own_operators(graph: Path) -> bool:
    """Tell whether a graph names an operator that we have a kernel for; False if it cannot be read.

    With the library registered, ONNX Runtime 1.31 opens no graph that gets its first operator of that domain
    from the runtime's own optimisation.
    """
    try:
        with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return any(content.find(name.encode()) >= 0 for name in aimass_kernels.OPERATORS)
    except (OSError, ValueError):
        return False


@cache
def own_kernels() -> Path | None:
    """Return the library of our own operators; None where it was not built or the processor cannot run it."""
    return aimass_kernels.library() if instructions() >= aimass_kernels.REQUIRED_INSTRUCTIONS else None


def resolve_device(config: SessionConfig) -> Device:
    """Return where graphs will run, `CPU` or `CUDA`. Raises `DeviceUnavailable` for CUDA without CUDA."""
    available = ort.get_available_providers()
    if config.device is Device.CPU or (config.device is Device.AUTO and CUDA_PROVIDER not in available):
        return Device.CPU
    if CUDA_PROVIDER not in available:
        raise DeviceUnavailable(config.device.value, available=available)
    return Device.CUDA


def _providers(config: SessionConfig) -> list[str | tuple[str, dict[str, Any]]]:
    if resolve_device(config) is Device.CPU:
        return [CPU_PROVIDER]
    options: dict[str, Any] = {
        "device_id": config.device_id,
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    if config.gpu_mem_limit_bytes:
        options["gpu_mem_limit"] = config.gpu_mem_limit_bytes
    return [(CUDA_PROVIDER, options), CPU_PROVIDER]


def _options(config: SessionConfig, *, is_optimised: bool = False) -> ort.SessionOptions:
    options = ort.SessionOptions()
    if is_optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = config.num_threads or usable_cores()
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = (
        False  # shapes vary from run to run: a pattern per shape only grows the arena
    )
    if not adds_int8_exactly():  # 8-bit products add up in 16 bits and saturate: take the exact, slower way
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(config.allow_spinning)))
    options.add_session_config_entry("session.force_spinning_stop", str(int(not config.spins_between_runs)))
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    options.log_severity_level = 3
    return options


class OrtSession:
    """A graph opened with ONNX Runtime."""

    def __init__(self, session: ort.InferenceSession, device_id: int) -> None:
        self._session = session
        self._execution_provider: str = session.get_providers()[0]
        self._device_type = "cuda" if self._execution_provider == CUDA_PROVIDER else "cpu"
        self._device_id = device_id if self._device_type == "cuda" else 0
        self._inputs = tuple(_tensor_info(i) for i in session.get_inputs())
        self._outputs = tuple(_tensor_info(o) for o in session.get_outputs())

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
        names = [o.name for o in self._outputs]
        return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))

    def run_each(self, batches: Sequence[Mapping[str, NDArray[Any]]]) -> list[dict[str, NDArray[Any]]]:
        return [self.run(feeds) for feeds in batches]

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceBuffer:
        element = np.dtype(dtype)
        value = ort.OrtValue.ortvalue_from_shape_and_type(
            list(shape), element.type, self._device_type, self._device_id
        )
        return DeviceBuffer(shape, element, value)

    def bind(self) -> Binding:
        return OrtBinding(self._session, self._device_type, self._device_id)

    def copy(self, source: BufferView, target: BufferView) -> None:
        copier = _copier(self._execution_provider, self._device_id)
        binding = OrtBinding(copier, self._device_type, self._device_id)
        binding.bind_input("x", _bytes_of(source))
        binding.bind_output("y", _bytes_of(target))
        binding.run()


_COPY_GRAPH = (
    b'\x08\x08\x12\x00:<\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x04copyZ\x10\n\x01x\x12\x0b\n\t\x08\x02\x12\x05\n\x03\x12\x01n'
    b"b\x10\n\x01y\x12\x0b\n\t\x08\x02\x12\x05\n\x03\x12\x01nB\x04\n\x00\x10\x10"
)
"""An ONNX model of one node, `y = Identity(x)` on bytes [n]: how rows are copied within CUDA's memory."""


@cache
def _copier(execution_provider: str, device_id: int) -> ort.InferenceSession:
    on_cuda: Any = (CUDA_PROVIDER, {"device_id": device_id})
    provider = on_cuda if execution_provider == CUDA_PROVIDER else execution_provider
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(_COPY_GRAPH, options, providers=[provider])


def _bytes_of(view: BufferView) -> BufferView:
    num_bytes = int(np.prod(view.shape, dtype=np.int64)) * view.dtype.itemsize
    return BufferView(view.ptr, (num_bytes,), np.dtype(np.uint8))


class OrtBinding:
    """IO binding of an `OrtSession`. Keeps the host arrays it was given alive across runs."""

    def __init__(self, session: ort.InferenceSession, device_type: str, device_id: int) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._device_type = device_type
        self._device_id = device_id
        self._host_inputs: dict[str, NDArray[Any]] = {}
        self._host_outputs: dict[str, NDArray[Any]] = {}

    def bind_input(self, name: str, value: NDArray[Any] | BufferView) -> None:
        if isinstance(value, BufferView):
            self._binding.bind_input(
                name, self._device_type, self._device_id, value.dtype.type, value.shape, value.ptr
            )
            return
        self._host_inputs[name] = _contiguous(name, value)
        self._binding.bind_input(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)

    def bind_output(self, name: str, value: NDArray[Any] | BufferView) -> None:
        if isinstance(value, BufferView):
            self._binding.bind_output(
                name, self._device_type, self._device_id, value.dtype.type, value.shape, value.ptr
            )
            return
        self._host_outputs[name] = _contiguous(name, value)
        self._binding.bind_output(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding)


def _contiguous(name: str, value: NDArray[Any]) -> NDArray[Any]:
    # The runtime is given a pointer only: with strides it would read and write the wrong memory in silence.
    if not value.flags.c_contiguous:
        raise ValueError(f"{name}: expected a C-contiguous array, got strides {value.strides}")
    return value


def _tensor_info(arg: Any) -> TensorInfo:
    return TensorInfo(arg.name, np.dtype(_NUMPY_OF_ONNX[arg.type]), tuple(arg.shape))
