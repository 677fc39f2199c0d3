"""The contenders of the embedding benchmark: the same texts, the same weights, normalised float32 vectors.

Scenario `bulk` hands all texts over at once; `single` embeds the first of them one by one.
Text in, vectors out: tokenisation is part of it for everybody.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.measurement import Outcome
from bench.service import ServiceProcess

BULK, SINGLE = "bulk", "single"
SCENARIOS = (BULK, SINGLE)
NUM_SINGLE = 32
TEXTS_A_CALL = 32
CALLS_IN_FLIGHT = 4
BATCH_SIZES = (16, 32)


class Served:
    """Our service in its own process. `bulk` is calls of 32 texts, 4 in flight: a client's batch job."""

    def __init__(self, *, store: str, model: str, texts: Sequence[str], vectors_file: str) -> None:
        from aimass import EmbeddingClient

        self._model, self._texts, self._vectors_file = model, list(texts), Path(vectors_file)
        self._service = ServiceProcess("encoder", store=store, model=model)
        self._client = EmbeddingClient(self._service.address)

    def run(self, scenario: str) -> Outcome:
        is_bulk = scenario == BULK
        texts, a_call = (self._texts, TEXTS_A_CALL) if is_bulk else (self._texts[:NUM_SINGLE], 1)
        calls = [texts[i : i + a_call] for i in range(0, len(texts), a_call)]
        with ThreadPoolExecutor(CALLS_IN_FLIGHT if is_bulk else 1) as pool:
            start = time.perf_counter()
            vectors = np.concatenate(list(pool.map(self._embed, calls)))  # [texts, dimensions]
            seconds = time.perf_counter() - start
        return _kept(vectors, scenario, self._vectors_file, seconds)

    def _embed(self, texts: list[str]) -> NDArray[np.float32]:
        return self._client.embed(texts, model=self._model).require_all()

    def close(self) -> None:
        self._client.close()
        self._service.close()


class SentenceTransformers:
    """`SentenceTransformer.encode` on PyTorch, which sorts by length and batches by itself."""

    def __init__(
        self, *, folder: str, texts: Sequence[str], vectors_file: str, batch_size: int, num_threads: int
    ) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(num_threads)
        self._texts, self._batch_size, self._vectors_file = list(texts), batch_size, Path(vectors_file)
        self._model: Any = SentenceTransformer(folder, device="cpu", local_files_only=True)

    def run(self, scenario: str) -> Outcome:
        start = time.perf_counter()
        if scenario == BULK:
            vectors = self._encode(self._texts)
        else:
            vectors = np.concatenate([self._encode([text]) for text in self._texts[:NUM_SINGLE]])
        return _kept(vectors, scenario, self._vectors_file, time.perf_counter() - start)

    def _encode(self, texts: list[str]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = self._model.encode(
            texts, batch_size=self._batch_size, normalize_embeddings=True, show_progress_bar=False
        )
        return vectors

    def close(self) -> None:
        pass


def _kept(vectors: NDArray[np.float32], scenario: str, file: Path, seconds: float) -> Outcome:
    """Return the outcome, and leave the vectors of `bulk` where the parent compares them."""
    if scenario == BULK:
        np.save(file, vectors)
    return Outcome(len(vectors), seconds)
