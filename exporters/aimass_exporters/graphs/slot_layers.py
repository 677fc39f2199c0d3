"""Attention layers of encoder-decoder models as the graphs hold them: one node each, over caches that stay
in place.

Built from a transformers layer's own linear modules, so that they share its weights. Self-attention of a
decoder is GroupQueryAttention on its slot; every other attention is MultiHeadAttention with the number of
valid positions of each row. Must not know families: `seq2seq_families` names the modules.

Source: com.microsoft.GroupQueryAttention and com.microsoft.MultiHeadAttention of onnxruntime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

_MASKED = -1e9
"""Added to the scores of positions that are not valid: large beside any score, and far from overflow."""


@dataclass(frozen=True, slots=True)
class Heads:
    """How a layer's hidden states are cut into heads."""

    num_heads: int
    head_dim: int
    scale: float
    """Scores are multiplied by it."""

    @property
    def inner(self) -> int:
        """Numbers of all heads of one position."""
        return self.num_heads * self.head_dim


@dataclass(slots=True)
class StepState:
    """What the layers of one decoder run share of the slots' caches. `present` grows as the layers run."""

    seqlens_k: torch.Tensor  # int32 [batch]
    total_len: torch.Tensor  # int32 [1]
    past: Sequence[tuple[torch.Tensor, torch.Tensor]]  # per layer [batch, heads, max_len, head_dim]
    bias: torch.Tensor | None = None
    """[batch, heads, seq, total] added to the scores of self-attention, or None."""
    present: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Source:
    """The sources a decoder run looks at."""

    cross: Sequence[tuple[torch.Tensor, torch.Tensor]]  # per layer [sources, heads, source, head_dim]
    lengths: torch.Tensor  # int32 [sources]
    readers: torch.Tensor | None = None
    """int64 [sources, width]: the rows that attend to each; None where row r attends to source r."""
    places: torch.Tensor | None = None
    """int64 [batch]: the place of each row among the readers, counted through."""


class SlotSelfAttention(nn.Module):
    """A decoder's self-attention: query, key and value from one product, appended to the slot's cache."""

    def __init__(self, projections: Sequence[nn.Linear], output: nn.Linear, heads: Heads) -> None:
        super().__init__()
        self.heads = heads
        self.packed = packed_linear(projections)
        self.output = output

    def forward(self, hidden: torch.Tensor, layer: int, state: StepState | None) -> torch.Tensor:
        """Return [batch, seq, hidden]; record the layer's present cache. Without a state the sequence is
        whole.
        """
        attended = self._attend_whole(hidden) if state is None else self._append(hidden, layer, state)
        projected: torch.Tensor = self.output(attended)
        return projected

    def _attend_whole(self, hidden: torch.Tensor) -> torch.Tensor:
        query, key, value = self.packed(hidden).chunk(3, -1)
        return attend_all(query, key, value, self.heads, is_causal=True)

    def _append(self, hidden: torch.Tensor, layer: int, state: StepState) -> torch.Tensor:
        batch, seq, _ = hidden.shape
        past_key, past_value = state.past[layer]
        attended, key, value = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            [
                self.packed(hidden),
                None,
                None,
                past_key,
                past_value,
                state.seqlens_k,
                state.total_len,
                *([] if state.bias is None else [None, None, None, state.bias]),
            ],
            attrs={
                "num_heads": self.heads.num_heads,
                "kv_num_heads": self.heads.num_heads,
                "do_rotary": 0,
                "scale": self.heads.scale,
            },
            dtypes=[hidden.dtype, past_key.dtype, past_value.dtype],
            shapes=[(batch, seq, self.heads.inner), past_key.shape, past_value.shape],
            version=1,
        )
        state.present.append((key, value))
        return attended


class SlotCrossAttention(nn.Module):
    """A decoder's attention to its source, whose keys and values are inputs of the graph and never leave
    it.
    """

    def __init__(self, query: nn.Linear, output: nn.Linear, heads: Heads) -> None:
        super().__init__()
        self.heads = heads
        self.query = query
        self.output = output

    def forward(self, hidden: torch.Tensor, layer: int, source: Source) -> torch.Tensor:
        """Return [batch, seq, hidden]."""
        key, value = source.cross[layer]
        query = by_source(self.query(hidden), source)
        attended = attend_all(query, key, value, self.heads, lengths=source.lengths)
        projected: torch.Tensor = self.output(by_row(attended, source, num_positions=hidden.shape[1]))
        return projected


