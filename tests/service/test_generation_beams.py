"""Beam searches over a real server: the texts of transformers' `generate`, by request and by a model's own
configuration.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import torch
from aimass.errors import error_of
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.generation.v1.generation_service_pb2_grpc import GenerationServiceStub
from aimass_decoding.config import EngineConfig
from aimass_exporters.testing import cached_export, tiny_tokenizer
from aimass_generation.__main__ import PLAN
from aimass_serving.testing import running_service
from transformers import BartConfig, BartForConditionalGeneration, GenerationConfig

if TYPE_CHECKING:
    from aimass.generation.v1.generation_service_pb2_grpc import GenerationServiceAsyncStub

SOURCES = ("the river ran past the old mill", "numbers such as 1, 2, 3", "lamp", "every evening")
PROMPT = "a small model reads the words"
# What a model that summarises asks for: bart-large-cnn's configuration, smaller.
OWN = {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "no_repeat_ngram_size": 2}
OWN |= {"min_length": 6, "max_length": 14, "forced_eos_token_id": 2, "forced_bos_token_id": 1}


@pytest.fixture(scope="module")
def bart() -> Any:
    torch.manual_seed(7)
    layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4}
    layers |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96}
    ids = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "bos_token_id": 1}
    config = BartConfig(
        **layers, **ids, vocab_size=512, d_model=64, max_position_embeddings=128, init_std=0.2
    )
    model: Any = BartForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.final_logits_bias[:, 2] = 4.0
    model.generation_config = GenerationConfig(**ids, **OWN)
    return model


@pytest.fixture(scope="module")
def bart_store(bart: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bart")
    bart.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return cached_export(folder, name="searching-bart")


def written(model: Any, text: str, *, num_begun: int, **options: Any) -> list[int]:
    """Return what transformers writes after what it began with, without the token that ends it."""
    ids = tiny_tokenizer()(text, return_tensors="pt").input_ids
    with torch.inference_mode():
        output = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0].tolist()
    rest: list[int] = output[num_begun or ids.shape[1] :]
    return rest[: rest.index(2)] if 2 in rest else rest


async def complete(stub: Any, model: str, text: str, **fields: Any) -> pb.CompleteResponse:
    asked: dict[str, Any] = {"output": {"token_ids": True}} | fields
    request = pb.CompleteRequest(model=model, text=text, **asked)
    answer: pb.CompleteResponse = await stub.Complete(request, timeout=60)
    return answer


async def test_a_model_is_searched_as_its_own_configuration_says(bart: Any, bart_store: Path) -> None:
    async with (
        running_service(PLAN, bart_store) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        stub: GenerationServiceAsyncStub = GenerationServiceStub(channel)
        answers = await asyncio.gather(*(complete(stub, "searching-bart", text) for text in SOURCES))
        expected = [written(bart, text, num_begun=2) for text in SOURCES]
        assert [list(answer.token_ids) for answer in answers] == expected
        assert len({len(text) for text in expected}) > 1
        assert {answer.finish.reason for answer in answers} == {pb.FINISH_REASON_EOS}
        greedy = await complete(stub, "searching-bart", SOURCES[0], sampling={"temperature": 0.5})
        assert greedy.prompt_info.HasField("seed")  # the model's own search gives way to a draw


async def test_a_request_searches_a_source_its_own_way(bart: Any, bart_store: Path) -> None:
    async with (
        running_service(PLAN, bart_store) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        stub: GenerationServiceAsyncStub = GenerationServiceStub(channel)
        beams = {"num_beams": 3, "length_penalty": 0.5, "early_stopping": False, "no_repeat_ngram_size": 3}
        stopping = {"max_new_tokens": 9, "min_new_tokens": 7}
        for text in SOURCES:
            answer = await complete(stub, "searching-bart", text, beams=beams, stopping=stopping)
            least = {
                "min_length": 2 + stopping["min_new_tokens"],
                "max_length": 2 + stopping["max_new_tokens"],
            }
            assert list(answer.token_ids) == written(bart, text, num_begun=2, **beams, **least)


@pytest.mark.parametrize(
    "beams",
    [
        {"num_beams": 3, "length_penalty": 1.0},
        {"num_beams": 4, "length_penalty": -1.0, "early_stopping": True, "no_repeat_ngram_size": 2},
        {"num_beams": 1, "no_repeat_ngram_size": 1},
    ],
)
async def test_a_decoder_is_searched_and_streams_its_text_in_one_piece(
    beams: dict[str, Any], tiny_llama_store: Path, tiny_llama_model: Any
) -> None:
    config = EngineConfig(max_prefill_tokens_per_step=4)  # so that the prompt comes in chunks
    async with (
        running_service(PLAN, tiny_llama_store, extra=[config]) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        stub: GenerationServiceAsyncStub = GenerationServiceStub(channel)
        fields: dict[str, Any] = {
            "beams": beams,
            "sampling": {"repetition_penalty": 1.3},
            "stopping": {"max_new_tokens": 12, "min_new_tokens": 4},
            "output": {"token_ids": True},
        }
        request = pb.GenerateRequest(model="tiny-llama", text=PROMPT, **fields)
        alone = await complete(stub, "tiny-llama", SOURCES[0], stopping={"max_new_tokens": 24})
        beside = asyncio.create_task(
            complete(stub, "tiny-llama", SOURCES[0], stopping={"max_new_tokens": 24})
        )
        info, delta, finish = [event async for event in stub.Generate(request, timeout=60)]
        options = {"max_new_tokens": 12, "min_new_tokens": 4, "repetition_penalty": 1.3, "do_sample": False}
        expected = written(tiny_llama_model[0], PROMPT, num_begun=0, **options, **beams)
        assert list(delta.delta.token_ids) == expected
        assert info.prompt_info.prompt_tokens == finish.finish.usage.input_tokens > 0
        assert finish.finish.timings.prefill_ms > 0
        assert (await beside).text == alone.text


async def test_searches_that_cannot_be_are_refused_by_field(tiny_llama_store: Path) -> None:
    cases: dict[str, dict[str, Any]] = {
        "beams.num_beams": {"beams": {"num_beams": 17}},
        "beams.length_penalty": {"beams": {"length_penalty": 11}},
        "beams.no_repeat_ngram_size": {"beams": {"no_repeat_ngram_size": -1}},
        "sampling.temperature": {"beams": {"num_beams": 2}, "sampling": {"temperature": 1}},
        "sampling.logit_bias": {"beams": {"num_beams": 2}, "sampling": {"logit_bias": {3: 1}}},
        "num_sequences": {
            "beams": {"num_beams": 2},
            "num_sequences": 2,
            "sampling": {"temperature": 1},
        },
        "output.logprobs": {"beams": {"no_repeat_ngram_size": 2}, "output": {"logprobs": True}},
        "guidance": {"beams": {"num_beams": 2}, "guidance": {"regex": "a"}},
    }
    async with (
        running_service(PLAN, tiny_llama_store, extra=[EngineConfig(max_beams=3)]) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        stub: GenerationServiceAsyncStub = GenerationServiceStub(channel)

        async def refused(**fields: Any) -> list[str]:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Complete(pb.CompleteRequest(model="tiny-llama", text=PROMPT, **fields), timeout=60)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            return [
                violation.field for violation in error_of(caught.value, address=service.address).violations
            ]

        for field, fields in cases.items():
            assert field in await refused(**fields)
        assert await refused(beams={"num_beams": 4}) == ["beams.num_beams"]  # more than the memory holds
