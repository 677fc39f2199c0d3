"""`EmbeddingService` over a real server with a fake graph: bad input, streams, cancellation, overload."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from aimass.common.v1 import error_pb2
from aimass.embedding.v1 import embedding_service_pb2 as pb
from aimass.embedding.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from aimass_encoder.__main__ import PLAN
from aimass_encoder.config import EncoderConfig
from aimass_encoder.engine import EncoderEngine
from aimass_encoder.servicer import EmbeddingServicer
from aimass_encoder.task_engine import TaskEngine
from aimass_encoder.testing import FakeEncoderGraph, fake_engine
from aimass_serving.bundle import Bundle
from aimass_serving.registry import ModelRegistry
from aimass_serving.service import LoadContext
from aimass_serving.testing import running_service, write_bundle
from google.rpc import error_details_pb2, status_pb2
from numpy.typing import NDArray

if TYPE_CHECKING:
    from aimass.embedding.v1.embedding_service_pb2_grpc import EmbeddingServiceAsyncStub

SETTINGS = EncoderConfig(
    cpu_batch_tokens=64,
    cpu_lanes=1,
    cpu_max_amplification=1.5,
    max_batch_items=100,
    max_queue_tokens=64,
    stream_window=4,
)
MODEL = "fake"


class Service:
    """A running service, its client, and the graph behind it."""

    def __init__(
        self, graph: FakeEncoderGraph, channel: grpc.aio.Channel, registry: ModelRegistry[TaskEngine]
    ) -> None:
        self.graph = graph
        self.channel = channel
        self.stub: EmbeddingServiceAsyncStub = EmbeddingServiceStub(channel)
        self.registry = registry
        self.engine = registry.get(MODEL).engine

    async def embed(self, *texts: str, timeout_s: float = 20, **fields: Any) -> pb.EmbedResponse:
        request = pb.EmbedRequest(**{"model": MODEL, "texts": texts, **fields})
        return await self.stub.Embed(request, timeout=timeout_s)

    async def refusal(self, *texts: str, **fields: Any) -> Refusal:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await self.embed(*texts, **fields)
        return Refusal(failed.value)


class Refusal:
    """A failed call as a client sees it."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code = error.code()
        self.trailers: dict[str, Any] = dict(error.trailing_metadata() or ())
        details = status_pb2.Status.FromString(self.trailers.get("grpc-status-details-bin", b"")).details
        self.reason, self.fields, self.retry_after_s = "", [""], 0.0
        for detail in details:
            info, bad, retry = (
                error_details_pb2.ErrorInfo(),
                error_details_pb2.BadRequest(),
                error_details_pb2.RetryInfo(),
            )
            if detail.Unpack(info):
                self.reason = info.reason
            if detail.Unpack(bad):
                self.fields = [v.field for v in bad.field_violations]
            if detail.Unpack(retry):
                self.retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()


