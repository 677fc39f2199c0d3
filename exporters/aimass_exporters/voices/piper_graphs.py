"""Cuts a Piper voice, which comes as one ONNX graph, into the three graphs of a VITS voice. Knows no text.

The places of the cuts are found by what the nodes do: by the two draws of random numbers, the rounding of the
durations, and the first convolution of the vocoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.utils import Extractor

from aimass_exporters.errors import UnsupportedModel

FAMILY = "piper"
FIRST_VOCODER_WEIGHT = "dec.conv_pre.weight"
_DRAW = "RandomNormalLike"
_INPUTS = ("input", "input_lengths", "scales")


@dataclass(frozen=True, slots=True)
class PiperCuts:
    """Names of the tensors at which a Piper graph is cut."""

    duration_noise: str
    means: str
    log_scales: str
    durations: str
    draws: str
    mask: str
    frames: str
    latent_noise: str
    """Not a cut: where the reference is given its noise."""


class PiperGraph:
    """A Piper voice's graph, with its nodes by what they take and give."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._producer = {name: node for node in model.graph.node for name in node.output}
        self._consumers: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)

    def cuts(self) -> PiperCuts:
        """Find the places to cut at. Raises `UnsupportedModel`."""
        names = tuple(value.name for value in self.model.graph.input)
        if names != _INPUTS:
            raise UnsupportedModel(
                FAMILY, because=f"expected the inputs {_INPUTS} of one speaker, got {names}"
            )
        try:
            return self._cuts()
        except (KeyError, ValueError, IndexError) as error:
            because = "its graph has not the shape that Piper's exporter gives"
            raise UnsupportedModel(FAMILY, because=because) from error

    def _cuts(self) -> PiperCuts:
        (rounding,) = (node for node in self.model.graph.node if node.op_type == "Ceil")
        first, second = (node for node in self.model.graph.node if node.op_type == _DRAW)
        # What is spoken is drawn around the means; the durations are drawn around nothing.
        latent, durations = (first, second) if self._is_stretched(first.input[0]) else (second, first)
        drawn = self._only_user(latent.output[0], "Mul")  # noise * exp(log_scales)
        (spread,) = (name for name in drawn.input if name != latent.output[0])
        exponent = self._producer[spread]
        scaled = self._only_user(drawn.output[0], "Mul")
        draws = self._only_user(scaled.output[0], "Add").output[0]
        (vocoder,) = self._consumers[FIRST_VOCODER_WEIGHT]
        masked = self._producer[vocoder.input[0]]
        return PiperCuts(
            duration_noise=durations.output[0],
            means=self._before_stretching(latent.input[0]),
            log_scales=self._before_stretching(exponent.input[0]),
            durations=rounding.output[0],
            draws=draws,
            mask=masked.input[1],
            frames=vocoder.input[0],
            latent_noise=latent.output[0],
        )

    def _is_stretched(self, name: str) -> bool:
        node = self._producer[name]
        return node.op_type == "Transpose" and self._producer[node.input[0]].op_type == "MatMul"

    def _before_stretching(self, name: str) -> str:
        """Return x, where `name` is Transpose(MatMul(alignment, Transpose(x)))."""
        product = self._producer[self._producer[name].input[0]]
        return str(self._producer[product.input[1]].input[0])

    def _only_user(self, name: str, op_type: str) -> NodeProto:
        (user,) = (node for node in self._consumers[name] if node.op_type == op_type)
        return user

    @property
    def num_channels(self) -> int:
        """Channels of a latent frame."""
        return int(self._weight(FIRST_VOCODER_WEIGHT).dims[1])

    @property
    def hop_samples(self) -> int:
        """Samples of one frame: what the vocoder's transposed convolutions stretch it to."""
        nodes = (node for node in self.model.graph.node if node.op_type == "ConvTranspose")
        return prod(a.ints[0] for node in nodes for a in node.attribute if a.name == "strides")

    def _weight(self, name: str) -> TensorProto:
        return next(tensor for tensor in self.model.graph.initializer if tensor.name == name)


