"""Reversible patches that let PyTorch trace transformers' VITS at any length. Knows no bundle.

Three functions of `modeling_vits` ask for the data while they run: the spline picks elements by a mask, the
relative attention pads by the length, and one activation is TorchScript. What stands in for them computes the
same (parity is measured against the unpatched model). Nothing outlives the context manager.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from transformers.models.vits import modeling_vits

_EDGE = 1e-6
"""What the last border is moved by, so that the upper bound itself lies inside."""


@contextmanager
def traceable_vits() -> Iterator[None]:
    """Inside the block, trace VITS without looking at the data."""
    attention = modeling_vits.VitsAttention
    patches: list[tuple[Any, str, Any]] = [
        (modeling_vits, "_unconstrained_rational_quadratic_spline", _inverse_spline),
        (modeling_vits, "fused_add_tanh_sigmoid_multiply", _gated),
        (attention, "_get_relative_embeddings", _relative_embeddings),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in patches]
    try:
        for owner, name, value in patches:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _gated(left: torch.Tensor, right: torch.Tensor, num_channels: Any) -> torch.Tensor:
    first, second = (left + right).chunk(2, dim=1)
    return torch.tanh(first) * torch.sigmoid(second)


def _relative_embeddings(self: Any, embeddings: torch.Tensor, length: int) -> torch.Tensor:
    """Return the embeddings of the distances -(length - 1) to length - 1; far ones are zero."""
    window = self.window_size
    padded = functional.pad(embeddings, [0, 0, 1, 1, 0, 0])  # [1, 2 * window + 3, head_dim]
    distances = torch.arange(2 * length - 1, device=embeddings.device) - (length - 1)
    return padded[:, (distances + window + 1).clamp(0, 2 * window + 2)]


def _inverse_spline(
    inputs: torch.Tensor,  # [batch, 1, length]
    unnormalized_widths: torch.Tensor,  # [batch, 1, length, bins]
    unnormalized_heights: torch.Tensor,
    unnormalized_derivatives: torch.Tensor,  # [batch, 1, length, bins - 1]
    reverse: bool = False,
    tail_bound: float = 5.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
) -> tuple[torch.Tensor, None]:
    """Invert a monotonic rational quadratic spline between the bounds; outside it is the identity.

    Source: Durkan et al. 2019, "Neural Spline Flows".
    """
    assert reverse, "speech is only generated here"
    is_inside = (inputs >= -tail_bound) & (inputs <= tail_bound)
    values = inputs.clamp(-tail_bound, tail_bound)
    x, widths = _borders(unnormalized_widths, tail_bound, min_bin_width)
    y, heights = _borders(unnormalized_heights, tail_bound, min_bin_height)
    end = math.log(math.exp(1 - min_derivative) - 1)
    slopes = min_derivative + functional.softplus(functional.pad(unnormalized_derivatives, (1, 1), value=end))
    edges = torch.cat([y[..., :-1], y[..., -1:] + _EDGE], dim=-1)
    index = (values[..., None] >= edges).sum(dim=-1, keepdim=True) - 1

    def at(table: torch.Tensor) -> torch.Tensor:
        return table.gather(-1, index)[..., 0]

    slope, left, right = at(heights / widths), at(slopes[..., :-1]), at(slopes[..., 1:])
    above = values - at(y[..., :-1])
    bend = above * (left + right - 2 * slope)
    a, b, c = at(heights) * (slope - left) + bend, at(heights) * left - bend, -slope * above
    root = (2 * c) / (-b - torch.sqrt(b.pow(2) - 4 * a * c))
    return torch.where(is_inside, root * at(widths) + at(x[..., :-1]), inputs), None


def _borders(unnormalized: torch.Tensor, bound: float, smallest: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the borders of the bins from -bound to bound, [..., bins + 1], and their sizes [..., bins]."""
    num_bins = unnormalized.shape[-1]
    shares = smallest + (1 - smallest * num_bins) * functional.softmax(unnormalized, dim=-1)
    inner = 2 * bound * torch.cumsum(shares, dim=-1)[..., :-1] - bound
    low = torch.full_like(inner[..., :1], -bound)
    borders = torch.cat([low, inner, -low], dim=-1)
    return borders, borders[..., 1:] - borders[..., :-1]