@pytest.fixture
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    graph = FakeEncoderGraph()

    def load(bundle: Bundle, context: LoadContext) -> EncoderEngine:
        return fake_engine(graph, context.config(EncoderConfig), model=bundle.manifest.name)

    store = tmp_path_factory.mktemp("store")
    write_bundle(store, MODEL)
    async with (
        running_service(replace(PLAN, load=load), store, extra=[SETTINGS]) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        try:
            yield Service(graph, channel, running.registry)
        finally:
            graph.open()


def different_texts(count: int) -> list[str]:
    """Texts of four tokens each; equal ones would be computed once."""
    return [f"a {'b' * length}" for length in range(1, count + 1)]


async def until(condition: Callable[[], bool]) -> None:
    """Let the server work until `condition` holds."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the condition is another thread's
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def in_progress(service: Service, *texts: str, **fields: Any) -> AsyncIterator[asyncio.Task[Any]]:
    """Run one call beside the test; it is cancelled at the end."""
    task = asyncio.create_task(service.embed(*texts, **fields))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def vector(result: pb.EmbedResult) -> NDArray[np.float32]:
    assert result.WhichOneof("result") == "embedding", result.error
    return np.frombuffer(result.embedding.vector, "<f4")


async def test_a_call_returns_one_vector_for_each_text_and_says_who_made_them(service: Service) -> None:
    reply = await service.embed("a b", "c")
    assert [vector(r).shape for r in reply.results] == [(8,), (8,)]
    assert [r.embedding.tokens for r in reply.results] == [4, 3]
    assert (reply.model, reply.model_version, reply.dimensions) == (MODEL, "1", 8)
    assert reply.dtype == pb.VECTOR_DTYPE_FLOAT32
    assert reply.usage.input_tokens == 7
    assert reply.timings.total_ms >= reply.timings.compute_ms > 0


async def test_bad_texts_fail_alone_with_their_place_in_the_call(service: Service) -> None:
    reply = await service.embed("good", "", "x" * 2**20, "a poison b", "fine", "w " * 30)
    options = pb.EmbedOptions(truncation=pb.TRUNCATION_NONE)
    refused = (await service.embed("w " * 30, "good", options=options)).results[0].error
    kinds = [r.WhichOneof("result") for r in reply.results]
    assert kinds == ["embedding", "error", "error", "error", "embedding", "embedding"]
    errors = [reply.results[i].error for i in (1, 2, 3)]
    assert [e.reason for e in errors] == [
        error_pb2.ERROR_REASON_INVALID_FIELD,
        error_pb2.ERROR_REASON_INVALID_FIELD,
        error_pb2.ERROR_REASON_MODEL_FAILED,
    ]
    assert [[v.field for v in e.violations] for e in errors] == [["texts[1]"], ["texts[2]"], []]
    assert all(len(e.message) < 500 for e in errors)
    assert reply.results[5].embedding.truncated_tokens == 16
    assert refused.reason == error_pb2.ERROR_REASON_INPUT_TOO_LONG
    assert refused.violations[0].field == "texts[0]"


@pytest.mark.parametrize(
    ("fields", "code", "reason", "field"),
    [
        ({"texts": []}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "texts"),
        ({"texts": ["a"] * 100_000}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "texts"),
        ({"model": ""}, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", ""),
        ({"model": "other"}, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", ""),
        (
            {"options": pb.EmbedOptions(dimensions=0)},
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_FIELD",
            "options.dimensions",
        ),
        (
            {"options": pb.EmbedOptions(dimensions=9)},
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_FIELD",
            "options.dimensions",
        ),
        (
            {"options": pb.EmbedOptions(prompt_name="nobody's")},
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_FIELD",
            "options.prompt_name",
        ),
        (
            {"options": pb.EmbedOptions(dtype=99)},  # type: ignore[arg-type]
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_FIELD",
            "options.dtype",
        ),
        (
            {"options": pb.EmbedOptions(truncation=99)},  # type: ignore[arg-type]
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_FIELD",
            "options.truncation",
        ),
        ({"request_id": "\n"}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "request_id"),
    ],
)
async def test_a_bad_call_is_refused_by_reason_and_field(
    service: Service, fields: dict[str, Any], code: grpc.StatusCode, reason: str, field: str
) -> None:
    refusal = await service.refusal(**{"texts": ["fine"], **fields})
    assert (refusal.code, refusal.reason, refusal.fields[0]) == (code, reason, field)
    assert len((await service.embed("still well")).results) == 1


async def test_text_that_is_not_utf8_is_a_malformed_message(service: Service) -> None:
    call: Any = service.channel.unary_unary("/aimass.embedding.v1.EmbeddingService/Embed")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(b"\x0a\x04fake\x12\x02\xff\xfe", timeout=20)
    refusal = Refusal(failed.value)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")


async def test_every_dtype_decodes_as_documented(service: Service) -> None:
    exact = vector((await service.embed("a b c")).results[0])
    replies = {
        dtype: await service.embed("a b c", options=pb.EmbedOptions(dtype=dtype))
        for dtype in (pb.VECTOR_DTYPE_FLOAT16, pb.VECTOR_DTYPE_INT8, pb.VECTOR_DTYPE_BINARY)
    }
    assert [reply.dtype for reply in replies.values()] == list(replies)
    half, byte, bits = (reply.results[0].embedding for reply in replies.values())
    np.testing.assert_allclose(np.frombuffer(half.vector, "<f2"), exact, atol=1e-3)
    np.testing.assert_allclose(np.frombuffer(byte.vector, "i1") * byte.scale, exact, atol=byte.scale / 1.99)
    np.testing.assert_array_equal(np.unpackbits(np.frombuffer(bits.vector, "u1"))[:8], exact > 0)


async def test_dimensions_cut_every_vector(service: Service) -> None:
    reply = await service.embed("a", "b", options=pb.EmbedOptions(dimensions=3))
    assert reply.dimensions == 3
    assert [len(vector(r)) for r in reply.results] == [3, 3]
    np.testing.assert_allclose([np.linalg.norm(vector(r)) for r in reply.results], 1, rtol=1e-5)


def stream_of(
    texts: Iterable[str], *, options: pb.EmbedOptions | None = None, model: str = MODEL
) -> list[pb.EmbedStreamRequest]:
    config = pb.EmbedStreamConfig(model=model, options=options or pb.EmbedOptions())
    return [pb.EmbedStreamRequest(config=config), *(pb.EmbedStreamRequest(text=t) for t in texts)]


async def replies_to(service: Service, requests: list[pb.EmbedStreamRequest]) -> list[pb.EmbedStreamResponse]:
    call = service.stub.EmbedStream(iter(requests), timeout=20)
    return [reply async for reply in call]


async def test_a_stream_answers_in_order_with_the_vectors_of_a_call(service: Service) -> None:
    texts = ["w " * (1 + i % 14) for i in range(50)]
    replies = await replies_to(service, stream_of(texts))
    whole = await service.embed(*texts)
    assert [r.index for r in replies] == list(range(50))
    for streamed, unary in zip(replies, whole.results, strict=True):
        np.testing.assert_allclose(vector(streamed.result), vector(unary), atol=1e-5)
        assert (streamed.dimensions, streamed.dtype) == (8, pb.VECTOR_DTYPE_FLOAT32)


async def test_a_bad_text_fails_its_own_answer_and_not_the_stream(service: Service) -> None:
    replies = await replies_to(service, stream_of(["good", "", "poison", "good"]))
    assert [r.result.WhichOneof("result") for r in replies] == ["embedding", "error", "error", "embedding"]
    assert replies[1].result.error.violations[0].field == "text"


async def test_an_empty_stream_of_texts_is_an_empty_stream_of_answers(service: Service) -> None:
    assert await replies_to(service, stream_of([])) == []


@pytest.mark.parametrize(
    ("requests", "code", "field"),
    [
        ([], grpc.StatusCode.INVALID_ARGUMENT, "config"),
        ([pb.EmbedStreamRequest(text="a")], grpc.StatusCode.INVALID_ARGUMENT, "config"),
        ([pb.EmbedStreamRequest()], grpc.StatusCode.INVALID_ARGUMENT, "config"),
        (stream_of([], model="other"), grpc.StatusCode.NOT_FOUND, ""),
        (
            stream_of([], options=pb.EmbedOptions(dimensions=9)),
            grpc.StatusCode.INVALID_ARGUMENT,
            "config.options.dimensions",
        ),
        (
            stream_of([], options=pb.EmbedOptions(dtype=99)),  # type: ignore[arg-type]
            grpc.StatusCode.INVALID_ARGUMENT,
            "config.options.dtype",
        ),
        ([*stream_of([]), *stream_of([])], grpc.StatusCode.INVALID_ARGUMENT, "text"),
        ([*stream_of([]), pb.EmbedStreamRequest()], grpc.StatusCode.INVALID_ARGUMENT, "text"),
    ],
)
async def test_a_bad_stream_is_refused_by_code_and_field(
    service: Service, requests: list[pb.EmbedStreamRequest], code: grpc.StatusCode, field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await replies_to(service, requests)
    refusal = Refusal(failed.value)
    assert (refusal.code, refusal.fields[0]) == (code, field)


async def test_a_message_out_of_place_comes_after_the_answers_before_it(service: Service) -> None:
    call = service.stub.EmbedStream(iter([*stream_of(["a", "b"]), pb.EmbedStreamRequest()]), timeout=20)
    first, second = await call.read(), await call.read()
    assert isinstance(first, pb.EmbedStreamResponse)
    assert isinstance(second, pb.EmbedStreamResponse)
    assert [first.index, second.index] == [0, 1]
    with pytest.raises(grpc.aio.AioRpcError):
        await call.read()


async def test_a_stream_works_on_a_bounded_number_of_texts_at_once(service: Service) -> None:
    service.graph.hold()
    replies = asyncio.create_task(replies_to(service, stream_of(different_texts(30))))
    await until(lambda: len(service.graph.shapes) == 1)
    await asyncio.sleep(0.1)  # time in which an unbounded stream would queue everything
    assert service.graph.shapes[0][0] * 4 + service.engine.queued_tokens <= SETTINGS.stream_window * 4
    service.graph.open()
    assert [reply.index for reply in await replies] == list(range(30))


async def test_a_cancelled_stream_leaves_the_queue(service: Service) -> None:
    service.graph.hold()
    call = service.stub.EmbedStream(iter(stream_of(different_texts(30))), timeout=20)
    reading = asyncio.create_task(call.read())
    await until(lambda: service.engine.queued_tokens > 0)
    call.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await until(lambda: service.engine.queued_tokens == 0)
    service.graph.open()
    assert len((await service.embed("a b")).results) == 1
    assert service.engine.stats().num_texts < 10


class NoDeadline:
    """A call's context without a deadline."""

    def time_remaining(self) -> float | None:
        return None


async def test_a_stream_that_is_left_between_two_answers_leaves_the_queue_at_once(service: Service) -> None:
    more_wanted = asyncio.Event()

    async def requests() -> AsyncIterator[pb.EmbedStreamRequest]:
        config, first, *others = stream_of(["a b", "w " * 14, "a b"] * 10)  # too unlike to share a batch
        yield config
        yield first
        await more_wanted.wait()
        for request in others:
            yield request

    answers = EmbeddingServicer(service.registry).EmbedStream(requests(), NoDeadline())
    await anext(answers)
    service.graph.hold()
    more_wanted.set()
    await until(lambda: len(service.graph.shapes) == 2 and service.engine.queued_tokens > 0)
    await answers.aclose()  # type: ignore[attr-defined] # it is an async generator
    assert service.engine.queued_tokens == 0


async def test_a_cancelled_call_leaves_the_queue(service: Service) -> None:
    service.graph.hold()
    async with in_progress(service, "first") as first:
        await until(lambda: len(service.graph.shapes) == 1)
        async with in_progress(service, "a b", "c d"):
            await until(lambda: service.engine.queued_tokens == 8)
        await until(lambda: service.engine.queued_tokens == 0)
        service.graph.open()
        await first
    assert service.engine.stats().num_texts == 1


async def test_a_deadline_that_passes_in_the_queue_costs_no_compute(service: Service) -> None:
    service.graph.hold()
    async with in_progress(service, "first") as first:
        await until(lambda: len(service.graph.shapes) == 1)
        refusal = await service.refusal("a b", timeout_s=0.2)
        assert refusal.code == grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: service.engine.queued_tokens == 0)
        service.graph.open()
        await first
    assert service.engine.stats().num_texts == 1


