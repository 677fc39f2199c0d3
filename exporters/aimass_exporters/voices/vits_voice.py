"""A voice of transformers' `VitsModel` (MMS-TTS): weights, and a vocabulary of letters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from aimass.model.v1.synthesis_spec_pb2 import (
    SYMBOL_SOURCE_CHARACTERS,
    SYNTHESIS_KIND_VITS,
    SpeechSynthesisSpec,
)
from numpy.typing import NDArray
from transformers import VitsModel

from aimass_exporters.errors import InvalidCheckpoint, UnsupportedModel
from aimass_exporters.graphs.torch_threads import one_torch_thread
from aimass_exporters.sources.json_file import read_object
from aimass_exporters.voices.vits_graphs import (
    FAMILY,
    flow_margin,
    hop_samples,
    vocoder_margin,
    write_vits_graphs,
)

_GOLDEN_LETTERS, _WORD_LETTERS = 40, 5
_BLANK = 0


class TransformersVoice:
    """A `VitsModel` in a folder."""

    family = FAMILY
    golden_tolerance = 1e-3

    def __init__(self, folder: Path) -> None:
        vocabulary, settings = folder / "vocab.json", folder / "tokenizer_config.json"
        for file in (vocabulary, settings):
            if not file.is_file():
                raise InvalidCheckpoint(folder, detail=f"expected a {file.name}, found none")
        tokenizer = read_object(settings)
        _check_tokenizer(tokenizer)
        self.model = VitsModel.from_pretrained(folder, local_files_only=True).eval()
        self.spec = self._spec(read_object(vocabulary), tokenizer)
        letters = [symbol for symbol in self.spec.symbol_ids if symbol.isalpha()][:_GOLDEN_LETTERS]
        places = range(0, len(letters), _WORD_LETTERS)
        self.golden_text = " ".join("".join(letters[at : at + _WORD_LETTERS]) for at in places)

    def _spec(self, vocabulary: dict[str, Any], tokenizer: dict[str, Any]) -> SpeechSynthesisSpec:
        config = self.model.config
        has_blank = bool(tokenizer.get("add_blank", True))
        return SpeechSynthesisSpec(
            sample_rate_hz=config.sampling_rate,
            hop_samples=hop_samples(config),
            languages=[str(tokenizer.get("language") or "und")],
            kind=SYNTHESIS_KIND_VITS,
            symbol_source=SYMBOL_SOURCE_CHARACTERS,
            symbol_ids={symbol: number for symbol, number in vocabulary.items() if len(symbol) == 1},
            start_ids=[_BLANK] * has_blank,
            blank_id=_BLANK if has_blank else None,
            noise_scale=config.noise_scale,
            duration_noise_scale=config.noise_scale_duration,
            latent_channels=config.flow_size,
            flow_margin_frames=flow_margin(config),
            vocoder_margin_frames=vocoder_margin(config),
        )

    def write_graphs(self, draft: Path) -> dict[str, Path]:
        """Trace the three graphs; return them by role. Raises `UnsupportedModel`."""
        return write_vits_graphs(self.model, draft)

    def expected(
        self, ids: NDArray[np.int64], drawn: Sequence[NDArray[np.float32]], *, has_noise: bool
    ) -> NDArray[np.float32]:
        """Run the PyTorch model with its two draws replaced."""
        config = self.model.config
        self.model.noise_scale = config.noise_scale * has_noise
        self.model.noise_scale_duration = config.noise_scale_duration * has_noise
        first = 0 if config.use_stochastic_duration_prediction else 1  # else it draws no durations
        with torch.no_grad(), one_torch_thread(), _drawing(drawn[first:] if has_noise else ()):
            audio: NDArray[np.float32] = self.model(torch.from_numpy(ids)[None]).waveform[0].numpy()
        return audio


def _check_tokenizer(tokenizer: dict[str, Any]) -> None:
    if tokenizer.get("phonemize", True):
        raise UnsupportedModel(FAMILY, because="its texts become phonemes by espeak, which is not used")
    if tokenizer.get("is_uroman", False):
        raise UnsupportedModel(FAMILY, because="its texts are written in Latin letters with uroman first")


@contextmanager
def _drawing(drawn: Sequence[NDArray[np.float32]]) -> Iterator[None]:
    """Inside the block, let PyTorch draw these numbers, if there are any."""
    left = [torch.from_numpy(array)[None] for array in drawn]

    def draw(*_: Any, **__: Any) -> torch.Tensor:
        return left.pop(0)

    before = torch.randn, torch.randn_like
    if left:
        torch.randn, torch.randn_like = draw, draw
    try:
        yield
    finally:
        torch.randn, torch.randn_like = before
