"""GPT-2 at its full size, 124M random parameters, served over gRPC: the greedy tokens of PyTorch."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import torch
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.generation.v1.generation_service_pb2_grpc import GenerationServiceStub
from aimass_generation.__main__ import PLAN
from aimass_serving.testing import running_service
from transformers import AutoModelForCausalLM

if TYPE_CHECKING:
    from aimass.generation.v1.generation_service_pb2_grpc import GenerationServiceAsyncStub

PROMPTS = ("the river", "def add(left, right):", "Où est le phare? 灯台 🙂")
NUM_TOKENS = 10

pytestmark = pytest.mark.timeout(3600)


def greedy_by_pytorch(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """Without a cache of its own: the whole sequence anew for each token."""
    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    texts = []
    for prompt in prompts:
        ids = list(prompt)
        with torch.inference_mode():
            for _ in range(NUM_TOKENS):
                ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        texts.append(ids[len(prompt) :])
    return texts


async def test_the_served_tokens_of_gpt2_are_those_of_pytorch(gpt2_store: Path, gpt2_folder: Path) -> None:
    fields: Any = {
        "sampling": {"temperature": 0},
        "stopping": {"max_new_tokens": NUM_TOKENS, "ignore_eos": True},
        "output": {"token_ids": True, "prompt_token_ids": True},
    }
    async with (
        running_service(PLAN, gpt2_store) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        stub: GenerationServiceAsyncStub = GenerationServiceStub(channel)
        requests = [pb.CompleteRequest(model="gpt2-124m", text=prompt, **fields) for prompt in PROMPTS]
        answers = await asyncio.gather(*(stub.Complete(request, timeout=300) for request in requests))
    prompt_ids = [list(answer.prompt_info.prompt_token_ids) for answer in answers]
    served = [list(answer.token_ids) for answer in answers]
    assert served == greedy_by_pytorch(gpt2_folder, prompt_ids)
    assert len({tuple(ids) for ids in served}) == len(PROMPTS)
