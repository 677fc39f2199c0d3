"""What a call made on behalf of another may take."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from aimass import downstream_deadline_s
from aimass.errors import DeadlineExceeded


@dataclass
class Incoming:
    remaining_s: float | None

    def time_remaining(self) -> float | None:
        return self.remaining_s


def test_a_margin_is_kept_for_the_way_back() -> None:
    assert downstream_deadline_s(Incoming(2.0), cap_s=10, margin_s=0.5) == 1.5


def test_the_cap_holds_when_the_caller_has_more_time_or_no_deadline() -> None:
    assert downstream_deadline_s(Incoming(100.0), cap_s=10) == 10
    assert downstream_deadline_s(Incoming(None), cap_s=10) == 10


@pytest.mark.parametrize("remaining_s", [0.5, 0.1, 0.0, -1.0])
def test_a_call_without_time_left_is_not_made(remaining_s: float) -> None:
    with pytest.raises(DeadlineExceeded):
        downstream_deadline_s(Incoming(remaining_s), cap_s=10, margin_s=0.5)
