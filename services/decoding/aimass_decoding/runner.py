"""Turns token ids into logits, over a key-value cache that stays in place: row r of every buffer is slot r.

Knows the decoder graph's inputs and outputs, and nothing of requests, sampling or time. One thread at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from aimass.model.v1.manifest_pb2 import DecoderSpec, ModelManifest
from aimass_serving.session import CPU_PROVIDER, Binding, DeviceBuffer, Session
from numpy.typing import DTypeLike, NDArray

from aimass_decoding.cross_attention import CrossGeometry, CrossMemory, SourceMemory, cross_geometry_of
from aimass_decoding.host_memory import host_view

LAST_IDX = "last_idx"
"""Input [rows, n]: after which tokens of a chunk the logits are asked for."""
PROBE_TOKENS = 8
"""Length of the text by which runs of several tokens are compared with single steps."""
DECODER_ROLE = "decoder"
"""Of its graph, in a bundle."""
DRAFT_ROLE = "draft"
"""Of a cheaper graph of the same model, in a bundle that has one: its guesses are confirmed by the other."""
_NUMPY_OF_KV_DTYPE: dict[str, DTypeLike] = {"float": np.float32, "float16": np.float16}


@dataclass(frozen=True, slots=True)
class DecoderGeometry:
    """The sizes of a decoder that decide its key-value cache and its logits."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    """Longest sequence the model knows positions for, in tokens."""
    kv_dtype: str = "float"
    """Element type of the cache in ONNX words: `float` or `float16`."""
    cross: CrossGeometry | None = None
    """Set when the decoder also attends to a source."""
    num_adapters: int = 0
    """Adapters that lie beside the weights; each row of a run is computed with one of them, or with none."""

    @property
    def kv_numpy_dtype(self) -> np.dtype[Any]:
        """Element type of the cache as numpy knows it."""
        return np.dtype(_NUMPY_OF_KV_DTYPE[self.kv_dtype])

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of cache that one token takes, over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.kv_numpy_dtype.itemsize


def geometry_of(spec: DecoderSpec, *, num_adapters: int = 0) -> DecoderGeometry:
    """Return the geometry a bundle's manifest states."""
    return DecoderGeometry(
        num_layers=spec.num_layers,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        vocab_size=spec.vocab_size,
        max_positions=spec.max_positions,
        kv_dtype=spec.kv_dtype,
        cross=cross_geometry_of(spec),
        num_adapters=num_adapters,
    )


def gives_every_position(manifest: ModelManifest) -> bool:
    """Whether the decoder's graph gives the logits of all positions that are asked for, not of one a row."""
    inputs = (tensor for graph in manifest.graphs if graph.role == DECODER_ROLE for tensor in graph.inputs)
    return any(tensor.name == LAST_IDX and tensor.shape[1] != "1" for tensor in inputs)


