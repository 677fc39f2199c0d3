"""What is known of a call, without a connection."""

import asyncio
import time

import pytest
from aimass_serving.call import Call, current_call
from aimass_serving.errors import InvalidField
from aimass_serving.interceptors.errors import translate
from aimass_serving.request_context import request_context


class FakeGrpcContext:
    def __init__(self, remaining_s: float | None = None) -> None:
        self._remaining_s = remaining_s

    def time_remaining(self) -> float | None:
        return self._remaining_s


def call(*, deadline_in_s: float | None = None, age_s: float = 0.0, **metadata: str) -> Call:
    now_s = time.monotonic()
    deadline_s = None if deadline_in_s is None else now_s + deadline_in_s
    named = {name.replace("_", "-"): value for name, value in metadata.items()}
    return Call("a/B", named, "ipv4:1", received_ns=1, received_s=now_s - age_s, deadline_s=deadline_s)


def test_caller_names_the_request_in_metadata_or_it_gets_a_name() -> None:
    assert call(x_request_id="mine").request_id == "mine"
    assert call(x_request_id="bad\nname").request_id not in ("bad\nname", "")
    assert call().request_id != call().request_id


async def test_name_in_the_request_goes_before_all_and_reaches_the_log() -> None:
    served = call(x_request_id="from metadata", deadline_in_s=5)
    current_call.set(served)
    assert request_context(FakeGrpcContext()).request_id == "from metadata"
    context = request_context(FakeGrpcContext(), "from the request")
    assert context.request_id == served.request_id == "from the request"
    assert context.deadline_s == served.deadline_s
    assert context.received_ns == served.received_ns


@pytest.mark.parametrize(
    "name", ["x" * 129, " padded", "padded ", "tab\tbed", "naïve", "line\nbreak", "\x7f"]
)
def test_name_that_could_break_a_log_is_refused(name: str) -> None:
    with pytest.raises(InvalidField, match="request_id: expected 1 to 128 printable ASCII characters"):
        request_context(FakeGrpcContext(), name)


@pytest.mark.parametrize("name", ["x", "x" * 128, "a b", "~!"])
def test_printable_name_is_taken(name: str) -> None:
    assert request_context(FakeGrpcContext(), name).request_id == name


def test_deadline_is_on_the_monotonic_clock() -> None:
    before_s = time.monotonic()
    deadline_s = request_context(FakeGrpcContext(5.0)).deadline_s
    assert deadline_s is not None
    assert before_s + 5 <= deadline_s <= time.monotonic() + 5
    assert request_context(FakeGrpcContext()).deadline_s is None


@pytest.mark.parametrize(
    ("deadline_in_s", "age_s", "status"),
    [
        (None, 1.0, "CANCELLED"),
        (5.0, 1.0, "CANCELLED"),
        (-0.1, 1.0, "DEADLINE_EXCEEDED"),
        (0.08, 9.9, "DEADLINE_EXCEEDED"),
        (60.0, 9.9, "CANCELLED"),
    ],
    ids=["no-deadline", "early", "past", "rounded-up-by-the-transport", "long-before"],
)
async def test_cancel_and_deadline_are_told_apart_and_pass(
    deadline_in_s: float | None, age_s: float, status: str
) -> None:
    served = call(deadline_in_s=deadline_in_s, age_s=age_s)

    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await translate(served, None, cancelled)  # type: ignore[arg-type] # the context is not touched
    assert served.outcome.status_code == status
