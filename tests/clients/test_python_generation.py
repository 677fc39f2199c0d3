"""The generation client against a scripted service, over real gRPC."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from aimass import FinishReason, GenerationClient, GenerationOptions
from aimass.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RpcError,
    ServerFault,
    Unavailable,
    Unimplemented,
)
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.testing import (
    Fail,
    FakeGenerationService,
    Hang,
    Script,
    delta_event,
    finish_event,
    prompt_info_event,
    running_fakes,
)


@contextmanager
def client_of(fake: FakeGenerationService) -> Iterator[GenerationClient]:
    with running_fakes(fake) as address, GenerationClient(address) as client:
        yield client


def endless() -> FakeGenerationService:
    return FakeGenerationService(
        generate=[[prompt_info_event(), delta_event("a"), Hang()]], complete=[[Hang()]]
    )


def test_the_deltas_joined_are_the_text() -> None:
    fake = FakeGenerationService.saying("naïve 🙂 日本語 text")
    with client_of(fake) as client, client.generate("Hi", model="m") as stream:
        pieces = [delta.text for delta in stream]

        assert "".join(pieces) == stream.text == client.complete("Hi", model="m").text
        assert stream.finish.reason is FinishReason.EOS
        assert stream.finish.usage.output_tokens == len(pieces) == 4


def test_prompt_info_is_known_before_the_first_delta() -> None:
    with client_of(endless()) as client, client.generate("Hi", model="m") as stream:
        assert stream.prompt_info.prompt_tokens == 3
        assert stream.text == ""
        assert next(stream).text == "a"


def test_finish_is_not_known_before_the_end() -> None:
    with client_of(endless()) as client, client.generate("Hi", model="m") as stream:
        next(stream)
        with pytest.raises(RuntimeError, match="read all deltas"):
            _ = stream.finish


def test_a_stop_string_is_reported() -> None:
    script = [
        prompt_info_event(),
        finish_event(reason=pb.FINISH_REASON_STOP_STRING, stop_string="END", output_tokens=1),
    ]
    with client_of(FakeGenerationService(generate=[script])) as client:
        with client.generate("Hi", model="m") as stream:
            assert list(stream) == []

        assert (stream.finish.reason, stream.finish.stop_string) == (FinishReason.STOP_STRING, "END")
        assert stream.finish.stop_token_id is None


def test_a_finish_reason_newer_than_the_client_does_not_break_it() -> None:
    script = [prompt_info_event(), finish_event(reason=77)]  # type: ignore[arg-type]
    with (
        client_of(FakeGenerationService(generate=[script])) as client,
        client.generate("Hi", model="m") as stream,
    ):
        assert list(stream) == []
        assert stream.finish.reason is FinishReason.UNSPECIFIED


def test_the_request_reaches_the_service_as_it_was_meant() -> None:
    fake = FakeGenerationService.saying("ok")
    with client_of(fake) as client:
        client.complete([("user", "Hi")], model="m@2", options=GenerationOptions(seed=7, request_id="r"))

    (request,) = fake.calls[0].requests
    assert isinstance(request, pb.CompleteRequest)
    assert (request.model, request.sampling.seed, request.request_id) == ("m@2", 7, "r")
    assert [(m.role, m.content) for m in request.chat.messages] == [("user", "Hi")]


def test_tokens_come_and_go() -> None:
    with client_of(FakeGenerationService.saying("two words")) as client:
        assert client.tokenize("two words", model="m") == (0, 1)
        assert client.tokenize([("user", "Hi")], model="m") == (0, 1)
        assert client.detokenize([0, 1], model="m") == "two words"


def test_leaving_the_with_block_cancels_the_call() -> None:
    fake = endless()
    with client_of(fake) as client:
        with client.generate("Hi", model="m") as stream:
            next(stream)

        assert fake.calls[0].was_cancelled


def test_an_exception_in_the_reader_cancels_the_call() -> None:
    fake = endless()
    with client_of(fake) as client:
        with pytest.raises(ZeroDivisionError), client.generate("Hi", model="m") as stream:
            _ = len(next(stream).text) / 0

        assert fake.calls[0].was_cancelled


def test_a_stream_that_nobody_holds_any_more_cancels_its_call() -> None:
    fake = endless()
    with client_of(fake) as client:
        for _ in client.generate("Hi", model="m"):
            break
        gc.collect()

        assert fake.calls[0].was_cancelled


def test_closing_from_another_thread_ends_the_reader_with_cancelled() -> None:
    fake = endless()
    with client_of(fake) as client:
        stream = client.generate("Hi", model="m")
        next(stream)
        threading.Timer(0.05, stream.close).start()

        with pytest.raises(Cancelled):
            next(stream)
        assert fake.calls[0].was_cancelled


def test_a_stream_read_to_its_end_is_not_cancelled() -> None:
    fake = FakeGenerationService.saying("all of it")
    with client_of(fake) as client:
        with client.generate("Hi", model="m") as stream:
            list(stream)

        assert not fake.calls[0].was_cancelled


def test_every_call_has_a_deadline_unless_told_otherwise() -> None:
    fake = FakeGenerationService.saying("ok")
    with client_of(fake) as client:
        client.complete("Hi", model="m")
        list(client.generate("Hi", model="m"))
        client.complete("Hi", model="m", deadline_s=5)

    assert [round(call.deadline_s or -1, -1) for call in fake.calls[:2]] == [60, 600]
    assert 3 < (fake.calls[2].deadline_s or -1) <= 5.5


def test_a_passed_deadline_is_an_error_of_its_own_and_ends_the_call() -> None:
    fake = endless()
    with client_of(fake) as client:
        with pytest.raises(DeadlineExceeded) as raised:
            client.complete("Hi", model="m", deadline_s=0.1)
        assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED

        with pytest.raises(DeadlineExceeded), client.generate("Hi", model="m", deadline_s=0.3) as stream:
            list(stream)
        assert stream.text == "a"
        assert all(call.was_cancelled for call in fake.calls)


def test_an_error_of_the_service_arrives_with_all_it_said() -> None:
    fail = Fail(
        code=grpc.StatusCode.INVALID_ARGUMENT,
        reason="INVALID_FIELD",
        message="sampling.top_p: expected a number above 0, up to 1, got 2.0",
        violations={"sampling.top_p": "expected a number above 0, up to 1, got 2.0"},
        request_id="r-7",
    )
    with client_of(FakeGenerationService(generate=[[fail]], complete=[[fail]])) as client:
        with pytest.raises(InvalidRequest) as unary:
            client.complete("Hi", model="m")
        with pytest.raises(InvalidRequest) as streamed:
            list(client.generate("Hi", model="m"))

    for error in (unary.value, streamed.value):
        assert error.violations[0].field == "sampling.top_p"
        assert error.request_id == "r-7"
        assert str(error).startswith("INVALID_FIELD: sampling.top_p: expected")


def test_an_error_after_some_text_keeps_the_text() -> None:
    script: Script = [prompt_info_event(), delta_event("so far"), Fail(code=grpc.StatusCode.INTERNAL)]
    with (
        client_of(FakeGenerationService(generate=[script])) as client,
        client.generate("Hi", model="m") as stream,
    ):
        with pytest.raises(ServerFault):
            list(stream)
        assert stream.text == "so far"


def test_a_stream_without_its_last_message_is_an_error() -> None:
    script = [prompt_info_event(), delta_event("cut")]
    with client_of(FakeGenerationService(generate=[script, []])) as client:
        with pytest.raises(ServerFault, match="without its last message"):
            list(client.generate("Hi", model="m"))
        with pytest.raises(ServerFault, match="without its last message"):
            _ = client.generate("Hi", model="m").prompt_info


def test_an_unavailable_service_is_asked_again_for_unary_calls() -> None:
    unavailable: Script = [Fail(code=grpc.StatusCode.UNAVAILABLE, reason="DRAINING")]
    whole: Script = [pb.CompleteResponse(text="at last")]
    fake = FakeGenerationService(complete=[unavailable, unavailable, whole], generate=[unavailable])
    with client_of(fake) as client:
        assert client.complete("Hi", model="m").text == "at last"
        assert len(fake.calls) == 3

        with pytest.raises(Unavailable):
            list(client.generate("Hi", model="m"))
        assert len(fake.calls) == 4, "a stream is never tried twice"


def test_overload_is_told_to_the_caller_and_not_retried_behind_their_back() -> None:
    full = Fail(code=grpc.StatusCode.RESOURCE_EXHAUSTED, reason="OVERLOADED", retry_after_s=0.5)
    fake = FakeGenerationService(complete=[[full]])
    with client_of(fake) as client:
        with pytest.raises(Overloaded) as raised:
            client.complete("Hi", model="m")

        assert raised.value.retry_after_s == 0.5
        assert len(fake.calls) == 1


def test_the_pushback_of_the_service_sets_when_it_is_asked_again() -> None:
    later = Fail(code=grpc.StatusCode.UNAVAILABLE, reason="MODEL_NOT_READY", retry_after_s=0.6)
    fake = FakeGenerationService(complete=[[later], [pb.CompleteResponse(text="ready")]])
    with client_of(fake) as client:
        client.complete("Hi", model="m", deadline_s=30)

    first, second = fake.calls
    assert second.arrived_s - first.arrived_s >= 0.55, "without pushback the first retry comes within 0.1 s"


def test_nobody_at_the_address_is_unavailable_and_named() -> None:
    with GenerationClient("127.0.0.1:1") as client, pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        client.complete("Hi", model="m")


def test_another_service_at_the_address_is_told_apart() -> None:
    with running_fakes() as address, GenerationClient(address) as client, pytest.raises(Unimplemented):
        client.complete("Hi", model="m")


def test_a_closed_client_refuses_calls() -> None:
    with client_of(FakeGenerationService.saying("x")) as client:
        client.close()
        with pytest.raises(ValueError, match="closed"):
            client.complete("Hi", model="m")


def test_every_error_can_be_caught_as_one_kind() -> None:
    with client_of(FakeGenerationService()) as client, pytest.raises(RpcError):
        client.tokenize("Hi", model="m")
