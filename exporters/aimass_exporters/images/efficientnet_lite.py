"""EfficientNet-Lite in PyTorch, with the weight names of lukemelas' EfficientNet-PyTorch.

Lite: no squeeze-and-excitation, ReLU6, and a stem and head of one width. Source: Tan and Le, arXiv
1905.11946, and TensorFlow's `efficientnet/lite`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

_NORM_EPSILON = 1e-3
_STEM_CHANNELS, _HEAD_CHANNELS = 32, 1280


@dataclass(frozen=True, slots=True)
class Variant:
    """How one of the five differs from the first."""

    width: float
    depth: float
    image_size: int


VARIANTS: Mapping[str, Variant] = {
    "lite0": Variant(1.0, 1.0, 224),
    "lite1": Variant(1.0, 1.1, 240),
    "lite2": Variant(1.1, 1.2, 260),
    "lite3": Variant(1.2, 1.4, 280),
    "lite4": Variant(1.4, 1.8, 300),
}


@dataclass(frozen=True, slots=True)
class _Stage:
    num_blocks: int
    kernel_size: int
    stride: int
    expansion: int
    in_channels: int
    out_channels: int


_STAGES = (
    _Stage(1, 3, 1, 1, 32, 16),
    _Stage(2, 3, 2, 6, 16, 24),
    _Stage(2, 5, 2, 6, 24, 40),
    _Stage(3, 3, 2, 6, 40, 80),
    _Stage(3, 5, 1, 6, 80, 112),
    _Stage(4, 5, 2, 6, 112, 192),
    _Stage(1, 3, 1, 6, 192, 320),
)


class EfficientNetLite(nn.Module):
    """One of the five variants."""

    def __init__(self, variant: Variant, num_labels: int) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, _STEM_CHANNELS, 3, stride=2)
        self._bn0 = _norm(_STEM_CHANNELS)
        self._blocks = nn.ModuleList(_blocks(variant))
        last = _scaled_width(_STAGES[-1].out_channels, variant.width)
        self._conv_head = SameConv(last, _HEAD_CHANNELS, 1)
        self._bn1 = _norm(_HEAD_CHANNELS)
        self._fc = nn.Linear(_HEAD_CHANNELS, num_labels)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, num_labels] of pixels [batch, 3, size, size]."""
        x = functional.relu6(self._bn0(self._conv_stem(pixel_values)))
        for block in self._blocks:
            x = block(x)
        x = functional.relu6(self._bn1(self._conv_head(x)))
        logits: torch.Tensor = self._fc(x.mean(dim=(2, 3)))
        return logits


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's `same`: one pixel more at the right and the bottom when uneven."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, 0, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [batch, out_channels, ceil(height / stride), ceil(width / stride)]."""
        vertical, horizontal = (self._padding(x.shape[axis], axis - 2) for axis in (2, 3))
        before, after = horizontal // 2, horizontal - horizontal // 2
        padded = functional.pad(x, [before, after, vertical // 2, vertical - vertical // 2])
        return functional.conv2d(padded, self.weight, None, self.stride, 0, 1, self.groups)

    def _padding(self, length: int, axis: int) -> int:
        stride, kernel = self.stride[axis], self.kernel_size[axis]
        return max((math.ceil(length / stride) - 1) * stride + kernel - length, 0)


class MobileBlock(nn.Module):
    """Widen, convolve each channel by itself, narrow; added to what came in where the shapes agree."""

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel_size: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        wide = in_channels * expansion
        self._has_expansion = expansion != 1
        if self._has_expansion:
            self._expand_conv = SameConv(in_channels, wide, 1)
            self._bn0 = _norm(wide)
        self._depthwise_conv = SameConv(wide, wide, kernel_size, stride=stride, groups=wide)
        self._bn1 = _norm(wide)
        self._project_conv = SameConv(wide, out_channels, 1)
        self._bn2 = _norm(out_channels)
        self._is_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [batch, out_channels, ...]."""
        wide = functional.relu6(self._bn0(self._expand_conv(x))) if self._has_expansion else x
        wide = functional.relu6(self._bn1(self._depthwise_conv(wide)))
        narrow: torch.Tensor = self._bn2(self._project_conv(wide))
        return narrow + x if self._is_residual else narrow


def _blocks(variant: Variant) -> list[MobileBlock]:
    blocks: list[MobileBlock] = []
    for number, stage in enumerate(_STAGES):
        is_fixed = number in (0, len(_STAGES) - 1)  # stem and head keep their depth, the stem its width
        depth = stage.num_blocks if is_fixed else math.ceil(stage.num_blocks * variant.depth)
        channels = _STEM_CHANNELS if number == 0 else _scaled_width(stage.in_channels, variant.width)
        out_channels = _scaled_width(stage.out_channels, variant.width)
        for place in range(depth):
            blocks.append(
                MobileBlock(
                    channels,
                    out_channels,
                    kernel_size=stage.kernel_size,
                    stride=stage.stride if place == 0 else 1,
                    expansion=stage.expansion,
                )
            )
            channels = out_channels
    return blocks


def _scaled_width(channels: int, width: float) -> int:
    """Return a multiple of 8 near `channels * width`, and not more than a tenth below it."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_NORM_EPSILON)
