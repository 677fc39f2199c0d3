"""A Piper voice: one ONNX graph and a configuration beside it, for American English."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from aimass.model.v1.synthesis_spec_pb2 import (
    SYMBOL_SOURCE_ENGLISH_PHONEMES,
    SYNTHESIS_KIND_VITS,
    SpeechSynthesisSpec,
)
from numpy.typing import NDArray

from aimass_exporters.errors import InvalidCheckpoint, UnsupportedModel
from aimass_exporters.sources.json_file import read_object
from aimass_exporters.voices.english_symbols import ipa_to_espeak, misaki_to_espeak
from aimass_exporters.voices.piper_graphs import FAMILY, PiperGraph, pinned_reference, write_piper_graphs
from aimass_exporters.voices.voice_model import ENGLISH_SENTENCE

CONFIG_PATTERN = "*.onnx.json"
_PAD, _BEGIN, _END = "_", "^", "$"
_FLOW_MARGIN, _VOCODER_MARGIN = 32, 14
"""Four flows of four layers reach two frames each; the vocoder of the medium voices reaches 13.5."""
_LANGUAGE = "en-us"


class PiperVoice:
    """A Piper voice in a folder."""

    family = FAMILY
    golden_text = ENGLISH_SENTENCE
    golden_tolerance = 1e-3

    def __init__(self, folder: Path) -> None:
        configs = sorted(folder.glob(CONFIG_PATTERN))
        if len(configs) != 1:
            names = ", ".join(config.name for config in configs) or "none"
            raise InvalidCheckpoint(folder, detail=f"expected one {CONFIG_PATTERN}, found {names}")
        self._config = read_object(configs[0])
        self._file = configs[0].with_suffix("")
        if not self._file.is_file():
            raise InvalidCheckpoint(folder, detail=f"expected {self._file.name} beside its configuration")
        self._check()
        self.graph = PiperGraph(onnx.load(self._file))
        self.spec = self._spec()

    def _check(self) -> None:
        language = str(self._inner("espeak").get("voice", "unknown"))
        if language != _LANGUAGE:
            because = f"only {_LANGUAGE} can be read without espeak, and this voice speaks {language}"
            raise UnsupportedModel(FAMILY, because=because)
        if int(self._config.get("num_speakers", 1)) > 1:
            raise UnsupportedModel(FAMILY, because="voices of several speakers are not covered")

    def _inner(self, name: str) -> dict[str, Any]:
        inner = self._config.get(name)
        if not isinstance(inner, dict):
            raise InvalidCheckpoint(self._file, detail=f"its configuration has no {name!r}")
        return inner

    def _spec(self) -> SpeechSynthesisSpec:
        table = {symbol: ids[0] for symbol, ids in self._inner("phoneme_id_map").items()}
        special = (_PAD, _BEGIN, _END)
        inference = self._inner("inference")
        return SpeechSynthesisSpec(
            sample_rate_hz=int(self._inner("audio")["sample_rate"]),
            hop_samples=self.graph.hop_samples,
            languages=["en-US"],
            kind=SYNTHESIS_KIND_VITS,
            symbol_source=SYMBOL_SOURCE_ENGLISH_PHONEMES,
            symbol_ids={symbol: number for symbol, number in table.items() if symbol not in special},
            start_ids=[table[_BEGIN], table[_PAD]],
            blank_id=table[_PAD],
            end_ids=[table[_END]],
            replacements=misaki_to_espeak(),
            ipa_replacements=ipa_to_espeak(),
            noise_scale=float(inference["noise_scale"]),
            duration_noise_scale=float(inference["noise_w"]),
            latent_channels=self.graph.num_channels,
            flow_margin_frames=_FLOW_MARGIN,
            vocoder_margin_frames=_VOCODER_MARGIN,
        )

    def write_graphs(self, draft: Path) -> dict[str, Path]:
        """Write the three graphs; return them by role. Raises `UnsupportedModel`."""
        return write_piper_graphs(self.graph, draft)

    def expected(
        self, ids: NDArray[np.int64], drawn: Sequence[NDArray[np.float32]], *, has_noise: bool
    ) -> NDArray[np.float32]:
        """Run the voice as it came; with noise, as it came but for the two draws, which are inputs."""
        scales = [self.spec.noise_scale, 1, self.spec.duration_noise_scale] if has_noise else [0, 1, 0]
        feeds: dict[str, Any] = {
            "input": ids[None],
            "input_lengths": np.array([len(ids)], np.int64),
            "scales": np.array(scales, np.float32),
        }
        if has_noise:
            feeds |= {"duration_noise": drawn[0][None], "latent_noise": drawn[1][None]}
        session = self._pinned if has_noise else self._untouched
        audio: NDArray[np.float32] = session.run(None, feeds)[0].reshape(-1)
        return audio

    @cached_property
    def _untouched(self) -> ort.InferenceSession:
        return ort.InferenceSession(str(self._file), providers=["CPUExecutionProvider"])

    @cached_property
    def _pinned(self) -> ort.InferenceSession:
        graph = pinned_reference(self.graph).SerializeToString()
        return ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
