"""The peers of the embedding benchmark: the same weights, the same texts, tokenisation included.

Threads and batch size may change from run to run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.embedding_runners import by_length, mean_pooled
from bench.measurement import Outcome
from bench.text_sets import TextSets, Vectors


class SentenceTransformers:
    """`SentenceTransformer.encode` on PyTorch, which sorts by length and batches by itself."""

    def __init__(self, *, folder: str, texts: Mapping[str, Any]) -> None:
        from sentence_transformers import SentenceTransformer

        self._texts = TextSets(**texts)
        self._model: Any = SentenceTransformer(folder, device="cpu", local_files_only=True)

    def run(self, scenario: str, *, num_threads: int, batch_size: int) -> Outcome:
        import torch

        torch.set_num_threads(num_threads)

        def encode(texts: Sequence[str]) -> Vectors:
            vectors: Vectors = self._model.encode(
                list(texts), batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False
            )
            return vectors

        return self._texts.timed(scenario, encode)

    def close(self) -> None:
        pass


class CTranslate2:
    """CTranslate2's encoder over batches of texts sorted by length; `compute_type` is `float32` or `int8`."""

    def __init__(self, *, folder: str, tokenizer: str, compute_type: str, texts: Mapping[str, Any]) -> None:
        from tokenizers import Tokenizer

        self._folder, self._compute_type, self._texts = folder, compute_type, TextSets(**texts)
        self._tokenizer = Tokenizer.from_file(tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(256)
        self._encoders: dict[int, Any] = {}

    def run(self, scenario: str, *, num_threads: int, batch_size: int) -> Outcome:
        encoder = self._encoder(num_threads)

        def batch_vectors(batch: Sequence[Sequence[int]]) -> Vectors:
            output = encoder.forward_batch([list(ids) for ids in batch])
            return mean_pooled(np.array(output.last_hidden_state), [len(ids) for ids in batch])

        def encode(texts: Sequence[str]) -> Vectors:
            ids = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
            return by_length(ids, batch_size, batch_vectors)

        return self._texts.timed(scenario, encode)

    def _encoder(self, num_threads: int) -> Any:
        import ctranslate2

        if num_threads not in self._encoders:
            self._encoders[num_threads] = ctranslate2.Encoder(
                self._folder,
                device="cpu",
                compute_type=self._compute_type,
                inter_threads=1,
                intra_threads=num_threads,
            )
        return self._encoders[num_threads]

    def close(self) -> None:
        pass


class FastEmbed:
    """fastembed's `TextEmbedding` on optimum's plain export, float32. It batches in order of arrival."""

    def __init__(self, *, folder: str, texts: Mapping[str, Any]) -> None:
        from fastembed import TextEmbedding
        from fastembed.common.model_description import ModelSource, PoolingType

        self._texts, self._folder = TextSets(**texts), folder
        TextEmbedding.add_custom_model(
            model="bench/minilm",
            pooling=PoolingType.MEAN,
            normalization=True,
            sources=ModelSource(hf="bench/minilm"),
            dim=384,
            model_file="model.onnx",
        )
        self._models: dict[int, Any] = {}

    def run(self, scenario: str, *, num_threads: int, batch_size: int) -> Outcome:
        from fastembed import TextEmbedding

        if num_threads not in self._models:
            model: Any = TextEmbedding("bench/minilm", specific_model_path=self._folder, threads=num_threads)
            model.model.tokenizer.enable_truncation(256)  # it would cut at 128, and do half of the work
            self._models[num_threads] = model
        model = self._models[num_threads]

        def encode(texts: Sequence[str]) -> Vectors:
            return np.asarray(list(model.embed(list(texts), batch_size=batch_size)), np.float32)

        return self._texts.timed(scenario, encode)

    def close(self) -> None:
        pass
