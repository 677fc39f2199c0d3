"""Log-probabilities of a prompt over a real server, against PyTorch's; and bundles that cannot give them."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
import torch
from aimass.errors import error_of
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.generation.v1.generation_service_pb2_grpc import GenerationServiceStub
from aimass_decoding.config import EngineConfig
from aimass_generation.__main__ import PLAN
from aimass_serving.testing import running_service

if TYPE_CHECKING:
    from aimass.generation.v1.generation_service_pb2_grpc import GenerationServiceAsyncStub

PROMPT = "every evening the keeper climbed the stairs and lit the lamp before the boats came home again, late"
ECHO = {"prompt_logprobs": True, "prompt_token_ids": True, "logprobs": True, "top_logprobs": 3}


def asked(**fields: Any) -> pb.CompleteRequest:
    stopping = {"max_new_tokens": 6}
    return pb.CompleteRequest(**({"model": "tiny-llama", "text": PROMPT, "stopping": stopping} | fields))


async def test_the_prompt_is_scored_as_pytorch_scores_it_and_the_text_stays(
    tiny_llama_store: Path, tiny_llama_model: Any
) -> None:
    config = EngineConfig(max_prefill_tokens_per_step=8)  # several chunks, the last one not full
    async with (
        running_service(PLAN, tiny_llama_store, extra=[config]) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        stub: GenerationServiceAsyncStub = GenerationServiceStub(channel)
        plain = await stub.Complete(asked())  # leaves its prompt behind for others to share
        sampling = {"temperature": 1.0, "seed": 5}
        echoed, several = await asyncio.gather(
            stub.Complete(asked(output=ECHO)),
            stub.Complete(asked(output=ECHO, sampling=sampling, num_sequences=3)),
        )
    ids = torch.tensor([list(echoed.prompt_info.prompt_token_ids)])
    assert ids.shape[1] % 8 not in (0, 1)
    with torch.inference_mode():
        scores = torch.log_softmax(tiny_llama_model[0](ids).logits[0, :-1].double(), -1).numpy()
    entries = echoed.prompt_info.prompt_logprobs
    assert [entry.token_id for entry in entries] == ids[0, 1:].tolist()
    expected = scores[np.arange(len(scores)), ids[0, 1:].numpy()]
    assert np.abs(np.array([entry.logprob for entry in entries]) - expected).max() <= 1e-4
    best = [[candidate.token_id for candidate in entry.candidates] for entry in entries]
    assert best == np.argsort(-scores, axis=1)[:, :3].tolist()
    assert echoed.text == plain.text
    assert echoed.finish.usage.cached_input_tokens == 0
    assert several.prompt_info.prompt_logprobs == entries
    assert len(several.further) == 2


async def test_a_bundle_whose_graph_gives_one_position_serves_on_and_refuses_the_echo(
    tiny_llama_store: Path, tmp_path: Path
) -> None:
    """Bundles exported before the graph could: told by the shape of an input in their manifest."""
    store = shutil.copytree(tiny_llama_store, tmp_path / "store")
    file = store / "tiny-llama" / "1" / "manifest.json"
    manifest = json.loads(file.read_text())
    [asked_for] = [tensor for tensor in manifest["graphs"][0]["inputs"] if tensor["name"] == "last_idx"]
    assert asked_for["shape"] == ["batch", "asked"]
    asked_for["shape"] = ["batch", "1"]
    file.write_text(json.dumps(manifest))
    async with running_service(PLAN, store) as service, grpc.aio.insecure_channel(service.address) as channel:
        stub: GenerationServiceAsyncStub = GenerationServiceStub(channel)
        assert (await stub.Complete(asked())).finish.usage.output_tokens == 6
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Complete(asked(output=ECHO))
    [violation] = error_of(caught.value, address=service.address).violations
    assert violation.field == "output.prompt_logprobs"
    assert "tiny-llama" in violation.description
    assert "export it again" in violation.description
