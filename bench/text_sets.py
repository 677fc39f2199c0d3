"""What a scenario of the embedding benchmark asks of every contender: a set of texts, handed over at once.

Knows no contender, and needs no more than NumPy: peers in an environment of their own import it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.measurement import Outcome

TEXTS_A_CALL = 32
CALLS_IN_FLIGHT = 4
"""How a client sends the texts of a scenario to a service."""
Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TextSets:
    """The texts of every scenario, and where vectors are left for the parent to compare."""

    sets: Mapping[str, Sequence[str]]
    folder: str
    candidate: str

    def timed(self, scenario: str, encode: Callable[[Sequence[str]], Vectors]) -> Outcome:
        """Run a scenario, keep its vectors [texts, dimensions], and return the outcome."""
        texts = self.sets[scenario]
        start = time.perf_counter()
        vectors = encode(texts)
        seconds = time.perf_counter() - start
        np.save(vectors_file(self.folder, self.candidate, scenario), vectors)
        return Outcome(len(vectors), seconds)


def vectors_file(folder: str, candidate: str, scenario: str) -> Path:
    """Return where a candidate's vectors of a scenario are."""
    return Path(folder) / f"{candidate}-{scenario}.npy".replace(" ", "_")


def in_calls(texts: Sequence[str]) -> list[Sequence[str]]:
    """Return the texts in the calls that a client makes of them."""
    return [texts[i : i + TEXTS_A_CALL] for i in range(0, len(texts), TEXTS_A_CALL)]
