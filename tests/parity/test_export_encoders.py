"""Exported encoders against PyTorch on the same weights: padded batches against one text at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from aimass.model.v1.manifest_pb2 import POOLING_MEAN
from aimass_encoder.pooling import Pooling, l2_normalize, pool
from aimass_exporters.graphs.cuda_support import operators_without_kernel
from aimass_exporters.testing import cached_export
from aimass_serving.bundle import Bundle
from aimass_serving.session import Device, SessionConfig, open_session
from aimass_serving.store import open_store

TEXTS = (
    "A man is playing the guitar.",
    "Someone plays a musical instrument on a stage in front of a large and rather quiet audience.",
    "x",
    "Überraschung 🙂 日本語",
)


def _bundle(store: Path) -> Bundle:
    models = open_store(str(store))
    [ref] = models.list()
    return models.open(ref)


def _hidden(bundle: Bundle, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    session = open_session(bundle.graph("encoder"), SessionConfig(device=Device.CPU, allow_spinning=False))
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return session.run({i.name: feeds[i.name] for i in session.inputs})["last_hidden_state"]


def _padded(texts: list[list[int]], pad: int) -> tuple[np.ndarray, np.ndarray]:
    longest = max(map(len, texts))
    ids = np.array([t + [pad] * (longest - len(t)) for t in texts], np.int64)
    return ids, np.array([[1] * len(t) + [0] * (longest - len(t)) for t in texts], np.int64)


def _vectors(bundle: Bundle, texts: list[list[int]]) -> np.ndarray:
    ids, mask = _padded(texts, bundle.manifest.tokenizer.pad_token_id)
    return l2_normalize(pool(_hidden(bundle, ids, mask), mask, Pooling.MEAN))


def test_minilm_vectors_agree_with_pytorch(minilm_store: Path, minilm_model: Any) -> None:
    model, tokenizer = minilm_model
    texts = [tokenizer.encode(text).ids for text in TEXTS]
    got = _vectors(_bundle(minilm_store), texts)
    with torch.no_grad():
        hidden = [model(torch.tensor([ids])).last_hidden_state[0].mean(0) for ids in texts]
    expected = torch.nn.functional.normalize(torch.stack(hidden)).numpy()
    assert (got * expected).sum(1).min() >= 0.99999
    assert np.abs(got - expected).max() <= 1e-5


def test_minilm_is_described_as_sentence_transformers_uses_it(minilm_store: Path) -> None:
    manifest = _bundle(minilm_store).manifest
    spec = manifest.encoder
    assert (spec.pooling, spec.normalize, spec.max_tokens, spec.hidden_size) == (POOLING_MEAN, True, 256, 384)
    assert (manifest.family, manifest.licence) == ("bert", "Apache-2.0")


def test_attention_norms_and_gelu_are_fused(minilm_store: Path) -> None:
    model = onnx.load(_bundle(minilm_store).graph("encoder"), load_external_data=False)
    operators = [node.op_type for node in model.graph.node]
    assert [operators.count(o) for o in ("Attention", "Sum", "LayerNormalization", "Gelu")] == [6, 12, 13, 6]
    assert not {"Softmax", "SkipLayerNormalization", "MultiHeadAttention", "Erf"}.intersection(operators)


def test_int8_minilm_keeps_vectors_and_neighbours(minilm_store: Path) -> None:
    bundle = _bundle(cached_export("all-minilm-l6-v2", name="minilm-int8", precision="int8"))
    measures = {m.name: m.value for m in bundle.manifest.parity.measures}
    assert measures["cosine_min"] >= 0.995
    assert measures["cosine_mean"] >= 0.998
    assert measures["neighbour_overlap_top10"] >= 0.94
    operators = [n.op_type for n in onnx.load(bundle.graph("encoder"), load_external_data=False).graph.node]
    assert operators.count("MatMulIntegerToFloat") == 36
    assert 1 <= operators.count("MatMul") <= 6  # channels that stay float, at the second half of a layer
    assert not {"Gemm", "MatMulNBits", "Softmax"}.intersection(operators)
    size, full_size = (b.file("encoder.onnx.data").stat().st_size for b in (bundle, _bundle(minilm_store)))
    assert size < 0.7 * full_size  # the table of word vectors stays float32


def test_int8_vectors_do_not_depend_on_the_batch() -> None:
    bundle = _bundle(cached_export("all-minilm-l6-v2", name="minilm-int8", precision="int8"))
    texts = [list(range(1000, 1000 + n)) for n in (3, 12, 7)]
    together = _vectors(bundle, texts)
    alone = np.concatenate([_vectors(bundle, [ids]) for ids in texts])
    assert np.abs(together - alone).max() <= 1e-5


@pytest.mark.parametrize("precision", ["fp16"])
def test_a_half_precision_encoder_has_cuda_kernels_for_every_node(precision: str) -> None:
    bundle = _bundle(cached_export("all-minilm-l6-v2", name=f"minilm-{precision}", precision=precision))
    model = onnx.load(bundle.graph("encoder"), load_external_data=False)
    assert operators_without_kernel(model, dtype="float16") == []
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_golden_vectors_are_what_the_graph_gives(minilm_store: Path) -> None:
    bundle = _bundle(minilm_store)
    golden = bundle.golden()
    hidden = _hidden(bundle, golden["input_ids"], golden["attention_mask"])
    vectors = l2_normalize(pool(hidden, golden["attention_mask"], Pooling.MEAN))
    assert np.abs(vectors - golden["vectors"]).max() <= golden["tolerance"]
