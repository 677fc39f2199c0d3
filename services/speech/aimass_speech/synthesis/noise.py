"""Where a voice's noise comes from: a seed, or nowhere. Knows no voice."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Noise(Protocol):
    """Gives random numbers."""

    def draw(self, *shape: int) -> NDArray[np.float32]:
        """Return independent numbers with mean 0 and spread 1."""


class SeededNoise:
    """The noise of one phrase: the same numbers for the same seed and phrase, whatever was spoken before."""

    def __init__(self, seed: int, phrase: int) -> None:
        self._rng = np.random.default_rng([seed, phrase])

    def draw(self, *shape: int) -> NDArray[np.float32]:
        return self._rng.standard_normal(shape, np.float32)


class NoNoise:
    """Zeros: what is spoken is the most probable."""

    def draw(self, *shape: int) -> NDArray[np.float32]:
        return np.zeros(shape, np.float32)
