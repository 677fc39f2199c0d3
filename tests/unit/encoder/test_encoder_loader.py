"""From a bundle to an engine: what the manifest must say, and golden vectors that must come out."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from aimass.model.v1.manifest_pb2 import POOLING_CLS, POOLING_MEAN, POOLING_UNSPECIFIED, ModelManifest
from aimass_encoder.batcher import BatchLimits
from aimass_encoder.config import EncoderConfig
from aimass_encoder.engine import EncoderEngine
from aimass_encoder.loader import engine_on
from aimass_encoder.pooling import Pooling, l2_normalize, pool
from aimass_encoder.request import EmbeddedText, EmbedRequest
from aimass_encoder.runner import HIDDEN, EncoderRunner
from aimass_encoder.testing import HIDDEN_SIZE, MAX_TOKENS, FakeEncoderGraph, fake_session
from aimass_encoder.text_bundle import warm_up_batches
from aimass_serving.bundle import Bundle, read_bundle, read_manifest
from aimass_serving.compute import ComputePermit
from aimass_serving.errors import BadBundle
from aimass_serving.service import LoadContext
from aimass_serving.session import CUDA_PROVIDER, SessionConfig, TensorInfo
from aimass_serving.testing import FakeSession, write_bundle, write_manifest
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

CONTEXT = LoadContext(SessionConfig(), ComputePermit())


def archive(**arrays: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def golden(*, error: float = 0.0) -> bytes:
    """Return golden vectors of the fake graph, off by `error`."""
    runner = EncoderRunner(fake_session(FakeEncoderGraph()), pad_token_id=0)
    batch = runner.pad([np.array([5, 6, 7]), np.array([8])], length=4)
    vectors = l2_normalize(pool(runner.run(batch)[HIDDEN], batch.mask, Pooling.MEAN)) + np.float32(error)
    return archive(
        input_ids=batch.token_ids, attention_mask=batch.mask, vectors=vectors, tolerance=np.array(1e-4)
    )


def tokenizer_json() -> bytes:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return str(tokenizer.to_str()).encode()


def bundle_in(
    folder: Path,
    *,
    golden_file: bytes | None = None,
    tokenizer: bytes | None = None,
    change: Callable[[ModelManifest], None] = lambda manifest: None,
) -> Bundle:
    files = {"golden.npz": golden_file or golden(), "tokenizer.json": tokenizer or tokenizer_json()}
    path = write_bundle(folder, "fake", files=files)
    manifest = read_manifest(path)
    manifest.encoder.hidden_size, manifest.encoder.max_tokens = HIDDEN_SIZE, MAX_TOKENS
    manifest.encoder.pooling, manifest.encoder.normalize = POOLING_MEAN, True
    manifest.tokenizer.file = "tokenizer.json"
    change(manifest)
    write_manifest(path, manifest)
    return read_bundle(path)


async def test_a_good_bundle_becomes_an_engine_that_answers(tmp_path: Path) -> None:
    engine = engine_on(fake_session(FakeEncoderGraph()), bundle_in(tmp_path), CONTEXT)
    assert isinstance(engine, EncoderEngine)
    reply = await engine.embed(EmbedRequest(["a b"]))
    engine.close()
    assert isinstance(reply.results[0], EmbeddedText)
    assert (engine.limits.dimensions, engine.limits.max_tokens) == (HIDDEN_SIZE, MAX_TOKENS)


def test_golden_vectors_that_differ_stop_the_load(tmp_path: Path) -> None:
    with pytest.raises(BadBundle, match=r"golden vectors differ by 0\.01"):
        engine_on(
            fake_session(FakeEncoderGraph()), bundle_in(tmp_path, golden_file=golden(error=0.01)), CONTEXT
        )


def test_golden_vectors_of_another_pooling_stop_the_load(tmp_path: Path) -> None:
    def pool_by_cls(manifest: ModelManifest) -> None:
        manifest.encoder.pooling = POOLING_CLS

    with pytest.raises(BadBundle, match="golden vectors differ"):
        engine_on(fake_session(FakeEncoderGraph()), bundle_in(tmp_path, change=pool_by_cls), CONTEXT)


def test_a_graph_that_gives_nan_stops_the_load(tmp_path: Path) -> None:
    graph = FakeEncoderGraph()
    broken = FakeSession(
        lambda feeds: {HIDDEN: graph(feeds)[HIDDEN] * np.float32(np.nan)},
        inputs=fake_session(graph).inputs,
        outputs=fake_session(graph).outputs,
    )
    with pytest.raises(BadBundle, match="differ by nan"):
        engine_on(broken, bundle_in(tmp_path), CONTEXT)


def test_golden_inputs_without_vectors_stop_the_load(tmp_path: Path) -> None:
    file = archive(input_ids=np.ones((1, 2)), attention_mask=np.ones((1, 2)))
    with pytest.raises(BadBundle, match="no array named 'vectors'"):
        engine_on(fake_session(FakeEncoderGraph()), bundle_in(tmp_path, golden_file=file), CONTEXT)


def test_a_manifest_that_does_not_say_how_to_pool_stops_the_load(tmp_path: Path) -> None:
    def forget_pooling(manifest: ModelManifest) -> None:
        manifest.encoder.pooling = POOLING_UNSPECIFIED

    with pytest.raises(BadBundle, match="pooling"):
        engine_on(fake_session(FakeEncoderGraph()), bundle_in(tmp_path, change=forget_pooling), CONTEXT)


def test_a_broken_tokeniser_stops_the_load(tmp_path: Path) -> None:
    with pytest.raises(BadBundle, match=r"tokenizer\.json is not a tokeniser"):
        engine_on(fake_session(FakeEncoderGraph()), bundle_in(tmp_path, tokenizer=b"{}"), CONTEXT)


@pytest.mark.parametrize(
    ("inputs", "outputs"), [(["input_ids"], [HIDDEN]), (["input_ids", "attention_mask"], ["x"])]
)
def test_a_graph_of_another_shape_stops_the_load(
    tmp_path: Path, inputs: list[str], outputs: list[str]
) -> None:
    def infos(names: list[str]) -> list[TensorInfo]:
        return [TensorInfo(name, np.dtype(np.int64), ("batch", "seq")) for name in names]

    session = FakeSession(FakeEncoderGraph(), inputs=infos(inputs), outputs=infos(outputs))
    with pytest.raises(BadBundle, match="expected a graph"):
        engine_on(session, bundle_in(tmp_path), CONTEXT)


def test_warm_up_on_the_cpu_is_two_full_batches_in_pieces() -> None:
    limits = BatchLimits(max_batch_tokens=1024, max_batch_rows=256, num_lanes=2)
    assert warm_up_batches(limits, max_tokens=512) == [[(128, 1), (128, 1)], [(1, 512), (1, 512)]]


def test_warm_up_on_cuda_covers_every_padded_length() -> None:
    limits = EncoderConfig(cuda_batch_tokens=512).batch_limits(CUDA_PROVIDER, max_tokens=30)
    assert warm_up_batches(limits, max_tokens=30) == [[(64, 8)], [(32, 16)], [(21, 24)], [(16, 32)]]


def test_the_batch_budget_always_takes_the_longest_text() -> None:
    limits = EncoderConfig(cpu_batch_tokens=16).batch_limits("CPUExecutionProvider", max_tokens=100)
    assert limits.max_batch_tokens == 100


@pytest.mark.parametrize(
    ("vocabulary", "max_batch_tokens"),
    [(100, 1024), (30_522, 268_435_456 // (4 * 30_522)), (1_000_000, 512)],
    ids=["narrow", "BERT's words", "more than fits: the longest text"],
)
def test_a_wide_output_narrows_the_batches(vocabulary: int, max_batch_tokens: int) -> None:
    shape = ("batch", "seq", vocabulary)
    session = FakeSession(
        FakeEncoderGraph(), inputs=[], outputs=[TensorInfo("logits", np.dtype(np.float32), shape)]
    )
    limits = EncoderConfig(cuda_batch_tokens=1024).batch_limits(
        CUDA_PROVIDER,
        max_tokens=512,
        output_bytes_per_token=EncoderRunner(session, pad_token_id=0).output_bytes_per_token,
    )
    assert limits.max_batch_tokens == min(max_batch_tokens, 1024)
