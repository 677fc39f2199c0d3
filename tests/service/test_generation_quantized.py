"""Quantised language models when served, with the number of threads chosen at run time."""

from __future__ import annotations

import grpc
import pytest
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.generation.v1.generation_service_pb2_grpc import GenerationServiceStub
from aimass_exporters.testing import cached_checkpoint, cached_export, tiny_config
from aimass_generation.__main__ import PLAN
from aimass_serving import adaptive_session
from aimass_serving.testing import running_service

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(900)]


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("source", ["glassllm-en", "gpt2"])
async def test_thread_variants_of_a_quantised_model_give_the_logits_of_its_export(
    source: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service starts only when the golden logits come out; 4-bit weights once did not survive sharing."""
    monkeypatch.setattr(adaptive_session, "usable_cores", lambda: 2)
    origin = cached_checkpoint(tiny_config(source)) if source == "gpt2" else source
    store = cached_export(origin, name=f"{source}-{precision}", precision=precision)
    async with (
        running_service(PLAN, store) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        request = pb.CompleteRequest(model=f"{source}-{precision}", text="Once upon a time")
        request.sampling.temperature = 0
        request.stopping.max_new_tokens, request.stopping.ignore_eos = 8, True
        reply = await GenerationServiceStub(channel).Complete(request)
    assert reply.finish.usage.output_tokens == 8
