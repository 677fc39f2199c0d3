"""Fakes of the services, for tests of programs that call them. No model, no server package.

    fake = FakeGenerationService.saying("Hello there")
    with running_fakes(fake) as address, GenerationClient(address) as client:
        assert client.complete("Hi", model="any").text == "Hello there"

A script is the steps of one call: messages to send, then perhaps `Fail` or `Hang`. `calls` remembers what
came in, and whether the caller left before the end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypeAlias, TypeVar

import grpc
import numpy as np
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2_grpc
from numpy.typing import NDArray

from aimass.common.v1 import error_pb2
from aimass.embedding.v1 import embedding_service_pb2 as embedding_pb
from aimass.embedding.v1 import embedding_service_pb2_grpc as embedding_pb_grpc
from aimass.errors import ERROR_DOMAIN, PUSHBACK_TRAILER
from aimass.generation.v1 import generation_service_pb2 as generation_pb
from aimass.generation.v1 import generation_service_pb2_grpc as generation_pb_grpc
from aimass.model.v1 import manifest_pb2
from aimass.model.v1 import model_service_pb2 as model_pb
from aimass.model.v1 import model_service_pb2_grpc as model_pb_grpc

MessageT = TypeVar("MessageT", bound=Message)

WAIT_S = 10.0
"""How long a fake or a test waits for something that must happen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """End the call as an aimass server would: status, reason and details."""

    code: grpc.StatusCode
    message: str = "scripted failure"
    reason: str = ""
    """Sent as `ErrorInfo`; nothing but the status line is sent when empty."""
    violations: Mapping[str, str] = field(default_factory=dict)
    """Description by field."""
    retry_after_s: float | None = None
    request_id: str = ""

    def details(self) -> Iterator[Message]:
        """Yield the `google.rpc` messages that go with the status."""
        if self.reason:
            yield error_details_pb2.ErrorInfo(reason=self.reason, domain=ERROR_DOMAIN)
        if self.violations:
            pairs = self.violations.items()
            violation = error_details_pb2.BadRequest.FieldViolation
            yield error_details_pb2.BadRequest(
                field_violations=[violation(field=name, description=text) for name, text in pairs]
            )
        if self.retry_after_s is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(round(self.retry_after_s * 1000))
            yield retry
        if self.request_id:
            yield error_details_pb2.RequestInfo(request_id=self.request_id)


@dataclass(frozen=True, slots=True)
class Hang:
    """Answer nothing more until the caller has left."""


Step: TypeAlias = Message | Fail | Hang
Script: TypeAlias = Sequence[Step]


class FakeCall:
    """One call as a fake saw it."""

    def __init__(self, method: str, context: grpc.ServicerContext) -> None:
        self.method = method
        self.requests: list[Message] = []
        self.metadata = dict(context.invocation_metadata() or ())
        self.arrived_s = time.monotonic()
        """When it arrived, on the monotonic clock."""
        self.deadline_s = context.time_remaining()
        """Time the call had left when it arrived, in seconds; None without a deadline."""
        self.is_answered = False
        """Whether the script ran to its end."""
        self._ended = threading.Event()
        if not context.add_callback(self._ended.set):
            self._ended.set()

    def wait_until_ended(self, timeout_s: float = WAIT_S) -> bool:
        """Wait until the call is over; return False when it still runs after the time."""
        return self._ended.wait(timeout_s)

    @property
    def was_cancelled(self) -> bool:
        """Whether the caller left before the script's end. Waits for the end of the call."""
        return self.wait_until_ended() and not self.is_answered


