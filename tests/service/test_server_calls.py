"""What happens around every call, in all four kinds of RPC, over a real connection."""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from aimass.model.v1.model_service_pb2 import GetModelRequest, GetModelResponse
from aimass_serving.echo import ERRORS, PLAN, SERVICE_NAME, EchoEngine
from aimass_serving.interceptors.errors import STATUS_OF_REASON
from aimass_serving.lifecycle import RunningService
from aimass_serving.testing import recorded_telemetry, running_service, write_bundle
from google.rpc import error_details_pb2
from grpc_status import rpc_status

KINDS = ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream")
Service = RunningService[EchoEngine]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    write_bundle(tmp_path, "m")
    async with running_service(PLAN, tmp_path, max_receive_bytes=2**20, max_concurrent_requests=3) as running:
        yield running


@pytest.fixture
async def channel(service: Service) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(service.address) as opened:
        yield opened


def engine_of(service: Service) -> EchoEngine:
    return service.registry.get("m").engine


def start(channel: grpc.aio.Channel, kind: str, *messages: bytes, **options: Any) -> Any:
    """Start a call of any kind with raw request messages."""
    request_streaming, response_streaming = kind.startswith("Stream"), kind.endswith("Stream")
    names = {(False, False): "unary_unary", (False, True): "unary_stream"}
    names |= {(True, False): "stream_unary", (True, True): "stream_stream"}
    method = getattr(channel, names[request_streaming, response_streaming])(f"/{SERVICE_NAME}/{kind}")
    return method(iter(messages) if request_streaming else messages[0], **options)


async def replies(call: Any) -> list[str]:
    """Wait for the end of a call of any kind."""
    raw = [message async for message in call] if hasattr(call, "__aiter__") else [await call]
    return [GetModelResponse.FromString(message).model.name for message in raw]


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await replies(call)
    return caught.value


def ask(command: str) -> bytes:
    return GetModelRequest(model=command).SerializeToString()


