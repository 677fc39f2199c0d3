"""A bundle becomes an engine only when all of it fits; the manifest's defaults become the engine's."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aimass.model.v1.manifest_pb2 import TASK_TEXT_GENERATION, DecoderSpec, GenerationDefaults, TokenizerSpec
from aimass_decoding.testing import FakeDecoder, hashed_logits
from aimass_generation.config import GenerationConfig
from aimass_generation.engine import GenerationEngine
from aimass_generation.loader import engine_on
from aimass_generation.request import ChatMessage, ChatPrompt, GenerationRequest, StoppingOptions, TextPrompt
from aimass_generation.testing import CHAT_TEMPLATE, END, VOCAB_SIZE, byte_tokenizer
from aimass_serving.bundle import Bundle, read_bundle, read_manifest
from aimass_serving.compute import ComputePermit
from aimass_serving.errors import BadBundle, InvalidFields
from aimass_serving.plan import LoadContext
from aimass_serving.session import Session, SessionConfig, TensorInfo
from aimass_serving.testing import FakeSession, write_bundle, write_manifest
from tokenizers import Tokenizer, models

LOGITS = hashed_logits(VOCAB_SIZE)
PROMPT = (1, 2, 3, 4)


def golden(**changed: Any) -> bytes:
    arrays: dict[str, Any] = {
        "prompt_ids": np.array(PROMPT),
        "logits": LOGITS(PROMPT),
        "tolerance": np.float64(0),
    }
    archive = io.BytesIO()
    np.savez(archive, **(arrays | changed))
    return archive.getvalue()


WIDER = Tokenizer(models.WordLevel({"warm up": VOCAB_SIZE}, unk_token="?"))
"""Its only token lies outside the decoder's vocabulary."""

FILES: Mapping[str, bytes] = {
    "tokenizer.json": byte_tokenizer().to_str().encode(),
    "chat_template.jinja": CHAT_TEMPLATE.encode(),
    "golden.npz": golden(),
}


def bundle_of(
    store: Path, files: Mapping[str, bytes] = FILES, *, template: str = "chat_template.jinja"
) -> Bundle:
    """Write and read a bundle of a model with one layer and a context of 64 tokens."""
    folder = write_bundle(store, "m", task=TASK_TEXT_GENERATION, files=files)
    manifest = read_manifest(folder)
    defaults = GenerationDefaults(temperature=0.5, max_new_tokens=7)
    sizes: dict[str, Any] = {
        "num_layers": 1,
        "num_kv_heads": 1,
        "head_dim": 1,
        "vocab_size": VOCAB_SIZE,
        "max_positions": 64,
    }
    spec = DecoderSpec(**sizes, kv_dtype="float", eos_token_ids=[END], defaults=defaults)
    manifest.decoder.CopyFrom(spec)
    manifest.tokenizer.CopyFrom(TokenizerSpec(file="tokenizer.json", chat_template_file=template))
    write_manifest(folder, manifest)
    return read_bundle(folder)


def load(bundle: Bundle, *, draft: Session | None = None) -> GenerationEngine:
    context = LoadContext(SessionConfig(), ComputePermit(), (GenerationConfig(),))
    decoder = FakeDecoder(LOGITS, gives_every_position=draft is not None)
    return engine_on(decoder.session(), bundle, context, draft=draft)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[GenerationEngine]:
    engine = load(bundle_of(tmp_path))
    yield engine
    engine.close()


async def test_loaded_engine_generates_with_the_defaults_of_its_bundle(engine: GenerationEngine) -> None:
    whole = await engine.complete(
        GenerationRequest(TextPrompt("go"), stopping=StoppingOptions(ignore_eos=True))
    )
    assert whole.prompt_info.seed is not None  # the bundle's temperature is above 0
    assert whole.finish.usage.output_tokens == 7
    assert engine.limits.max_tokens == 64


