"""`GenerationService`: finds the model, asks its engine, and answers. Nothing else."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import grpc
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.generation.v1 import generation_service_pb2_grpc as pb_grpc
from aimass_serving.registry import ModelRegistry
from aimass_serving.request_context import log_field, request_context

from aimass_generation.engine import GenerationEngine
from aimass_generation.messages import Answerer, completion_pb, event_pb, generation_request, prompt
from aimass_generation.request import GenerationRequest

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["GenerationService"].full_name


def register(server: grpc.aio.Server, registry: ModelRegistry[GenerationEngine]) -> Sequence[str]:
    """Add the servicer to a server; return the full names of its services."""
    pb_grpc.add_GenerationServiceServicer_to_server(GenerationServicer(registry), server)
    return [SERVICE_NAME]


class GenerationServicer(pb_grpc.GenerationServiceServicer):
    """Answers with the models of a registry. Errors are left to the interceptors."""

    def __init__(self, registry: ModelRegistry[GenerationEngine]) -> None:
        self._registry = registry

    async def Generate(  # noqa: N802 - named by the proto
        self, request: pb.GenerateRequest, context: Any
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Stream a continuation."""
        engine, asked, answerer = self._asked(request, context)
        async with aclosing(engine.generate(asked)) as events:
            async for event in events:
                yield event_pb(event, answerer)

    async def Complete(self, request: pb.CompleteRequest, context: Any) -> pb.CompleteResponse:  # noqa: N802
        """Return a whole continuation."""
        engine, asked, answerer = self._asked(request, context)
        return completion_pb(await engine.complete(asked), answerer)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:  # noqa: N802
        """Return the token ids of a prompt."""
        engine = self._registry.get(request.model).engine
        return pb.TokenizeResponse(token_ids=await engine.tokenize(prompt(request)))

    async def Detokenize(  # noqa: N802
        self, request: pb.DetokenizeRequest, context: Any
    ) -> pb.DetokenizeResponse:
        """Return the text of token ids."""
        engine = self._registry.get(request.model).engine
        keeps = request.keep_special_tokens
        return pb.DetokenizeResponse(
            text=await engine.detokenize(request.token_ids, keep_special_tokens=keeps)
        )

    def _asked(
        self, request_pb: pb.GenerateRequest | pb.CompleteRequest, context: Any
    ) -> tuple[GenerationEngine, GenerationRequest, Answerer]:
        """Return who is asked, what, and how the answer introduces itself. Both RPCs go this one way."""
        call = request_context(context, request_pb.request_id)
        served = self._registry.get(request_pb.model)
        asked = generation_request(request_pb, request_id=call.request_id, deadline_s=call.deadline_s)
        if asked.adapter:
            log_field("adapter", asked.adapter)
        wants_ids = asked.output.wants_prompt_token_ids
        return served.engine, asked, Answerer(call.request_id, served.name, served.version, wants_ids)
