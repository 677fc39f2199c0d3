"""Our contenders of the embedding benchmark: the service over gRPC, and a plain loop on the same graph.

Text in, normalised float32 vectors out: tokenisation is part of it for everybody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from bench.measurement import Outcome
from bench.service import ServiceProcess
from bench.text_sets import CALLS_IN_FLIGHT, TextSets, Vectors, in_calls


class Served:
    """Our service in its own process. Calls of 32 texts, 4 in flight: a client's batch job."""

    def __init__(self, *, store: str, model: str, texts: Mapping[str, Any]) -> None:
        from aimass import EmbeddingClient

        self._model, self._texts = model, TextSets(**texts)
        self._service = ServiceProcess("encoder", store=store, model=model)
        self._client = EmbeddingClient(self._service.address)
        self._pool = ThreadPoolExecutor(CALLS_IN_FLIGHT)

    def run(self, scenario: str) -> Outcome:
        return self._texts.timed(scenario, self._encode)

    def _encode(self, texts: Sequence[str]) -> Vectors:
        return np.concatenate(list(self._pool.map(self._embed, in_calls(texts))))

    def _embed(self, texts: Sequence[str]) -> Vectors:
        return self._client.embed(texts, model=self._model).require_all()

    def close(self) -> None:
        self._pool.shutdown()
        self._client.close()
        self._service.close()


class OfflineLoop:
    """The graph that is served, in a plain ONNX Runtime loop over batches of texts sorted by length."""

    def __init__(self, *, bundle: str, texts: Mapping[str, Any]) -> None:
        from tokenizers import Tokenizer

        self._texts, self._graph = TextSets(**texts), str(Path(bundle) / "encoder.onnx")
        self._tokenizer = Tokenizer.from_file(str(Path(bundle) / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(256)
        self._sessions: dict[int, Any] = {}

    def run(self, scenario: str, *, num_threads: int, batch_size: int) -> Outcome:
        session = self._session(num_threads)

        def encode(texts: Sequence[str]) -> Vectors:
            ids = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
            return by_length(ids, batch_size, lambda batch: _run(session, batch))

        return self._texts.timed(scenario, encode)

    def _session(self, num_threads: int) -> Any:
        import onnxruntime as ort

        if num_threads not in self._sessions:
            options = ort.SessionOptions()
            options.intra_op_num_threads = num_threads
            self._sessions[num_threads] = ort.InferenceSession(
                self._graph, options, providers=["CPUExecutionProvider"]
            )
        return self._sessions[num_threads]

    def close(self) -> None:
        pass


def by_length(
    ids: Sequence[Sequence[int]], batch_size: int, run: Callable[[Sequence[Sequence[int]]], Vectors]
) -> Vectors:
    """Run batches of texts alike in length; return the vectors [texts, dimensions] in the given order."""
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    sorted_vectors = np.concatenate([run([ids[index] for index in batch]) for batch in batches])
    vectors = np.empty_like(sorted_vectors)
    vectors[order] = sorted_vectors
    return vectors


def _run(session: Any, batch: Sequence[Sequence[int]]) -> Vectors:
    lengths = [len(row) for row in batch]
    ids = np.zeros((len(batch), max(lengths)), np.int64)
    for row, tokens in zip(ids, batch, strict=True):
        row[: len(tokens)] = tokens
    mask = (np.arange(ids.shape[1]) < np.array(lengths)[:, None]).astype(np.int64)
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    wanted = {value.name: feeds[value.name] for value in session.get_inputs()}
    return mean_pooled(session.run(["last_hidden_state"], wanted)[0], lengths)


def mean_pooled(hidden: Vectors, lengths: Sequence[int]) -> Vectors:
    """Return the mean over the tokens of each text [batch, dimensions], of length 1."""
    mask = np.arange(hidden.shape[1]) < np.array(lengths)[:, None]
    sums = np.einsum("bsh,bs->bh", hidden, mask.astype(np.float32))
    return np.asarray(sums / np.linalg.norm(sums, axis=1, keepdims=True), np.float32)
