"""A voice to export, whatever it comes as: its graphs, what its manifest says, and what it is held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from aimass.model.v1.synthesis_spec_pb2 import SpeechSynthesisSpec
from aimass_speech.synthesis.noise import SeededNoise
from numpy.typing import NDArray

ENGLISH_SENTENCE = "The quick brown fox jumps over the lazy dog, and calls me at seven thirty."


class VoiceModel(Protocol):
    """A voice that can be exported."""

    family: str
    spec: SpeechSynthesisSpec
    golden_text: str
    """A sentence that the bundle is checked with whenever it is loaded."""
    golden_tolerance: float
    """How far the golden audio may be off on another CPU."""

    def write_graphs(self, draft: Path) -> dict[str, Path]:
        """Write the graphs; return them by role."""

    def expected(
        self, ids: NDArray[np.int64], drawn: Sequence[NDArray[np.float32]], *, has_noise: bool
    ) -> NDArray[np.float32]:
        """Return the samples [n] that the model itself gives for ids [m]; its noise is `drawn`, in order."""


@dataclass(slots=True)
class RecordedNoise:
    """The noise of a seed; keeps what it gave."""

    source: SeededNoise
    drawn: list[NDArray[np.float32]] = field(default_factory=list)

    def draw(self, *shape: int) -> NDArray[np.float32]:
        """Return the next numbers, and remember them."""
        self.drawn.append(self.source.draw(*shape))
        return self.drawn[-1]