def info(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    found = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(error)
    assert status is not None, f"no details: {error.code()} {error.details()}"
    assert any(packed.Unpack(found) for packed in status.details)
    return found


async def eventually(is_true: Callable[[], bool]) -> None:
    for _ in range(1000):
        if is_true():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("did not come true within 5 s")


@pytest.mark.parametrize("kind", KINDS)
async def test_each_kind_of_call_is_served(channel: grpc.aio.Channel, kind: str) -> None:
    assert await replies(start(channel, kind, ask("hello"))) == ["hello"]


async def test_streams_carry_many_messages_each_way(channel: grpc.aio.Channel) -> None:
    assert await replies(start(channel, "UnaryStream", ask("count 100"))) == ["count 100"] * 100
    assert await replies(start(channel, "StreamUnary", ask("a"), ask("b"))) == ["a b"]
    assert await replies(start(channel, "StreamStream", ask("a"), ask("count 2"))) == [
        "a",
        "count 2",
        "count 2",
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reason", sorted(STATUS_OF_REASON))
async def test_error_has_its_status_and_reason(channel: grpc.aio.Channel, kind: str, reason: str) -> None:
    error = await failure(start(channel, kind, ask(f"raise {reason}")))
    assert error.code() is STATUS_OF_REASON[reason]
    assert (info(error).reason, info(error).domain) == (reason, "aimass")
    assert error.details() == str(ERRORS[reason]())


async def test_overload_tells_retrying_clients_when_to_come_back(channel: grpc.aio.Channel) -> None:
    error = await failure(start(channel, "UnaryUnary", ask("raise OVERLOADED")))
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "1500"


@pytest.mark.parametrize("kind", KINDS)
async def test_text_of_an_unexpected_error_stays_in_the_log(
    channel: grpc.aio.Channel, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    error = await failure(start(channel, kind, ask("raise bug"), metadata=(("x-request-id", "req-7"),)))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert info(error).reason == "INTERNAL"
    assert error.details() == "internal error; the log has it as request req-7"
    assert "hunter2" not in str(error.trailing_metadata())
    assert "hunter2" in caplog.text
    assert "req-7" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "message", [b"\x0a\xff", b"\x0a\x02\xff\xfe", b"\xff" * 100], ids=["cut", "utf8", "noise"]
)
async def test_broken_message_is_told_as_malformed(
    channel: grpc.aio.Channel, kind: str, message: bytes
) -> None:
    error = await failure(start(channel, kind, message))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert info(error).reason == "MALFORMED_MESSAGE"
    assert "GetModelRequest" in (error.details() or "")


async def test_broken_message_later_in_a_stream_is_told_too(
    channel: grpc.aio.Channel, service: Service
) -> None:
    error = await failure(start(channel, "StreamStream", ask("a"), b"\x0a\xff"))
    assert info(error).reason == "MALFORMED_MESSAGE"
    assert engine_of(service).num_running == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_message_over_the_limit_is_told_with_both_sizes(channel: grpc.aio.Channel, kind: str) -> None:
    error = await failure(start(channel, kind, ask("x" * (2**20 + 1))))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert info(error).reason == "MESSAGE_TOO_LARGE"
    assert "larger than max: expected a GetModelRequest of at most 1048576 bytes, got 1048581" in str(
        error.details()
    )


async def test_message_far_over_the_limit_is_refused_unread(channel: grpc.aio.Channel) -> None:
    error = await failure(start(channel, "UnaryUnary", ask("x" * (5 * 2**20))))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in str(error.details())
    assert await replies(start(channel, "UnaryUnary", ask("still here"))) == ["still here"]


async def test_ten_megabyte_message_is_over_the_default_limit(tmp_path: Path) -> None:
    write_bundle(tmp_path, "m")
    async with (
        running_service(PLAN, tmp_path) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        error = await failure(start(channel, "UnaryUnary", ask("x" * 10_000_000)))
        assert info(error).reason == "MESSAGE_TOO_LARGE"


@pytest.mark.parametrize("kind", KINDS)
async def test_cancelled_call_frees_its_place_and_closes_its_generator(
    channel: grpc.aio.Channel, service: Service, kind: str
) -> None:
    call, engine = start(channel, kind, ask("sleep 60")), engine_of(service)
    await eventually(lambda: engine.num_running == 1)
    call.cancel()
    await eventually(lambda: engine.num_running == 0)
    await eventually(lambda: service.num_running == 0)


async def test_caller_that_stops_reading_and_cancels_frees_its_place(
    channel: grpc.aio.Channel, service: Service
) -> None:
    """The handler is then blocked by flow control in `write`, where a bare generator would leak."""
    call, engine = start(channel, "UnaryStream", ask("count 1000000")), engine_of(service)
    assert await call.read()
    await eventually(lambda: engine.num_running == 1)
    call.cancel()
    await eventually(lambda: engine.num_closed == 1)
    assert engine.num_closed_elsewhere == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_deadline_frees_the_place(channel: grpc.aio.Channel, service: Service, kind: str) -> None:
    error = await failure(start(channel, kind, ask("sleep 60"), timeout=0.2))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: engine_of(service).num_running == 0)


async def test_calls_over_the_limit_are_refused_and_the_others_finish(
    channel: grpc.aio.Channel, service: Service
) -> None:
    running = [start(channel, "UnaryUnary", ask("sleep 0.5")) for _ in range(3)]
    await eventually(lambda: engine_of(service).num_running == 3)
    error = await failure(start(channel, "UnaryUnary", ask("one more")))
    assert info(error).reason == "OVERLOADED"
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
    assert [await replies(call) for call in running] == [["sleep 0.5"]] * 3
    assert await replies(start(channel, "UnaryUnary", ask("room again"))) == ["room again"]


async def test_unknown_method_is_unimplemented(channel: grpc.aio.Channel) -> None:
    call: Any = channel.unary_unary("/no.Such/Method")
    error = await failure(call(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_metadata_over_the_limit_is_refused(channel: grpc.aio.Channel) -> None:
    error = await failure(start(channel, "UnaryUnary", ask("hi"), metadata=(("x-big", "v" * 40_000),)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await replies(start(channel, "UnaryUnary", ask("still here"))) == ["still here"]


async def test_api_key_is_asked_for_and_health_is_exempt(tmp_path: Path) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    write_bundle(tmp_path / "store", "m")
    keys = tmp_path / "keys"
    keys.write_text(f"# the team's\n{hashlib.sha256(b'open sesame').hexdigest()}  # until spring\n")
    async with (
        running_service(PLAN, tmp_path / "store", api_keys=keys) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        for kind in KINDS:
            for header in ("", "Bearer wrong", "Basic open sesame", "Bearer "):
                metadata = (("authorization", header),) if header else ()
                error = await failure(start(channel, kind, b"\xff not parsed first", metadata=metadata))
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED
                assert info(error).reason == "UNAUTHENTICATED"
            good = (("authorization", "bearer open sesame"),)
            assert await replies(start(channel, kind, ask("hi"), metadata=good)) == ["hi"]
        health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING


TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = (("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"),)


@pytest.mark.parametrize("kind", KINDS)
async def test_span_continues_the_callers_trace_and_ends_once(channel: grpc.aio.Channel, kind: str) -> None:
    with recorded_telemetry() as recording:
        await replies(start(channel, kind, ask("hi"), metadata=TRACEPARENT))
        [span] = recording.spans
        assert span.name == f"{SERVICE_NAME}/{kind}"
        assert span.parent is not None
        assert f"{span.parent.trace_id:032x}" == TRACE_ID
        assert span.context is not None
        assert span.context.trace_id == span.parent.trace_id
        assert f"{span.parent.span_id:016x}" == PARENT_ID
        attributes = span.attributes or {}
        assert attributes["rpc.system.name"] == "grpc"
        assert attributes["rpc.method"] == f"{SERVICE_NAME}/{kind}"
        assert attributes["rpc.response.status_code"] == "OK"
        [point] = recording.points("rpc.server.call.duration")
        assert point.count == 1
        assert point.attributes["rpc.response.status_code"] == "OK"


@pytest.mark.parametrize("kind", KINDS)
async def test_cancelled_call_ends_its_span_once_and_truthfully(
    channel: grpc.aio.Channel, service: Service, kind: str
) -> None:
    with recorded_telemetry() as recording:
        call = start(channel, kind, ask("sleep 60"), timeout=50)
        await eventually(lambda: engine_of(service).num_running == 1)
        call.cancel()
        await eventually(lambda: len(recording.spans) == 1)
        await eventually(lambda: service.num_running == 0)
        [span] = recording.spans
        assert (span.attributes or {})["rpc.response.status_code"] == "CANCELLED"
        assert span.status.status_code.name == "UNSET"


@pytest.mark.parametrize("kind", KINDS)
async def test_expired_call_ends_its_span_as_deadline_exceeded(
    channel: grpc.aio.Channel, service: Service, kind: str
) -> None:
    with recorded_telemetry() as recording:
        await failure(start(channel, kind, ask("sleep 60"), timeout=0.3))
        await eventually(lambda: len(recording.spans) == 1)
        [span] = recording.spans
        assert (span.attributes or {})["rpc.response.status_code"] == "DEADLINE_EXCEEDED"
        assert (span.attributes or {})["error.type"] == "DEADLINE_EXCEEDED"
        assert span.status.status_code.name == "ERROR"


async def test_refused_call_has_a_span_with_its_reason(channel: grpc.aio.Channel) -> None:
    with recorded_telemetry() as recording:
        await failure(start(channel, "UnaryUnary", ask("raise MODEL_NOT_FOUND")))
        [span] = recording.spans
        assert (span.attributes or {})["aimass.error.reason"] == "MODEL_NOT_FOUND"
        assert span.status.status_code.name == "UNSET", "a caller's mistake is no fault of the server"


async def test_one_log_line_tells_each_call_and_never_its_content(
    channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="aimass.access")
    await replies(start(channel, "UnaryUnary", ask("my secret prompt"), metadata=(("x-request-id", "r-1"),)))
    await failure(start(channel, "UnaryStream", ask("raise MODEL_NOT_FOUND")))
    lines: list[dict[str, Any]] = [r.fields for r in caplog.records if r.name == "aimass.access"]  # type: ignore[attr-defined] # set by the log layer
    assert [(line["method"].split("/")[1], line["status"], line.get("reason")) for line in lines] == [
        ("UnaryUnary", "OK", None),
        ("UnaryStream", "NOT_FOUND", "MODEL_NOT_FOUND"),
    ]
    assert lines[0]["request_id"] == "r-1"
    assert lines[0]["ms"] >= 0
    assert lines[0]["peer"].startswith("ipv4:127.0.0.1")
    assert "secret" not in json.dumps(lines)


async def test_calls_beside_a_failing_one_are_not_lost(channel: grpc.aio.Channel) -> None:
    failing: list[Awaitable[Any]] = [
        failure(start(channel, "UnaryUnary", message)) for message in (ask("raise bug"), b"\xff")
    ]
    results = await asyncio.gather(replies(start(channel, "UnaryUnary", ask("sleep 0.1"))), *failing)
    assert results[0] == ["sleep 0.1"]
