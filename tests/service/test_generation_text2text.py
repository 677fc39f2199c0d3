"""An encoder-decoder behind the generation service: the prompt is the source, the text is what PyTorch
writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.generation.v1.generation_service_pb2_grpc import GenerationServiceStub
from aimass_exporters.testing import cached_export, tiny_tokenizer
from aimass_generation.__main__ import PLAN
from aimass_serving.testing import running_service
from transformers import BartConfig, BartForConditionalGeneration, GenerationConfig

_IDS = {"pad_token_id": 0, "eos_token_id": 2}
SOURCES = ("the river ran past the old mill", "numbers such as 1, 2, 3", "lamp")


def _bart() -> Any:
    torch.manual_seed(7)
    layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4}
    layers |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96}
    sizes = {"vocab_size": 512, "d_model": 64, "max_position_embeddings": 128}
    config = BartConfig(**layers, **sizes, **_IDS, init_std=0.2, decoder_start_token_id=2, bos_token_id=1)
    config.forced_eos_token_id = None
    model: Any = BartForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig(decoder_start_token_id=2, **_IDS)
    return model


@pytest.fixture(scope="module")
def bart() -> Any:
    return _bart()


@pytest.fixture(scope="module")
def store(bart: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bart")
    bart.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return cached_export(folder, name="tiny-bart")


async def test_the_service_writes_what_generate_writes(bart: Any, store: Path) -> None:
    tokenizer = tiny_tokenizer()
    async with running_service(PLAN, store) as service, grpc.aio.insecure_channel(service.address) as channel:
        stub: Any = GenerationServiceStub(channel)
        for source in SOURCES:
            request = pb.CompleteRequest(model="tiny-bart")
            request.text = source
            request.stopping.max_new_tokens = 12
            answer = await stub.Complete(request)
            ids = tokenizer(source, return_tensors="pt").input_ids
            with torch.inference_mode():
                expected = bart.generate(ids, max_new_tokens=12)[0, 1:].tolist()
            assert answer.text == tokenizer.decode([i for i in expected if i != 2])
            assert answer.finish.usage.input_tokens == ids.shape[1]


async def test_a_source_that_is_too_long_is_refused_by_name(store: Path) -> None:
    async with running_service(PLAN, store) as service, grpc.aio.insecure_channel(service.address) as channel:
        stub: Any = GenerationServiceStub(channel)
        request = pb.CompleteRequest(model="tiny-bart")
        request.text = "1 " * 200
        request.stopping.max_new_tokens = 4
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Complete(request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
