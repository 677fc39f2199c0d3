"""The generation service in Python. Knows the RPCs and their messages, and nothing of connections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeVar

from aimass.channel import Connection, ConnectionOptions, ServiceClient
from aimass.completion import Completion, completion_of
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.generation.v1 import generation_service_pb2_grpc as pb_grpc
from aimass.generation_options import GenerationOptions
from aimass.prompt import ChatPrompt, ChatTurn, Prompt, chat_prompt_pb, set_prompt
from aimass.token_stream import TokenStream
from aimass.wire import refusing

GenerationRequestT = TypeVar("GenerationRequestT", pb.GenerateRequest, pb.CompleteRequest)


class GenerationClient(ServiceClient):
    """Continues prompts with a language model. Thread-safe; close it, or use it in a `with` block.

    Every method raises `aimass.errors.RpcError` or one of its kinds. `deadline_s` counts from the call, in
    seconds, and replaces the one of the connection's options.
    """

    DEFAULT_ADDRESS: ClassVar[str] = "localhost:50051"

    def __init__(
        self, target: str | Connection | None = None, options: ConnectionOptions | None = None
    ) -> None:
        super().__init__(target, options)
        self._stub = pb_grpc.GenerationServiceStub(self._connection.channel)

    def generate(
        self,
        prompt: Prompt,
        *,
        model: str,
        options: GenerationOptions | None = None,
        deadline_s: float | None = None,
    ) -> TokenStream:
        """Start a continuation and return its stream of deltas, which raises the errors of the call."""
        request = _filled(pb.GenerateRequest(), model, prompt, options)
        responses = self._connection.open_stream(self._stub.Generate, request, deadline_s=deadline_s)
        return TokenStream(responses)

    def complete(
        self,
        prompt: Prompt,
        *,
        model: str,
        options: GenerationOptions | None = None,
        deadline_s: float | None = None,
    ) -> Completion:
        """Return a whole continuation. Its text is that of `generate` for the same request and seed."""
        request = _filled(pb.CompleteRequest(), model, prompt, options)
        return completion_of(self._connection.call(self._stub.Complete, request, deadline_s=deadline_s))

    def tokenize(
        self, prompt: str | Sequence[ChatTurn] | ChatPrompt, *, model: str, deadline_s: float | None = None
    ) -> Sequence[int]:
        """Return the token ids of a text or a conversation as the model would see them."""
        request = pb.TokenizeRequest()
        with refusing("model"):
            request.model = model
        if isinstance(prompt, str):
            with refusing("text"):
                request.text = prompt
        else:
            request.chat.CopyFrom(chat_prompt_pb(prompt))
        return tuple(self._connection.call(self._stub.Tokenize, request, deadline_s=deadline_s).token_ids)

    def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        model: str,
        keep_special_tokens: bool = False,
        deadline_s: float | None = None,
    ) -> str:
        """Return the text of token ids; bytes that are not a whole character become U+FFFD."""
        request = pb.DetokenizeRequest(keep_special_tokens=keep_special_tokens)
        with refusing("model"):
            request.model = model
        with refusing("token_ids"):
            request.token_ids.extend(token_ids)
        return self._connection.call(self._stub.Detokenize, request, deadline_s=deadline_s).text


def _filled(
    request: GenerationRequestT, model: str, prompt: Prompt, options: GenerationOptions | None
) -> GenerationRequestT:
    with refusing("model"):
        request.model = model
    set_prompt(request, prompt)
    (options or GenerationOptions()).fill(request)
    return request