class Runner(Protocol):
    """What the engine needs of a model: prompts in chunks, then one token of every slot at a time."""

    def prefill(self, slot: int, token_ids: NDArray[np.int64], *, start: int) -> NDArray[np.float32]:
        """Append a chunk of one sequence to its slot, which holds `start` tokens; return logits [vocab].

        The result is overwritten by the next `prefill`.
        """

    def prefill_all(
        self, slot: int, token_ids: NDArray[np.int64], *, start: int, first: int = 0
    ) -> NDArray[np.float32]:
        """Append a chunk as `prefill` does; return the logits [n - first, vocab] that follow each of its
        tokens from number `first` on.
        """

    def decode(self, token_ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one token to each of the first `rows` slots; return logits [rows, vocab].

        Row r is slot r and holds `lengths[r]` tokens before this one. The result is overwritten by the next
        `decode`.
        """

    @property
    def can_copy_slots(self) -> bool:
        """Whether `copy_slot` works on this device."""

    @property
    def gives_every_position(self) -> bool:
        """Whether `prefill_all` works on this graph."""

    def copy_slot(self, source: int, target: int, *, num_tokens: int) -> None:
        """Copy the first `num_tokens` of a slot's cache, and its adapter, over those of another."""

    def set_adapter(self, slot: int, adapter: int) -> None:
        """Compute a slot's sequence with an adapter of the model, numbered from 1, or with none: 0."""

    def set_memory(self, slot: int, memory: SourceMemory | None) -> None:
        """Let a slot's sequence attend to a source; None for a model without sources."""

    def copy_memory(self, source: int, target: int) -> None:
        """Let a slot attend to the source of another. Does nothing for a model without sources."""


def chunk_difference(runner: Runner, *, vocab_size: int) -> float:
    """Return how far the logits behind the tokens of a chunk lie from those of single steps, at most.

    Float kernels round a little otherwise; in integer graphs each layer rounds that up to another level.
    Writes into slot 0, which must hold `PROBE_TOKENS`.
    """
    token_ids, start = np.arange(PROBE_TOKENS) % vocab_size, PROBE_TOKENS // 2
    runner.prefill(0, token_ids[:start], start=0)
    steps = [runner.decode(token_ids[n : n + 1], np.array([n])).copy() for n in range(start, len(token_ids))]
    chunk = runner.prefill_all(0, token_ids[start:], start=start)
    return float(np.abs(chunk - np.concatenate(steps)).max())


class DecoderRunner:
    """Runs a decoder graph on slots.

    Owns the key-value buffers `[max_slots, kv_heads, max_len, head_dim]` and every array that is bound to
    the graph, so that a decode step only writes a few small arrays and runs. Past and present are the same
    memory. With `slots_of`, the buffers and the adapters of the slots are that runner's: both graphs read
    what either wrote.
    """

    def __init__(
        self,
        session: Session,
        geometry: DecoderGeometry,
        *,
        max_slots: int,
        max_len: int,
        slots_of: DecoderRunner | None = None,
    ) -> None:
        self._session = session
        self._geometry = geometry
        self._max_len = max_len
        self._max_slots = max_slots
        self._cross = CrossMemory(session, geometry.cross, max_slots=max_slots) if geometry.cross else None
        if slots_of is None:
            self._kv = _allocate_kv(session, geometry, max_slots=max_slots, max_len=max_len)
            self._adapters = np.zeros(max_slots, np.int64)  # of each slot
        else:
            self._kv, self._adapters = slots_of._kv, slots_of._adapters
        self._decode_io = _StepArrays.of(max_slots, 1, geometry.vocab_size)
        self._prefill_io = _StepArrays.of(1, max_len, geometry.vocab_size)
        self._decode_bindings: dict[int, Binding] = {}
        self._prefill_bindings: dict[int, Binding] = {}

    @property
    def can_copy_slots(self) -> bool:
        return True

    @property
    def gives_every_position(self) -> bool:
        return any(i.name == LAST_IDX and i.shape[1] != 1 for i in self._session.inputs)

    def prefill(self, slot: int, token_ids: NDArray[np.int64], *, start: int) -> NDArray[np.float32]:
        """Append a chunk [n] of one sequence to its slot, which holds `start` tokens; return logits [vocab].

        Raises `ValueError` when the chunk is empty or does not fit into the slot. The result is a view that
        the next `prefill` overwrites.
        """
        io = self._prefill_io
        self._run_chunk(slot, token_ids, start, asked=io.last_idx, logits=io.logits)
        logits: NDArray[np.float32] = io.logits[0]
        return logits

    def prefill_all(
        self, slot: int, token_ids: NDArray[np.int64], *, start: int, first: int = 0
    ) -> NDArray[np.float32]:
        """Append a chunk [n] as `prefill` does; return the logits [n - first, vocab] that follow each of its
        tokens from number `first` on.

        For graphs that give all positions they are asked for; others fail. The result is the caller's.
        """
        count = len(token_ids)
        logits = np.empty((count - first, self._geometry.vocab_size), np.float32)
        self._run_chunk(slot, token_ids, start, asked=np.arange(first, count)[np.newaxis], logits=logits)
        return logits

    def _run_chunk(
        self,
        slot: int,
        token_ids: NDArray[np.int64],
        start: int,
        *,
        asked: NDArray[np.int64],
        logits: NDArray[np.float32],
    ) -> None:
        """Append a chunk to a slot; write the logits [n, vocab] behind its tokens number `asked` [1, n]."""
        count, io, binding = len(token_ids), self._prefill_io, self._prefill_binding(slot)
        if not 0 < count <= self._max_len - start:
            raise ValueError(f"{count} tokens after {start} do not fit a slot of {self._max_len}")
        io.input_ids[0, :count] = token_ids
        io.position_ids[0, :count] = np.arange(start, start + count)
        io.seqlens_k[0] = start + count - 1
        io.total_len[0] = start + count
        io.last_idx[0, 0] = count - 1
        binding.bind_input("input_ids", io.input_ids[:, :count])
        binding.bind_input("position_ids", io.position_ids[:, :count])
        binding.bind_input(LAST_IDX, asked)
        binding.bind_output("logits", logits)
        binding.run()

    def decode(self, token_ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one token [rows] to the first slots, which hold `lengths` [rows]; return [rows, vocab].

        Raises `ValueError` when a slot is full. The result is a view that the next `decode` overwrites.
        """
        rows = len(token_ids)
        longest = int(lengths.max())
        if longest >= self._max_len:
            raise ValueError(f"a slot of {self._max_len} tokens is full")
        io = self._decode_io
        io.input_ids[:rows, 0] = token_ids
        io.position_ids[:rows, 0] = lengths
        io.seqlens_k[:rows] = lengths
        io.total_len[0] = longest + 1
        self._decode_binding(rows).run()
        return io.logits[:rows]

    def copy_slot(self, source: int, target: int, *, num_tokens: int) -> None:
        """Copy the first `num_tokens` of a slot's cache, and its adapter, over those of another.

        On CUDA the whole row is copied, which is one piece of memory.
        """
        self._adapters[target] = self._adapters[source]
        if self._session.execution_provider != CPU_PROVIDER:
            for buffer in self._kv.values():
                self._session.copy(buffer.rows(source, 1), buffer.rows(target, 1))
            return
        for buffer in self._kv.values():
            rows = host_view(buffer)  # [max_slots, kv_heads, max_len, head_dim]
            rows[target, :, :num_tokens] = rows[source, :, :num_tokens]

    def set_adapter(self, slot: int, adapter: int) -> None:
        """Compute a slot's sequence with an adapter. Raises `ValueError` for one that the model has not."""
        if not 0 <= adapter <= self._geometry.num_adapters:
            raise ValueError(f"expected an adapter from 0 to {self._geometry.num_adapters}, got {adapter}")
        self._adapters[slot] = adapter

    def set_memory(self, slot: int, memory: SourceMemory | None) -> None:
        """Let a slot's sequence attend to a source.

        Raises `ValueError` when the model has no sources, or this one does not fit it.
        """
        if (memory is None) != (self._cross is None):
            raise ValueError("a source is needed by a model that has an encoder, and by no other")
        if memory is not None and self._cross is not None:
            self._cross.write(slot, memory)
            self._forget_bindings()

    def copy_memory(self, source: int, target: int) -> None:
        if self._cross is not None:
            self._cross.copy(source, target)
            self._forget_bindings()

    def _forget_bindings(self) -> None:
        """Bind anew what is run next: which rows share a source has changed."""
        self._decode_bindings.clear()
        self._prefill_bindings.clear()

    def _decode_binding(self, rows: int) -> Binding:
        binding = self._decode_bindings.get(rows)
        if binding is None:
            binding = self._decode_bindings[rows] = self._bind(self._decode_io, first=0, rows=rows)
            binding.bind_input("input_ids", self._decode_io.input_ids[:rows])
            binding.bind_input("position_ids", self._decode_io.position_ids[:rows])
            binding.bind_input(LAST_IDX, self._decode_io.last_idx[:rows])
            binding.bind_output("logits", self._decode_io.logits[:rows])
        return binding

    def _prefill_binding(self, slot: int) -> Binding:
        binding = self._prefill_bindings.get(slot)
        if binding is None:
            binding = self._prefill_bindings[slot] = self._bind(self._prefill_io, first=slot, rows=1)
        return binding

    def _bind(self, io: _StepArrays, *, first: int, rows: int) -> Binding:
        """Bind everything whose address and shape never change again for these rows."""
        binding = self._session.bind()
        binding.bind_input("seqlens_k", io.seqlens_k[:rows])
        binding.bind_input("total_len", io.total_len)
        for name, buffer in self._kv.items():
            view = buffer.rows(first, rows)
            binding.bind_input(f"past.{name}", view)
            binding.bind_output(f"present.{name}", view)
        if self._geometry.num_adapters:
            binding.bind_input("adapter", self._adapters[first : first + rows])
        if self._cross is not None:
            self._cross.bind(binding, first=first, rows=rows)
        return binding


@dataclass(frozen=True, slots=True)
class _StepArrays:
    """Host arrays that are bound once and written before each run."""

    input_ids: NDArray[np.int64]  # [rows, seq]
    position_ids: NDArray[np.int64]  # [rows, seq]
    seqlens_k: NDArray[np.int32]  # [rows]
    total_len: NDArray[np.int32]  # [1]
    last_idx: NDArray[np.int64]  # [rows, 1]
    logits: NDArray[np.float32]  # [rows, vocab]

    @classmethod
    def of(cls, rows: int, seq: int, vocab_size: int) -> _StepArrays:
        return cls(
            input_ids=np.zeros((rows, seq), np.int64),
            position_ids=np.zeros((rows, seq), np.int64),
            seqlens_k=np.zeros(rows, np.int32),
            total_len=np.zeros(1, np.int32),
            last_idx=np.zeros((rows, 1), np.int64),
            logits=np.zeros((rows, vocab_size), np.float32),
        )


def _allocate_kv(
    session: Session, geometry: DecoderGeometry, *, max_slots: int, max_len: int
) -> dict[str, DeviceBuffer]:
    shape = (max_slots, geometry.num_kv_heads, max_len, geometry.head_dim)
    names = [f"{layer}.{part}" for layer in range(geometry.num_layers) for part in ("key", "value")]
    return {name: session.allocate(shape, geometry.kv_numpy_dtype) for name in names}