def write_piper_graphs(graph: PiperGraph, draft: Path) -> dict[str, Path]:
    """Write `text.onnx`, `flow.onnx` and `vocoder.onnx`; return them by role. Raises `UnsupportedModel`."""
    cuts = graph.cuts()
    extractor = _extractor(graph, cuts)
    text = extractor.extract_model(
        [*_INPUTS, cuts.duration_noise], [cuts.means, cuts.log_scales, cuts.durations]
    )
    _simplify_inputs(text)
    flow = extractor.extract_model([cuts.draws, cuts.mask], [cuts.frames])
    vocoder = extractor.extract_model([cuts.frames], [graph.model.graph.output[0].name])
    names = {
        "input": "ids",
        cuts.duration_noise: "duration_noise",
        cuts.means: "means",
        cuts.log_scales: "log_scales",
        cuts.durations: "durations",
        cuts.draws: "draws",
        cuts.mask: "mask",
        cuts.frames: "frames",
        graph.model.graph.output[0].name: "audio",
    }
    written = {}
    for role, model in (("text", text), ("flow", flow), ("vocoder", vocoder)):
        rename_tensors(model, names)
        written[role] = draft / f"{role}.onnx"
        onnx.save(model, written[role])
    return written


def _extractor(graph: PiperGraph, cuts: PiperCuts) -> Extractor:
    """Return an extractor that knows the types of the tensors at the cuts."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    channels = graph.num_channels
    shapes = {
        cuts.duration_noise: (1, 2, "symbols"),
        cuts.means: (1, channels, "symbols"),
        cuts.log_scales: (1, channels, "symbols"),
        cuts.durations: (1, 1, "symbols"),
        cuts.draws: (1, channels, "num_frames"),
        cuts.mask: (1, 1, "num_frames"),
        cuts.frames: (1, channels, "num_frames"),
    }
    for name, shape in shapes.items():
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return Extractor(model)


def _simplify_inputs(text: onnx.ModelProto) -> None:
    """Let the graph find the length itself, and take two scales: the third belongs to the draws."""
    lengths, scales = "aimass/lengths", "scales"
    kept = [value for value in text.graph.input if value.name not in ("input_lengths", scales)]
    del text.graph.input[:]
    text.graph.input.extend([*kept, helper.make_tensor_value_info(scales, TensorProto.FLOAT, [2])])
    text.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "aimass/zero"))
    rename_inputs(text, {"input_lengths": lengths, scales: "aimass/scales"})
    text.graph.node.insert(0, helper.make_node("Shape", ["input"], ["aimass/shape"]))
    text.graph.node.insert(1, helper.make_node("Slice", ["aimass/shape", "aimass/1", "aimass/2"], [lengths]))
    text.graph.node.insert(2, helper.make_node("Concat", ["aimass/zero", scales], ["aimass/scales"], axis=0))
    for number in (1, 2):
        text.graph.initializer.append(
            numpy_helper.from_array(np.array([number], np.int64), f"aimass/{number}")
        )


def rename_inputs(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Let the nodes read other tensors."""
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name in names:
                node.input[place] = names[name]


def rename_tensors(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Give tensors other names, wherever they appear."""
    rename_inputs(model, names)
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            node.output[place] = names.get(name, name)
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)


def pinned_reference(graph: PiperGraph) -> onnx.ModelProto:
    """Return the whole graph with its two draws as inputs, `duration_noise` and `latent_noise`."""
    cuts = graph.cuts()
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    kept = [node for node in model.graph.node if node.op_type != _DRAW]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    for name, tensor in (("duration_noise", cuts.duration_noise), ("latent_noise", cuts.latent_noise)):
        rename_inputs(model, {tensor: name})
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None, None]))
    return model
