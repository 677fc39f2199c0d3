"""Traces transformers' `VitsModel` into the three graphs of a VITS voice. Knows no text."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import torch
from transformers import VitsConfig, VitsModel

from aimass_exporters.errors import UnsupportedModel
from aimass_exporters.graphs.tracing import Port, trace
from aimass_exporters.voices.vits_tracing import traceable_vits

FAMILY = "vits"
_SYMBOLS, _FRAMES = 21, 40
"""Lengths of the examples that are traced."""


class _Text(torch.nn.Module):
    """Ids to the distribution of each symbol and its duration; the noise is given."""

    def __init__(self, model: VitsModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, ids: torch.Tensor, scales: torch.Tensor, duration_noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mask = torch.ones_like(ids, dtype=torch.float32)[..., None]  # [1, symbols, 1]
        read = self.model.text_encoder(input_ids=ids, padding_mask=mask, return_dict=True)
        mask = mask.transpose(1, 2)
        log_durations = self._log_durations(
            read.last_hidden_state.transpose(1, 2), mask, duration_noise * scales[1]
        )
        durations = torch.ceil(torch.exp(log_durations) * mask * scales[0])
        return read.prior_means.transpose(1, 2), read.prior_log_variances.transpose(1, 2), durations

    def _log_durations(self, hidden: torch.Tensor, mask: torch.Tensor, noise: torch.Tensor) -> Any:
        predictor = self.model.duration_predictor
        if not self.model.config.use_stochastic_duration_prediction:
            return predictor(hidden, mask) + 0 * noise[:, :1]
        condition = predictor.conv_proj(predictor.conv_dds(predictor.conv_pre(hidden), mask)) * mask
        flows = list(reversed(predictor.flows))
        latents = noise
        for flow in [*flows[:-2], flows[-1]]:  # the last but one is not used, as in the model's own forward
            latents, _ = flow(torch.flip(latents, [1]), mask, global_conditioning=condition, reverse=True)
        return latents[:, :1]


class _Flow(torch.nn.Module):
    """Draws to latent frames."""

    def __init__(self, model: VitsModel) -> None:
        super().__init__()
        self.flow = model.flow

    def forward(self, draws: torch.Tensor, mask: torch.Tensor) -> Any:
        return self.flow(draws, mask, None, reverse=True) * mask


class _Vocoder(torch.nn.Module):
    """Latent frames to samples."""

    def __init__(self, model: VitsModel) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(self, frames: torch.Tensor) -> Any:
        return self.decoder(frames, None)


def write_vits_graphs(model: VitsModel, draft: Path) -> dict[str, Path]:
    """Write `text.onnx`, `flow.onnx` and `vocoder.onnx`; return them by role. Raises `UnsupportedModel`."""
    config = model.config
    if config.num_speakers > 1:
        raise UnsupportedModel(FAMILY, because="voices of several speakers are not covered")
    channels = config.flow_size
    symbols = Port("ids", torch.arange(_SYMBOLS)[None] % config.vocab_size, {1: "symbols"})
    noise = Port("duration_noise", torch.randn(1, 2, _SYMBOLS), {2: "symbols"})
    scales = Port("scales", torch.tensor([1.0, 0.8]), {})
    draws = Port("draws", torch.randn(1, channels, _FRAMES), {2: "num_frames"})
    mask = Port("mask", torch.ones(1, 1, _FRAMES), {2: "num_frames"})
    frames = Port("frames", torch.randn(1, channels, _FRAMES), {2: "num_frames"})
    text_outputs = ["means", "log_scales", "durations"]
    with traceable_vits():
        return {
            "text": trace(
                _Text(model), [symbols, scales, noise], text_outputs, draft / "text.onnx", family=FAMILY
            ),
            "flow": trace(_Flow(model), [draws, mask], ["frames"], draft / "flow.onnx", family=FAMILY),
            "vocoder": trace(_Vocoder(model), [frames], ["audio"], draft / "vocoder.onnx", family=FAMILY),
        }


def hop_samples(config: VitsConfig) -> int:
    """Return the samples of one frame."""
    return prod(config.upsample_rates)


def flow_margin(config: VitsConfig) -> int:
    """Return the frames on both sides that the flow's result depends on."""
    kernel, layers = config.wavenet_kernel_size, config.prior_encoder_num_wavenet_layers
    reach = sum((kernel - 1) * config.wavenet_dilation_rate**layer // 2 for layer in range(layers))
    return int(config.prior_encoder_num_flows * reach)


def vocoder_margin(config: VitsConfig) -> int:
    """Return the frames on both sides that the vocoder's result depends on: its receptive field."""
    samples_a_frame, reach = 1.0, 3.0  # the first convolution has a kernel of 7
    for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
        reach += (kernel / rate) / 2 / samples_a_frame + 1 / samples_a_frame
        samples_a_frame *= rate
        block = max(
            sum((size - 1) * (dilation + 1) / 2 for dilation in dilations)
            for size, dilations in zip(
                config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True
            )
        )
        reach += block / samples_a_frame
    return int(reach + 3 / samples_a_frame) + 2