class Scripts:
    """Answers the calls of one fake, one script a call; the last script answers all further calls.

    Guarded by a lock: the threads of the server share it.
    """

    def __init__(self, by_method: Mapping[str, Sequence[Script]]) -> None:
        self._waiting = {method: list(scripts) for method, scripts in by_method.items()}
        self._lock = threading.Lock()
        self.calls: list[FakeCall] = []

    def play(
        self, method: str, requests: Message | Iterable[Message], context: grpc.ServicerContext
    ) -> Iterator[Any]:
        """Yield the messages of the next script, and fail or hang where it says so."""
        call, script = self._begin(method, context)
        for request in [requests] if isinstance(requests, Message) else requests:
            call.requests.append(request)
        for step in script:
            if isinstance(step, Hang):
                call.wait_until_ended()
                return
            if isinstance(step, Fail):
                call.is_answered = True
                _abort(context, step)
            yield step
        call.is_answered = True

    def answer(self, method: str, request: Message, context: grpc.ServicerContext) -> Any:
        """Return the one message of the next script of a unary call."""
        messages = list(self.play(method, request, context))
        if not messages:
            context.abort(grpc.StatusCode.CANCELLED, f"the script of {method} has no message")
        return messages[0]

    def _begin(self, method: str, context: grpc.ServicerContext) -> tuple[FakeCall, Script]:
        with self._lock:
            scripts = self._waiting.get(method) or [[Fail(code=grpc.StatusCode.UNIMPLEMENTED)]]
            call = FakeCall(method, context)
            self.calls.append(call)
            return call, scripts.pop(0) if len(scripts) > 1 else scripts[0]


class FakeService(Protocol):
    """A servicer that knows how to join a server."""

    def add_to(self, server: grpc.Server) -> None: ...