async def test_overload_says_when_to_come_back_and_ends(service: Service) -> None:
    service.graph.hold()
    async with in_progress(service, "first") as first:
        await until(lambda: len(service.graph.shapes) == 1)
        async with in_progress(service, *different_texts(20)) as waiting:
            await until(lambda: service.engine.queued_tokens == 80)
            for texts in (["a"], ["a"] * 50):
                refusal = await service.refusal(*texts)
                assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
                assert refusal.retry_after_s > 0
                assert int(refusal.trailers["grpc-retry-pushback-ms"]) > 0
            (streamed,) = await replies_to(service, stream_of(["a"]))
            assert streamed.result.error.reason == error_pb2.ERROR_REASON_OVERLOADED
            service.graph.open()
            await asyncio.gather(first, waiting)
    assert len((await service.embed("a b")).results) == 1


async def test_calls_of_many_clients_share_batches(service: Service) -> None:
    service.graph.hold()
    async with in_progress(service, "first") as first:
        await until(lambda: len(service.graph.shapes) == 1)
        calls = [asyncio.create_task(service.embed(text)) for text in different_texts(10)]
        await until(lambda: service.engine.queued_tokens == 40)
        service.graph.open()
        await asyncio.gather(first, *calls)
    assert service.graph.shapes == [(1, 3), (10, 4)]
