"""Keys and values of a source that an encoder has read, beside the decoder's own: slots that go on from one
source share one row.

Computed once for each request, written into a row, and read in place by every step after that. The graph
attends source by source: the beams of a search read its keys and values once, not once each. Knows the
graphs' names for them, and nothing of what a source is: speech or text. One thread at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from aimass.model.v1.manifest_pb2 import DecoderSpec
from aimass_serving.errors import DeviceUnavailable
from aimass_serving.session import CPU_PROVIDER, Binding, DeviceBuffer, Session
from numpy.typing import NDArray

from aimass_decoding.host_memory import host_view

LENGTHS_INPUT, READERS_INPUT, PLACES_INPUT = "cross_len", "cross_readers", "cross_places"
_NONE = -1


@dataclass(frozen=True, slots=True)
class CrossGeometry:
    """The sizes of a source's keys and values."""

    num_layers: int
    num_heads: int
    head_dim: int
    max_source_positions: int
    """Longest source, in positions of the encoder's output."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the keys and values, in the graphs' order."""
        return tuple(f"cross.{layer}.{part}" for layer in range(self.num_layers) for part in ("key", "value"))

    @property
    def bytes_per_slot(self) -> int:
        """Bytes that the longest source takes."""
        return 4 * len(self.names) * self.num_heads * self.max_source_positions * self.head_dim


def cross_geometry_of(spec: DecoderSpec) -> CrossGeometry | None:
    """Return the geometry a bundle's manifest states; None for a decoder without a source."""
    if not spec.HasField("cross_attention"):
        return None
    cross = spec.cross_attention
    return CrossGeometry(spec.num_layers, cross.num_heads, cross.head_dim, cross.max_source_positions)


@dataclass(frozen=True, slots=True, eq=False)
class SourceMemory:
    """What a decoder knows of one source: keys and values of every layer."""

    arrays: tuple[NDArray[np.float32], ...] = field(repr=False)
    """Key and value of each layer in the order of `CrossGeometry.names`: [heads, length, head_dim] each."""

    @property
    def length(self) -> int:
        """Valid positions of the source."""
        return int(self.arrays[0].shape[1])

    @classmethod
    def of_row(
        cls,
        outputs: Mapping[str, NDArray[Any]],
        geometry: CrossGeometry,
        row: int,
        *,
        length: int | None = None,
    ) -> SourceMemory:
        """Take one row of an encoder's outputs [batch, heads, source, head_dim], as views.

        `length` cuts off the positions that only fill up a batch; without it all are valid.
        """
        return cls(tuple(outputs[name][row, :, :length] for name in geometry.names))


@dataclass(frozen=True, slots=True, eq=False)
class SourceReaders:
    """Which rows of a step attend to which of the sources it is given."""

    first: int
    """Row of the buffers that holds the first source."""
    readers: NDArray[np.int64]  # [sources, width]: rows of the step; where a source has fewer, row 0 again
    places: NDArray[np.int64]  # [rows]: of each row among the readers, counted through

    @classmethod
    def of(cls, sources: Sequence[int]) -> SourceReaders:
        """Group the rows of a step by the buffers' row that each attends to."""
        first = min(sources)
        groups: list[list[int]] = [[] for _ in range(max(sources) - first + 1)]
        for row, source in enumerate(sources):
            groups[source - first].append(row)
        width = max(len(group) for group in groups)
        readers = np.zeros((len(groups), width), np.int64)
        places = np.zeros(len(sources), np.int64)
        for index, group in enumerate(groups):
            readers[index, : len(group)] = group
            places[group] = index * width + np.arange(len(group))
        return cls(first, readers, places)


class CrossMemory:
    """Buffers `[max_slots, heads, max_source_positions, head_dim]` for every layer, on the CPU.

    Positions beyond a source's length hold zeros: they are masked, but must be numbers.
    """

    def __init__(self, session: Session, geometry: CrossGeometry, *, max_slots: int) -> None:
        if session.execution_provider != CPU_PROVIDER:
            raise DeviceUnavailable("cuda for encoder-decoder models", available=[CPU_PROVIDER])
        self._geometry = geometry
        shape = (max_slots, geometry.num_heads, geometry.max_source_positions, geometry.head_dim)
        self._buffers: dict[str, DeviceBuffer] = {
            name: session.allocate(shape, np.float32) for name in geometry.names
        }
        self._rows = {name: host_view(buffer) for name, buffer in self._buffers.items()}
        self._lengths = np.ones(max_slots, np.int32)  # of each row
        self._source_of = [_NONE] * max_slots  # the row that each slot attends to

    def write(self, slot: int, memory: SourceMemory) -> None:
        """Give a slot a source. Raises `ValueError` when it is empty, too long or of another model."""
        self._check(memory)
        row = self._own_row(slot)
        length = memory.length
        for name, array in zip(self._geometry.names, memory.arrays, strict=True):
            kept = self._rows[name][row]  # [heads, max_source_positions, head_dim]
            kept[:, :length] = array
            kept[:, length:] = 0
        self._lengths[row] = length
        self._source_of[slot] = row

    def copy(self, source: int, target: int) -> None:
        """Let a slot attend to the source of another."""
        self._source_of[target] = self._source_of[source]

    def bind(self, binding: Binding, *, first: int, rows: int) -> None:
        """Bind the sources of some slots as inputs, read in place at each run until one of them changes."""
        of = SourceReaders.of([max(source, 0) for source in self._source_of[first : first + rows]])
        num_sources = len(of.readers)
        binding.bind_input(LENGTHS_INPUT, self._lengths[of.first : of.first + num_sources])
        binding.bind_input(READERS_INPUT, of.readers)
        binding.bind_input(PLACES_INPUT, of.places)
        for name, buffer in self._buffers.items():
            binding.bind_input(name, buffer.rows(of.first, num_sources))

    def _own_row(self, slot: int) -> int:
        """Return the lowest row that no other slot attends to."""
        taken = {row for other, row in enumerate(self._source_of) if other != slot}
        return next(row for row in range(len(self._source_of)) if row not in taken)

    def _check(self, memory: SourceMemory) -> None:
        geometry = self._geometry
        expected = (geometry.num_heads, memory.length, geometry.head_dim)
        shapes = {array.shape for array in memory.arrays}
        if shapes != {expected} or len(memory.arrays) != len(geometry.names):
            raise ValueError(
                f"expected {len(geometry.names)} arrays of shape {expected}, got {sorted(shapes)}"
            )
        if not 0 < memory.length <= geometry.max_source_positions:
            limit = geometry.max_source_positions
            raise ValueError(f"expected a source of 1 to {limit} positions, got {memory.length}")


class SourceEncoder:
    """Runs an encoder graph on a batch of sources. One thread at a time."""

    def __init__(self, session: Session, geometry: CrossGeometry) -> None:
        self._session = session
        self._geometry = geometry

    def encode(
        self, feeds: Mapping[str, NDArray[Any]], *, lengths: Sequence[int] | None = None
    ) -> list[SourceMemory]:
        """Return the memory of each row of a batch. `lengths` are those of rows that were filled up.

        Rows of a batch share the arrays that the graph gave: a memory that is kept keeps the batch.
        """
        outputs = self._session.run(feeds)
        num_rows = len(outputs[self._geometry.names[0]])
        cuts: Sequence[int | None] = lengths if lengths is not None else [None] * num_rows
        return [
            SourceMemory.of_row(outputs, self._geometry, row, length=cut)
            for row, cut in zip(range(num_rows), cuts, strict=True)
        ]
