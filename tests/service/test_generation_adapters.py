"""Requests that choose an adapter by its name, over a real server: the texts of PyTorch with it merged."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aimass
import grpc
import pytest
import pytest_asyncio
import torch
from aimass.cli import app
from aimass.errors import AdapterNotFound, InvalidRequest, error_of
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.generation.v1.generation_service_pb2_grpc import GenerationServiceStub
from aimass_decoding.config import EngineConfig
from aimass_exporters.sources.lora_adapter import merged, read_adapter
from aimass_exporters.testing import cached_export, write_adapter
from aimass_generation.__main__ import PLAN
from aimass_generation.request import TextPrompt
from aimass_serving.lifecycle import RunningService
from aimass_serving.testing import recorded_telemetry, running_service
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

if TYPE_CHECKING:
    from aimass.generation.v1.generation_service_pb2_grpc import GenerationServiceAsyncStub

MODEL, NUM_TOKENS = "adapted", 12
PROMPT = "the river ran past the old mill and under the stone bridge"
NAMES = ("", "tone", "terse")
METHOD = "aimass.generation.v1.GenerationService/Complete"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def model(tiny_llama_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_llama_folder, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def folders(model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    scratch = tmp_path_factory.mktemp("adapters")
    targets = {"tone": ("q_proj", "v_proj"), "terse": ("o_proj", "up_proj", "v_proj")}
    return {
        name: write_adapter(model, scratch / name, targets=kinds, seed=seed)
        for seed, (name, kinds) in enumerate(targets.items())
    }


@pytest.fixture(scope="module")
def store(tiny_llama_folder: Path, folders: dict[str, Path]) -> Path:
    return cached_export(tiny_llama_folder, name=MODEL, adapters=list(folders.items()))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(store: Path) -> AsyncIterator[RunningService[Any]]:
    async with running_service(PLAN, store, extra=[EngineConfig(max_prefill_tokens_per_step=8)]) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def stub(service: RunningService[Any]) -> AsyncIterator[GenerationServiceAsyncStub]:
    async with grpc.aio.insecure_channel(service.address) as channel:
        yield GenerationServiceStub(channel)


async def complete(stub: GenerationServiceAsyncStub, **fields: Any) -> pb.CompleteResponse:
    stopping = {"max_new_tokens": NUM_TOKENS, "ignore_eos": True}
    asked = {"model": MODEL, "text": PROMPT, "stopping": stopping, "output": {"token_ids": True}} | fields
    return await stub.Complete(pb.CompleteRequest(**asked), timeout=120)


def expected(model: Any, prompt_ids: list[int], folder: Path | None, **options: Any) -> list[int]:
    """Return what transformers writes with an adapter merged, or without one."""
    with nullcontext() if folder is None else merged(model, read_adapter(folder)):
        given = {"attention_mask": torch.ones(1, len(prompt_ids), dtype=torch.long), "eos_token_id": None}
        given |= {"max_new_tokens": NUM_TOKENS, "do_sample": False} | options
        written = model.generate(torch.tensor([prompt_ids]), **given)
    return [int(token) for token in written[0, len(prompt_ids) :]]


async def test_adapters_and_the_base_are_served_side_by_side(
    service: RunningService[Any],
    stub: GenerationServiceAsyncStub,
    model: Any,
    folders: dict[str, Path],
) -> None:
    texts = [f"{start} {PROMPT}" for start in ("morning", "a small model", "Anna")]
    tokenized = [await service.registry.get(MODEL).engine.tokenize(TextPrompt(text)) for text in texts]
    asked = [(text, list(ids), name) for text, ids in zip(texts, tokenized, strict=True) for name in NAMES]
    answers = await asyncio.gather(*(complete(stub, text=text, adapter=name) for text, _, name in asked))
    for (_, ids, name), answer in zip(asked, answers, strict=True):
        assert list(answer.token_ids) == expected(model, ids, folders.get(name))
        assert answer.prompt_info.adapter == name
    assert len({tuple(answer.token_ids) for answer in answers}) == len(asked)


async def test_a_prompt_is_reused_within_an_adapter_only(stub: GenerationServiceAsyncStub) -> None:
    prompt = "every evening the keeper climbed the stairs and lit the lamp before the boats came home"
    first = [await complete(stub, text=prompt, adapter=name) for name in NAMES]
    again = [await complete(stub, text=prompt, adapter=name) for name in NAMES]
    assert [answer.finish.usage.cached_input_tokens for answer in first] == [0, 0, 0]
    assert all(answer.finish.usage.cached_input_tokens > 8 for answer in again)
    assert [answer.text for answer in again] == [answer.text for answer in first]


async def test_a_search_with_beams_has_its_adapter(
    service: RunningService[Any], stub: GenerationServiceAsyncStub, model: Any, folders: dict[str, Path]
) -> None:
    ids = list(await service.registry.get(MODEL).engine.tokenize(TextPrompt(PROMPT)))
    answers = await asyncio.gather(*(complete(stub, adapter=name, beams={"num_beams": 3}) for name in NAMES))
    for name, answer in zip(NAMES, answers, strict=True):
        assert list(answer.token_ids) == expected(model, ids, folders.get(name), num_beams=3)


async def test_an_unknown_adapter_is_not_found_and_told_which_there_are(
    stub: GenerationServiceAsyncStub,
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await complete(stub, adapter="tones")
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    error = error_of(raised.value, address="")
    assert isinstance(error, AdapterNotFound)
    assert error.message == "model 'adapted' has no adapter 'tones'; available: terse, tone"


async def test_a_model_without_adapters_refuses_the_field(tiny_llama_store: Path) -> None:
    async with (
        running_service(PLAN, tiny_llama_store) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await complete(GenerationServiceStub(channel), model="tiny-llama", adapter="tone")
    error = error_of(raised.value, address="")
    assert isinstance(error, InvalidRequest)
    assert [(v.field, v.description) for v in error.violations] == [
        ("adapter", "expected none: tiny-llama has no adapters, got 'tone'")
    ]


async def test_the_model_service_lists_the_adapters(service: RunningService[Any]) -> None:
    def ask() -> aimass.Model:
        with aimass.ModelClient(service.address) as client:
            [listed] = client.list()
            assert client.get(MODEL) == listed
            return listed

    listed = await asyncio.to_thread(ask)
    assert [adapter.name for adapter in listed.adapters] == ["tone", "terse"]
    tone = listed.adapters[0]
    assert (tone.rank, tone.targets, tone.licence) == (4, ("q_proj", "v_proj"), "unknown")
    assert [measure.name for measure in tone.parity] == ["max_abs_diff_logits", "top1_agreement_passages"]


async def test_trace_and_log_line_carry_the_adapter(
    service: RunningService[Any],
    stub: GenerationServiceAsyncStub,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="aimass.access")
    with recorded_telemetry() as recording:
        await complete(stub, adapter="tone")
        await complete(stub)
        async with asyncio.timeout(10):
            while len(spans := recording.named(METHOD)) < 2:  # noqa: ASYNC110 - spans end by themselves
                await asyncio.sleep(0.01)
    lines: list[dict[str, Any]] = [r.fields for r in caplog.records if r.name == "aimass.access"]  # type: ignore[attr-defined] # set by the log layer
    assert [line.get("adapter") for line in lines] == ["tone", None]
    assert [dict(span.attributes or {}).get("aimass.adapter") for span in spans] == ["tone", None]


async def test_the_command_line_chooses_an_adapter(
    service: RunningService[Any], stub: GenerationServiceAsyncStub
) -> None:
    arguments = ["generate", PROMPT, "--address", service.address, "--model", MODEL, "--ignore-eos"]
    arguments += ["--max-new-tokens", str(NUM_TOKENS), "--adapter", "terse"]
    written = await asyncio.to_thread(CliRunner().invoke, app, [*arguments, "--json"])
    answer = await complete(stub, adapter="terse")
    assert written.exit_code == 0, written.output
    assert json.loads(written.stdout)["text"] == answer.text
    assert json.loads(written.stdout)["adapter"] == "terse"
    refused = await asyncio.to_thread(CliRunner().invoke, app, [*arguments[:-1], "nobody"])
    assert refused.exit_code == 1
    assert "available: terse, tone" in refused.stderr