def by_source(rows: torch.Tensor, source: Source) -> torch.Tensor:
    """Return [sources, width * seq, inner] of [batch, seq, inner]: rows of one source behind one another.

    Attention then reads the keys and values of a source once for all rows, not once for each.
    """
    if source.readers is None:
        return rows
    num_sources, width = source.readers.shape
    gathered = rows.index_select(0, source.readers.reshape(-1))
    return gathered.reshape(num_sources, width * rows.shape[1], rows.shape[2])


def by_row(grouped: torch.Tensor, source: Source, *, num_positions: int) -> torch.Tensor:
    """Return [batch, seq, inner]: what `by_source` has joined, row by row."""
    if source.readers is None or source.places is None:
        return grouped
    num_sources, width = source.readers.shape
    rows = grouped.reshape(num_sources * width, num_positions, grouped.shape[2])
    return rows.index_select(0, source.places)


class FullSelfAttention(nn.Module):
    """An encoder's self-attention: every position looks at every valid one."""

    def __init__(self, projections: Sequence[nn.Linear], output: nn.Linear, heads: Heads) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = projections
        self.output = output

    def forward(
        self, hidden: torch.Tensor, lengths: torch.Tensor | None, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Return [batch, seq, hidden]. `lengths` int32 [batch] counts the valid positions, from the left."""
        query, key, value = self.query(hidden), self.key(hidden), self.value(hidden)
        attended = attend_all(query, key, value, self.heads, lengths=lengths, bias=bias)
        projected: torch.Tensor = self.output(attended)
        return projected


def attend_all(
    query: torch.Tensor,  # [batch, seq, inner]
    key: torch.Tensor,  # [batch, source, inner], or [batch, heads, source, head_dim]
    value: torch.Tensor,
    heads: Heads,
    *,
    lengths: torch.Tensor | None = None,  # int32 [batch]
    bias: torch.Tensor | None = None,  # [1, heads, seq, source]
    is_causal: bool = False,
) -> torch.Tensor:
    """Attend to every valid position; with `is_causal` to none that comes later. Return [batch, seq,
    inner].
    """
    inputs = [query, key, value, None, lengths, bias]
    while inputs[-1] is None:
        inputs.pop()
    attended: torch.Tensor = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        inputs,
        attrs={
            "num_heads": heads.num_heads,
            "scale": heads.scale,
            "mask_filter_value": _MASKED,
            "unidirectional": int(is_causal),
        },
        dtype=query.dtype,
        shape=(query.shape[0], query.shape[1], heads.inner),
        version=1,
    )
    return attended


def split_heads(hidden: torch.Tensor, heads: Heads) -> torch.Tensor:
    """Return [batch, heads, seq, head_dim] of [batch, seq, inner]."""
    batch, seq, _ = hidden.shape
    return hidden.reshape(batch, seq, heads.num_heads, heads.head_dim).transpose(1, 2)


def packed_linear(parts: Sequence[nn.Linear]) -> nn.Linear:
    """Return one linear layer whose output is that of the parts, side by side. It has weights of its own."""
    has_bias = any(part.bias is not None for part in parts)
    packed = nn.Linear(parts[0].in_features, sum(part.out_features for part in parts), bias=has_bias)
    with torch.no_grad():
        packed.weight.copy_(torch.cat([part.weight for part in parts]))
        if has_bias:
            packed.bias.copy_(torch.cat([_bias(part) for part in parts]))
    return packed


def _bias(part: nn.Linear) -> torch.Tensor:
    return torch.zeros(part.out_features) if part.bias is None else part.bias


class RmsNorm(nn.Module):
    """T5's norm as one node. Source: onnxruntime's SimplifiedLayerNormalization, statistics in float32."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self.epsilon = epsilon

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return [batch, seq, hidden]."""
        attrs: dict[str, Any] = {"axis": -1, "epsilon": self.epsilon, "stash_type": 1}
        normed: torch.Tensor = torch.onnx.ops.symbolic(
            "SimplifiedLayerNormalization",
            [hidden, self.weight],
            attrs,
            dtype=hidden.dtype,
            shape=hidden.shape,
            version=1,
        )
        return normed
