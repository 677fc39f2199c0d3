"""Reversible patches that trace a model's norms, rotary embedding and transposed linear layers to one node
each.

It halves the nodes of a Llama-like graph. A module is only patched when its own result on random input
agrees with the definition of the operator, so that look-alikes (a norm that adds 1 to its weight, an
interleaved rotation) stay as they are. Nothing outlives the context manager.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

_ROTARY = "apply_rotary_pos_emb"


@contextmanager
def single_ops(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block, trace what can be one node as one node."""
    with ExitStack() as stack:
        for module in model.modules():
            if is_rms_norm(module):
                stack.enter_context(_replaced(module, "forward", _rms_norm(module)))
            elif isinstance(module, Conv1D):
                stack.enter_context(_replaced(module, "forward", _matmul(module)))
        for namespace in _modeling_modules(model):
            if is_half_rotation(getattr(namespace, _ROTARY, None)):
                stack.enter_context(_replaced(namespace, _ROTARY, _rotate))
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    """Set an attribute in the owner's own dictionary, and put back what was there."""
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _modeling_modules(model: PreTrainedModel) -> set[ModuleType]:
    """Return the Python modules that define the model's layers: `apply_rotary_pos_emb` is a global of one
    of them.
    """
    return {sys.modules[type(m).__module__] for m in model.modules()}


def is_rms_norm(module: torch.nn.Module) -> bool:
    """Tell whether a module is the root-mean-square norm of the operator, by what it computes."""
    weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if not type(module).__name__.endswith("RMSNorm") or weight is None or epsilon is None:
        return False
    sample = torch.randn(3, weight.shape[0], generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    with torch.no_grad():
        scale = torch.rsqrt(sample.float().pow(2).mean(-1, keepdim=True) + epsilon)
        expected = weight * (sample.float() * scale).to(weight.dtype)
        return torch.allclose(module(sample), expected)


def _rms_norm(module: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Source of the operator: onnxruntime's SimplifiedLayerNormalization, statistics in float32."""
    weight, epsilon = module.weight, float(module.variance_epsilon)  # type: ignore[arg-type]  # checked before
    assert isinstance(weight, torch.Tensor), "checked before"

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        return torch.onnx.ops.symbolic(
            "SimplifiedLayerNormalization",
            [hidden, weight],
            {"axis": -1, "epsilon": epsilon, "stash_type": 1},
            dtype=hidden.dtype,
            shape=hidden.shape,
            version=1,
        )

    return forward


def _matmul(module: Conv1D) -> Callable[[torch.Tensor], torch.Tensor]:
    """Trace GPT-2's transposed linear layer as MatMul and Add: its own `addmm` becomes a Gemm between two
    Reshapes.
    """

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        return torch.matmul(hidden, module.weight) + module.bias

    return forward


def is_half_rotation(function: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None) -> bool:
    """Tell whether a model's rotary function rotates the two halves of each head, as Llama's does."""
    if function is None:
        return False
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 2, 3, 8, generator=generator)  # [batch, heads, seq, head_dim]
    angles = torch.randn(1, 3, 4, generator=generator).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    try:
        rotated = function(query, key, cos, sin)
    except (TypeError, RuntimeError, IndexError):
        return False
    expected = (_half_rotation(query, cos, sin), _half_rotation(key, cos, sin))
    return all(torch.allclose(r, e, atol=1e-6) for r, e in zip(rotated, expected, strict=True))


def _half_rotation(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    left, right = heads.chunk(2, dim=-1)
    return heads * cos.unsqueeze(1) + torch.cat((-right, left), dim=-1) * sin.unsqueeze(1)


def _rotate(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *_: object, **__: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """Source of the operator: ONNX RotaryEmbedding (opset 23), which takes half of the repeated cosines and
    sines.
    """
    half = cos.shape[-1] // 2
    cos, sin = cos[..., :half], sin[..., :half]
    # GPT-NeoX rotates the first part of each head only, and hands over whole heads.
    num_rotated = 0 if 2 * half == query.shape[-1] else 2 * half

    def one(heads: torch.Tensor) -> torch.Tensor:
        return torch.onnx.ops.symbolic(
            "RotaryEmbedding",
            [heads, cos, sin],
            {"interleaved": 0, "rotary_embedding_dim": num_rotated},
            dtype=heads.dtype,
            shape=heads.shape,
            version=23,
        )

    return one(query), one(key)
