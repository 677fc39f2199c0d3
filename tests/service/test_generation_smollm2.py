"""Acceptance on real weights: what SmolLM2-135M-Instruct says when served is what it says in PyTorch.

The reference comes from transformers' own `generate`. It is cached by everything it depends on, and computed
anew when the cache is cold.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import pytest_asyncio
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.generation.v1.generation_service_pb2_grpc import GenerationServiceStub
from aimass_generation.__main__ import PLAN
from aimass_serving.testing import running_service

if TYPE_CHECKING:
    from aimass.generation.v1.generation_service_pb2_grpc import GenerationServiceAsyncStub

MODEL = "smollm2-135m-instruct"
NUM_TOKENS = 64
NUM_STREAMS = 8
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at",
    "Q: What is 12 times 12?\nA:",
    "The three primary colours are",
    "Dear Sir or Madam,\n\nI am writing to",
    "import numpy as np\n\ndef softmax(x):",
    "In 1969, the first human beings",
    "東京は日本の",
    "La capitale de l'Italie est",
    "🙂 means",
    "A recipe for pancakes:\n1.",
    "To be, or not to be,",
    "The quick brown fox",
    '{"name": "Ada", "year":',
    "Photosynthesis is the process by which",
    "x",
    "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n",
    "The history of the Roman Empire is long. " * 12 + "It began",
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(3600)]


@dataclass(frozen=True, slots=True)
class Reference:
    """What PyTorch makes of one prompt."""

    prompt_ids: list[int]
    greedy_ids: list[int]


@pytest.fixture(scope="module")
def references(request: pytest.FixtureRequest) -> list[Reference]:
    """Greedy continuations by transformers `generate`, end-of-text ignored, one prompt at a time."""
    file = _cache_file()
    if not file.is_file():
        computed = _generate(*request.getfixturevalue("smollm2_model"))
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".draft")
        draft.write_text(json.dumps(computed))
        draft.replace(file)
    return [Reference(*pair) for pair in json.loads(file.read_text())]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stub(smollm2_store: Path) -> AsyncIterator[GenerationServiceAsyncStub]:
    async with (
        running_service(PLAN, smollm2_store) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        yield GenerationServiceStub(channel)


async def test_twenty_prompts_alone_give_the_greedy_tokens_of_pytorch(
    stub: GenerationServiceAsyncStub, references: list[Reference]
) -> None:
    served = [await _served(stub, prompt) for prompt in PROMPTS]
    assert served == references


async def test_twenty_prompts_with_eight_streams_at_once_give_the_greedy_tokens_of_pytorch(
    stub: GenerationServiceAsyncStub, references: list[Reference]
) -> None:
    streams = asyncio.Semaphore(NUM_STREAMS)

    async def one(prompt: str) -> Reference:
        async with streams:
            return await _served(stub, prompt)

    assert list(await asyncio.gather(*map(one, PROMPTS))) == references


async def test_chat_answers_a_plain_question(stub: GenerationServiceAsyncStub) -> None:
    chat: Any = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
    greedy: Any = {"temperature": 0}
    whole = await stub.Complete(pb.CompleteRequest(model=MODEL, chat=chat, sampling=greedy), timeout=300)
    assert whole.text == "The capital of France is Paris."
    assert whole.finish.reason == pb.FINISH_REASON_EOS


async def test_conversation_laid_out_by_the_caller_is_answered_too(stub: GenerationServiceAsyncStub) -> None:
    """Without the system message that the template would add; special tokens in a text are taken as such."""
    text = "<|im_start|>user\nWhat is the capital of Italy?<|im_end|>\n<|im_start|>assistant\n"
    greedy: Any = {"temperature": 0}
    whole = await stub.Complete(pb.CompleteRequest(model=MODEL, text=text, sampling=greedy), timeout=300)
    assert whole.text == "The capital of Italy is Rome."


async def _served(stub: GenerationServiceAsyncStub, prompt: str) -> Reference:
    """Stream one prompt, and check on the way that text and tokens belong together."""
    fields: dict[str, Any] = {
        "sampling": {"temperature": 0, "repetition_penalty": 1},
        "stopping": {"max_new_tokens": NUM_TOKENS, "ignore_eos": True},
        "output": {"token_ids": True, "prompt_token_ids": True},
    }
    call = stub.Generate(pb.GenerateRequest(model=MODEL, text=prompt, **fields), timeout=1800)
    events = [event async for event in call]
    token_ids = [token_id for event in events for token_id in event.delta.token_ids]
    text = await stub.Detokenize(pb.DetokenizeRequest(model=MODEL, token_ids=token_ids))
    assert "".join(event.delta.text for event in events) == text.text
    return Reference(list(events[0].prompt_info.prompt_token_ids), token_ids)


def _generate(model: Any, tokenizer: Any) -> Sequence[tuple[list[int], list[int]]]:
    import torch

    pairs = []
    for prompt in PROMPTS:
        prompt_ids = tokenizer.encode(prompt).ids
        inputs = torch.tensor([prompt_ids])
        model.generation_config.eos_token_id = None
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            do_sample=False,
            max_new_tokens=NUM_TOKENS,
            pad_token_id=0,
        )
        pairs.append((prompt_ids, output[0, len(prompt_ids) :].tolist()))
    return pairs


def _cache_file() -> Path:
    """Return the file named after the weights, the prompts, and the code that computes the reference."""
    from aimass_exporters.bundles.manifest_writer import toolchain
    from aimass_exporters.progress import SilentProgress
    from aimass_exporters.sources.cache import cache_folder
    from aimass_exporters.sources.source import resolve_source

    weights = resolve_source(MODEL, SilentProgress()).weights_id()
    parts = (weights, json.dumps(toolchain(), sort_keys=True), json.dumps(PROMPTS), str(NUM_TOKENS))
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    return cache_folder() / "references" / f"{MODEL}-greedy-{digest}.json"
