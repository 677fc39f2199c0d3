"""Runs an image classifier's graph on batches of pixels. Must not know files, requests or queues."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from aimass_serving.session import Session
from numpy.typing import NDArray

from aimass_encoder.runner import LOGITS, Outputs

PIXELS = "pixel_values"


@dataclass(frozen=True, slots=True, eq=False)
class ImageRow:
    """One image of a batch."""

    pixels: NDArray[np.uint8]  # [size, size, 3]

    @property
    def num_tokens(self) -> int:
        """Images of one model all cost the same."""
        return 1

    @property
    def identity(self) -> Hashable:
        """Equal for equal pixels."""
        return hashlib.blake2b(self.pixels.tobytes(), digest_size=32).digest()


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """Images as one array."""

    pixels: NDArray[np.float32]  # [batch, 3, size, size], scaled
    mask: NDArray[np.int64]  # [batch, 1], ones

    @property
    def shown(self) -> Outputs:
        """Heads see nothing but the graph's outputs."""
        return {}


class ImageRunner:
    """An image classifier's graph, ready to run. One run at a time."""

    def __init__(self, session: Session, *, mean: Sequence[float], std: Sequence[float]) -> None:
        self._session = session
        self._mean, self._std = np.array(mean, np.float32), np.array(std, np.float32)

    @property
    def execution_provider(self) -> str:
        """ONNX Runtime execution provider that runs the graph."""
        return self._session.execution_provider

    def lay_out(self, rows: Sequence[ImageRow], *, length: int) -> ImageBatch:
        """Scale the pixels and put channels first."""
        stacked = np.stack([row.pixels for row in rows]).astype(np.float32)  # [batch, size, size, 3]
        scaled = ((stacked - self._mean) / self._std).transpose(0, 3, 1, 2)
        return ImageBatch(np.ascontiguousarray(scaled), np.ones((len(rows), length), np.int64))

    def run(self, batch: ImageBatch) -> Outputs:
        """Run the graph once; the output is `logits`, [batch, labels]."""
        return self.run_each([batch])[0]

    def run_each(self, batches: Sequence[ImageBatch]) -> Sequence[Outputs]:
        """Run the graph once for each batch."""
        results = self._session.run_each([{PIXELS: batch.pixels} for batch in batches])
        return [{LOGITS: result[LOGITS]} for result in results]