async def test_loaded_engine_lays_out_a_chat_with_the_template_of_its_bundle(
    engine: GenerationEngine,
) -> None:
    chat = ChatPrompt((ChatMessage("user", "hi"),))
    assert byte_tokenizer().decode(list(await engine.tokenize(chat))) == "user:hi"


async def test_model_without_a_template_serves_text_only(tmp_path: Path) -> None:
    engine = load(bundle_of(tmp_path, template=""))
    assert await engine.tokenize(TextPrompt("hi")) == tuple(b"hi")
    with pytest.raises(InvalidFields, match="no chat template"):
        await engine.tokenize(ChatPrompt((ChatMessage("user", "hi"),)))
    engine.close()


async def test_prompts_are_never_cut_or_padded_by_settings_of_the_tokenizer_file(tmp_path: Path) -> None:
    """Files saved during a training run often carry them."""
    tokenizer = byte_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=32)
    engine = load(bundle_of(tmp_path, {**FILES, "tokenizer.json": tokenizer.to_str().encode()}))
    assert await engine.tokenize(TextPrompt("longer than four")) == tuple(b"longer than four")
    engine.close()


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("tokenizer.json", b"{}", "not a tokenizer"),
        ("tokenizer.json", b"\xff\xfe", "not a tokenizer"),
        ("tokenizer.json", WIDER.to_str().encode(), "does not fit its decoder"),
        ("chat_template.jinja", b"{% for %}", "does not compile"),
        ("chat_template.jinja", b"\xff\xfe", "does not compile"),
        ("golden.npz", golden(logits=LOGITS(PROMPT) + 1), "differ by 1"),
        ("golden.npz", golden(logits=np.zeros(3, np.float32)), "shape"),
        ("golden.npz", golden(prompt_ids=np.array([], np.int64)), "golden prompt does not run"),
    ],
)
def test_file_that_does_not_fit_fails_the_load(
    tmp_path: Path, file: str, content: bytes, reason: str
) -> None:
    bundle = bundle_of(tmp_path, {**FILES, file: content})
    with pytest.raises(BadBundle, match=reason):
        load(bundle)


LAST_IDX = TensorInfo("last_idx", np.dtype(np.int64), ("batch", "asked"))


async def test_loaded_engine_asks_a_draft_graph_that_fits(tmp_path: Path) -> None:
    draft = FakeSession(FakeDecoder(LOGITS), inputs=[replace(LAST_IDX, shape=("rows", "n"))])
    engine = load(bundle_of(tmp_path), draft=draft)
    num_runs_of_check = draft.num_runs
    whole = await engine.complete(
        GenerationRequest(TextPrompt("go"), stopping=StoppingOptions(ignore_eos=True))
    )
    assert whole.finish.usage.output_tokens == 7
    assert draft.num_runs > num_runs_of_check == len(PROMPT)
    engine.close()


@pytest.mark.parametrize(
    "inputs",
    [
        pytest.param((), id="an input is missing"),
        pytest.param((LAST_IDX, replace(LAST_IDX, name="adapter")), id="one too many"),
        pytest.param((replace(LAST_IDX, dtype=np.dtype(np.int32)),), id="another element type"),
        pytest.param((replace(LAST_IDX, shape=("batch", 1)),), id="another shape"),
    ],
)
def test_a_draft_graph_of_another_signature_fails_the_load(
    tmp_path: Path, inputs: tuple[TensorInfo, ...]
) -> None:
    with pytest.raises(BadBundle, match="inputs of its draft graph are not the decoder's: "):
        load(bundle_of(tmp_path), draft=FakeSession(FakeDecoder(LOGITS), inputs=inputs))


def test_a_draft_graph_that_does_not_run_fails_the_load(tmp_path: Path) -> None:
    def broken(feeds: Mapping[str, Any]) -> dict[str, Any]:
        raise ValueError("broken")

    with pytest.raises(BadBundle, match="draft graph does not run: broken"):
        load(bundle_of(tmp_path), draft=FakeSession(broken, inputs=[LAST_IDX]))
