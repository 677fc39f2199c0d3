"""The hibari voice: one ONNX graph with 8-bit weights, whose spectrum becomes audio outside of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hibari
import numpy as np
import onnx
from aimass.model.v1.synthesis_spec_pb2 import (
    SYMBOL_SOURCE_ENGLISH_PHONEMES,
    SYNTHESIS_KIND_SPECTRAL,
    SpeechSynthesisSpec,
)
from aimass_speech.synthesis.spectral_voice import SpectralVoice
from numpy.typing import NDArray
from onnx import helper

from aimass_exporters.errors import UnsupportedModel
from aimass_exporters.sources.json_file import read_object
from aimass_exporters.voices.english_symbols import ipa_to_misaki
from aimass_exporters.voices.piper_graphs import rename_tensors
from aimass_exporters.voices.voice_model import ENGLISH_SENTENCE

GRAPH_FILE, VOCABULARY_FILE = "hibari.onnx", "vocab.json"
_PAD = 0


class HibariVoice:
    """A hibari voice in a folder."""

    family = "hibari"
    golden_text = ENGLISH_SENTENCE
    golden_tolerance = 0.05  # 8-bit products saturate on some CPUs

    def __init__(self, folder: Path) -> None:
        self._file = folder / GRAPH_FILE
        self.spec = SpeechSynthesisSpec(
            sample_rate_hz=SpectralVoice.sample_rate_hz,
            hop_samples=SpectralVoice.hop_samples,
            languages=["en-US"],
            kind=SYNTHESIS_KIND_SPECTRAL,
            symbol_source=SYMBOL_SOURCE_ENGLISH_PHONEMES,
            symbol_ids=read_object(folder / VOCABULARY_FILE),
            start_ids=[_PAD],
            end_ids=[_PAD],
            ipa_replacements=ipa_to_misaki(),
        )

    def write_graphs(self, draft: Path) -> dict[str, Path]:
        """Write the graph with the durations as one more output. Raises `UnsupportedModel`."""
        model = onnx.load(self._file)
        sums = [node for node in model.graph.node if node.op_type == "CumSum"]
        casts = [node for node in model.graph.node if sums and sums[0].input[0] in node.output]
        if len(sums) != 1 or len(casts) != 1 or casts[0].op_type != "Cast":
            raise UnsupportedModel(self.family, because="its durations were not found in the graph")
        (kind,) = (attribute.i for attribute in casts[0].attribute if attribute.name == "to")
        durations = casts[0].output[0]
        model.graph.output.append(helper.make_tensor_value_info(durations, kind, ["symbols"]))
        rename_tensors(model, {durations: "durations"})
        _give_products_their_own_weights(model)
        onnx.save(model, draft / "text.onnx")
        return {"text": draft / "text.onnx"}

    def expected(
        self, ids: NDArray[np.int64], drawn: Sequence[NDArray[np.float32]], *, has_noise: bool
    ) -> NDArray[np.float32]:
        """Speak with the package's own code."""
        voice = hibari.Hibari(model=str(self._file))
        audio: NDArray[np.float32] = voice.from_ids(ids.tolist(), rng=_Given(drawn, has_noise=has_noise))
        return audio


def _give_products_their_own_weights(model: onnx.ModelProto) -> None:
    """Copy the 8-bit weights that several integer products share.

    Where the CPU lacks VNNI instructions ONNX Runtime (1.31) may rewrite each product's weights for exact
    sums, and fails at the second rewriting of a shared tensor.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    taken: set[str] = set()
    for node in model.graph.node:
        if node.op_type != "MatMulInteger":
            continue
        for place in (1, 3):  # weights, and their zero point
            name = node.input[place] if place < len(node.input) else ""
            if name in tensors and name in taken:
                copy = model.graph.initializer.add()
                copy.CopyFrom(tensors[name])
                copy.name = node.input[place] = f"{name}/{node.name}"
            taken.add(name)


class _Given:
    """Stands for NumPy's generator in the package's code."""

    def __init__(self, drawn: Sequence[NDArray[np.float32]], *, has_noise: bool) -> None:
        self._drawn, self._has_noise = list(drawn), has_noise

    def standard_normal(self, shape: tuple[int, ...], dtype: Any) -> NDArray[np.float32]:
        given = self._drawn.pop(0) if self._has_noise else np.zeros(shape, np.float32)
        assert given.shape == shape, "the noise is drawn in the same order"
        return given.copy()
