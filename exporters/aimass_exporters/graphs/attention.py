"""The attention function that every decoder is traced with: it becomes one GroupQueryAttention node per
layer.

Registered with transformers under `ATTENTION_NAME`; what it reads and writes is a `Trace`, held in a
context variable for the time of one trace. The model has no cache of its own: past and present are inputs
and outputs of the graph, and the runtime binds both to the same memory. Must not know files or
quantisation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from aimass_exporters.errors import UnsupportedModel

ATTENTION_NAME = "aimass_slots"
_IGNORED_OPTIONS = frozenset({"dropout", "position_ids", "output_attentions", "use_cache", "cache_position"})


@dataclass(slots=True)
class Trace:
    """What the attention function reads and writes while one graph is traced."""

    past: Sequence[tuple[torch.Tensor, torch.Tensor]]  # per layer [batch, kv_heads, max_len, head_dim]
    seqlens_k: torch.Tensor  # int32 [batch]
    total_len: torch.Tensor  # int32 [1]
    max_positions: int
    family: str
    present: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


_TRACE: ContextVar[Trace] = ContextVar("aimass_trace")


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,  # [batch, heads, seq, head_dim], already rotated
    key: torch.Tensor,  # [batch, kv_heads, seq, head_dim], already rotated
    value: torch.Tensor,
    attention_mask: object,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Return `([batch, seq, heads, head_dim], None)`, as transformers' attention functions do."""
    trace = _TRACE.get()
    layer = int(module.layer_idx)  # type: ignore[arg-type]  # every attention module of transformers has it
    window, softcap = _local_window(trace, options), _check_options(trace, module, options)
    if key.shape[-1] != value.shape[-1]:
        raise UnsupportedModel(trace.family, because="its keys and values differ in size")
    batch, num_heads, seq, head_dim = query.shape
    past_key, past_value = trace.past[layer]
    output, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        [*(_flat(t) for t in (query, key, value)), past_key, past_value, trace.seqlens_k, trace.total_len],
        attrs={
            "num_heads": num_heads,
            "kv_num_heads": key.shape[1],
            "do_rotary": 0,
            "scale": float(head_dim**-0.5 if scaling is None else scaling),
            "softcap": softcap,
            "local_window_size": window,
        },
        dtypes=[query.dtype, past_key.dtype, past_value.dtype],
        shapes=[(batch, seq, num_heads * head_dim), past_key.shape, past_value.shape],
        version=1,
    )
    trace.present[layer] = (present_key, present_value)
    return output.reshape(batch, seq, num_heads, head_dim), None


def _flat(heads: torch.Tensor) -> torch.Tensor:
    batch, _, seq, _ = heads.shape
    return heads.transpose(1, 2).reshape(batch, seq, -1)


def _local_window(trace: Trace, options: dict[str, Any]) -> int:
    """Return how many positions a token looks at, itself included; -1 when it looks at all of the context."""
    window = options.pop("sliding_window", None)
    return -1 if window is None or window >= trace.max_positions else int(window)


def _check_options(trace: Trace, module: torch.nn.Module, options: dict[str, Any]) -> float:
    """Return the soft cap of the scores (0: none); refuse what the attention node is not asked to do."""
    if not (options.pop("is_causal", None) or getattr(module, "is_causal", True)):
        raise UnsupportedModel(trace.family, because="its attention is not causal")
    softcap = options.pop("softcap", None)
    unknown = sorted(k for k, v in options.items() if v is not None and k not in _IGNORED_OPTIONS)
    if unknown:
        because = f"its attention uses {', '.join(unknown)}, which the graph's attention does not have"
        raise UnsupportedModel(trace.family, because=because)
    return float(softcap or 0.0)


def _no_mask(*_args: object, **_options: object) -> None:
    """GroupQueryAttention masks by lengths: no mask is ever built."""


ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, _no_mask)


@contextmanager
def recording(trace: Trace) -> Iterator[Trace]:
    """Let `attend` read and write this trace inside the block."""
    token = _TRACE.set(trace)
    try:
        yield trace
    finally:
        _TRACE.reset(token)


@contextmanager
def slot_attention(model: PreTrainedModel) -> Iterator[None]:
    """Make a model attend through `attend` inside the block, and as before after it."""
    before = model.config._attn_implementation
    model.config._attn_implementation = ATTENTION_NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before