class FakeGenerationService(generation_pb_grpc.GenerationServiceServicer):
    """A generation service that answers from scripts."""

    def __init__(
        self,
        *,
        generate: Sequence[Script] = (),
        complete: Sequence[Script] = (),
        tokenize: Sequence[Script] = (),
        detokenize: Sequence[Script] = (),
    ) -> None:
        self._scripts = Scripts(
            {"Generate": generate, "Complete": complete, "Tokenize": tokenize, "Detokenize": detokenize}
        )

    @classmethod
    def saying(cls, text: str) -> Self:
        """Return a service whose every answer is this text, streamed word by word."""
        words = text.split(" ")
        pieces = [word if i == 0 else " " + word for i, word in enumerate(words)]
        finish = finish_event(output_tokens=len(pieces))
        whole = generation_pb.CompleteResponse(
            prompt_info=prompt_info_event().prompt_info,
            text=text,
            token_ids=range(len(pieces)),
            finish=finish.finish,
        )
        ids = generation_pb.TokenizeResponse(token_ids=range(len(pieces)))
        return cls(
            generate=[[prompt_info_event(), *map(delta_event, pieces), finish]],
            complete=[[whole]],
            tokenize=[[ids]],
            detokenize=[[generation_pb.DetokenizeResponse(text=text)]],
        )

    @property
    def calls(self) -> Sequence[FakeCall]:
        """The calls so far, oldest first."""
        return self._scripts.calls

    def add_to(self, server: grpc.Server) -> None:
        generation_pb_grpc.add_GenerationServiceServicer_to_server(self, server)

    def Generate(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802 - the protocol's name
        return self._scripts.play("Generate", request, context)

    def Complete(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        return self._scripts.answer("Complete", request, context)

    def Tokenize(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        return self._scripts.answer("Tokenize", request, context)

    def Detokenize(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        return self._scripts.answer("Detokenize", request, context)


class FakeEmbeddingService(embedding_pb_grpc.EmbeddingServiceServicer):
    """An embedding service that computes vectors with a function, or answers from scripts if it has any."""

    def __init__(
        self,
        vector_of: Callable[[str], NDArray[np.float32]] | None = None,
        *,
        embed: Sequence[Script] = (),
        embed_stream: Sequence[Script] = (),
        embed_sparse: Sequence[Script] = (),
        embed_tokens: Sequence[Script] = (),
        similarity: Sequence[Script] = (),
        rerank: Sequence[Script] = (),
    ) -> None:
        self._vector_of = vector_of or letters_vector
        self._has_script = {"Embed": bool(embed), "EmbedStream": bool(embed_stream)}
        self._scripts = Scripts(
            {
                "Embed": embed,
                "EmbedStream": embed_stream,
                "EmbedSparse": embed_sparse,
                "EmbedTokens": embed_tokens,
                "Similarity": similarity,
                "Rerank": rerank,
            }
        )
        self._computed: list[FakeCall] = []

    @property
    def calls(self) -> Sequence[FakeCall]:
        """The calls so far, oldest first."""
        return [*self._scripts.calls, *self._computed]

    def add_to(self, server: grpc.Server) -> None:
        embedding_pb_grpc.add_EmbeddingServiceServicer_to_server(self, server)

    def Embed(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        if self._has_script["Embed"]:
            return self._scripts.answer("Embed", request, context)
        call = self._remember("Embed", context)
        call.requests.append(request)
        vectors = [self._vector_of(text) for text in request.texts]
        call.is_answered = True
        return embedding_pb.EmbedResponse(
            results=[vector_result(vector) for vector in vectors],
            dimensions=len(vectors[0]) if vectors else 0,
            dtype=embedding_pb.VECTOR_DTYPE_FLOAT32,
            model=request.model,
            model_version="1",
        )

    def EmbedStream(self, request_iterator: Any, context: Any) -> Iterator[Any]:  # noqa: N802 - as above
        if self._has_script["EmbedStream"]:
            yield from self._scripts.play("EmbedStream", request_iterator, context)
            return
        call = self._remember("EmbedStream", context)
        for index, request in enumerate(request_iterator, -1):
            call.requests.append(request)
            if index >= 0:
                yield stream_answer(index, self._vector_of(request.text))
        call.is_answered = True

    def EmbedSparse(self, request: Any, context: Any) -> Any:  # noqa: N802 - as above
        return self._scripts.answer("EmbedSparse", request, context)

    def EmbedTokens(self, request: Any, context: Any) -> Any:  # noqa: N802 - as above
        return self._scripts.answer("EmbedTokens", request, context)

    def Similarity(self, request: Any, context: Any) -> Any:  # noqa: N802 - as above
        return self._scripts.answer("Similarity", request, context)

    def Rerank(self, request: Any, context: Any) -> Any:  # noqa: N802 - as above
        return self._scripts.answer("Rerank", request, context)

    def _remember(self, method: str, context: grpc.ServicerContext) -> FakeCall:
        call = FakeCall(method, context)
        self._computed.append(call)
        return call


class FakeModelService(model_pb_grpc.ModelServiceServicer):
    """A model service with the given models."""

    def __init__(self, models: Sequence[model_pb.Model] = ()) -> None:
        self.models = list(models)

    def add_to(self, server: grpc.Server) -> None:
        model_pb_grpc.add_ModelServiceServicer_to_server(self, server)

    def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        return model_pb.ListModelsResponse(models=self.models)

    def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        for model in self.models:
            if request.model in (model.name, f"{model.name}@{model.version}"):
                return model_pb.GetModelResponse(model=model)
        message = f"model {request.model!r} is not served here"
        return _abort(
            context, Fail(code=grpc.StatusCode.NOT_FOUND, reason="MODEL_NOT_FOUND", message=message)
        )


class FakeHealthService(health.HealthServicer):  # type: ignore[misc]  # published without types
    """The standard health service; SERVING until told otherwise with `set`."""

    def add_to(self, server: grpc.Server) -> None:
        """Join a server."""
        health_pb2_grpc.add_HealthServicer_to_server(self, server)


@contextmanager
def running_fakes(
    *services: FakeService, credentials: grpc.ServerCredentials | None = None, num_threads: int = 8
) -> Iterator[str]:
    """Run the fakes in one server on a free port of this machine, and give its address.

    With `credentials` it speaks TLS.
    """
    server = grpc.server(futures.ThreadPoolExecutor(num_threads), options=[("grpc.so_reuseport", 0)])
    for service in services:
        service.add_to(server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(grace=None).wait()


def prompt_info_event(
    *, model: str = "fake", model_version: str = "1", prompt_tokens: int = 3, request_id: str = "fake-request"
) -> generation_pb.GenerateResponse:
    """Return the first message of a stream."""
    info = generation_pb.PromptInfo(
        request_id=request_id, model=model, model_version=model_version, prompt_tokens=prompt_tokens
    )
    return generation_pb.GenerateResponse(prompt_info=info)


def delta_event(text: str, *, token_ids: Sequence[int] = ()) -> generation_pb.GenerateResponse:
    """Return a message with new text."""
    return generation_pb.GenerateResponse(delta=generation_pb.Delta(text=text, token_ids=token_ids))


def finish_event(
    *,
    reason: generation_pb.FinishReason.ValueType = generation_pb.FINISH_REASON_EOS,
    output_tokens: int = 0,
    stop_string: str | None = None,
) -> generation_pb.GenerateResponse:
    """Return the last message of a stream."""
    finish = generation_pb.Finish(reason=reason)
    if stop_string is not None:
        finish.stop_string = stop_string
    finish.usage.input_tokens = 3
    finish.usage.output_tokens = output_tokens
    finish.timings.total_ms = 1.0
    return generation_pb.GenerateResponse(finish=finish)


def vector_result(vector: NDArray[np.float32]) -> embedding_pb.EmbedResult:
    """Return a result with a float32 vector `[dimensions]`."""
    packed = vector.astype("<f4").tobytes()
    return embedding_pb.EmbedResult(embedding=embedding_pb.Embedding(vector=packed, tokens=2))


def error_result(reason: str, message: str) -> embedding_pb.EmbedResult:
    """Return a result without a vector; `reason` as in `INPUT_TOO_LONG`."""
    number = error_pb2.ErrorReason.Value(f"ERROR_REASON_{reason}")
    return embedding_pb.EmbedResult(error=error_pb2.ItemError(reason=number, message=message))


def stream_answer(index: int, vector: NDArray[np.float32]) -> embedding_pb.EmbedStreamResponse:
    """Return the answer to one text of a stream."""
    return embedding_pb.EmbedStreamResponse(
        index=index,
        result=vector_result(vector),
        dimensions=len(vector),
        dtype=embedding_pb.VECTOR_DTYPE_FLOAT32,
    )


def letters_vector(text: str) -> NDArray[np.float32]:
    """Return a vector of length 1 that counts the letters a to z: float32 `[26]`."""
    counts = np.array([text.lower().count(chr(ord("a") + i)) for i in range(26)], np.float32)
    length = float(np.linalg.norm(counts))
    return counts / np.float32(length) if length else counts


def ready_model(
    name: str, task: manifest_pb2.Task.ValueType = manifest_pb2.TASK_TEXT_GENERATION
) -> model_pb.Model:
    """Return the description of a model that takes requests."""
    return model_pb.Model(
        name=name,
        version="1",
        task=task,
        family="fake",
        precision=manifest_pb2.PRECISION_FP32,
        execution_provider="CPUExecutionProvider",
        state=model_pb.MODEL_STATE_READY,
        verified=True,
    )


def _abort(context: grpc.ServicerContext, fail: Fail) -> Any:
    status = status_pb2.Status(code=fail.code.value[0], message=fail.message)
    for detail in fail.details():
        status.details.add().Pack(detail)
    trailers: list[tuple[str, str | bytes]] = []
    if status.details:
        trailers.append(("grpc-status-details-bin", status.SerializeToString()))
    if fail.retry_after_s is not None:
        trailers.append((PUSHBACK_TRAILER, str(round(fail.retry_after_s * 1000))))
    context.set_trailing_metadata(tuple(trailers))
    return context.abort(fail.code, fail.message)
