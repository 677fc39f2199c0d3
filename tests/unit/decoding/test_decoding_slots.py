"""Slots are handed out lowest first, and none is lost."""

from __future__ import annotations

from aimass_decoding.slots import Slots
from hypothesis import given
from hypothesis import strategies as st


def test_the_lowest_free_slot_is_taken_first() -> None:
    slots = Slots(4)
    assert [slots.acquire() for _ in range(3)] == [0, 1, 2]
    slots.release(1)
    slots.release(0)
    assert slots.acquire() == 0


def test_high_water_falls_over_holes_when_the_highest_slot_is_freed() -> None:
    slots = Slots(4)
    for _ in range(4):
        slots.acquire()
    slots.release(2)
    assert slots.high_water == 4
    slots.release(3)
    assert slots.high_water == 2


def test_rows_are_mostly_holes_when_at_least_half_are_wasted() -> None:
    slots = Slots(4)
    for _ in range(4):
        slots.acquire()
    slots.release(0)
    assert not slots.is_mostly_holes
    slots.release(1)
    assert slots.is_mostly_holes
    slots.release(2)
    slots.release(3)
    assert not slots.is_mostly_holes


@given(st.lists(st.integers(0, 7)))
def test_counts_and_high_water_always_describe_the_taken_slots(actions: list[int]) -> None:
    slots, taken = Slots(5), set[int]()
    for action in actions:
        if action in taken:
            slots.release(action)
            taken.remove(action)
        elif slots.num_free:
            slot = slots.acquire()
            assert slot == min(set(range(5)) - taken)
            taken.add(slot)
    assert slots.num_taken == len(taken)
    assert slots.num_free == 5 - len(taken)
    assert slots.high_water == max(taken, default=-1) + 1
