"""Sizes that follow from a budget, and values that are refused."""

from __future__ import annotations

import pytest
from aimass_decoding.config import EngineConfig
from aimass_decoding.runner import DecoderGeometry
from aimass_serving.config import fill
from aimass_serving.errors import BadConfig

GEOMETRY = DecoderGeometry(num_layers=2, num_kv_heads=2, head_dim=4, vocab_size=10, max_positions=4096)
TOKEN_BYTES = 2 * 2 * 2 * 4 * 4


def test_the_budget_decides_how_many_slots_there_are() -> None:
    config = EngineConfig(max_slots=16, max_len=100, kv_budget_bytes=5 * 100 * TOKEN_BYTES)
    assert config.num_slots_of(GEOMETRY) == 5


def test_there_are_never_more_slots_than_asked_for() -> None:
    assert EngineConfig(max_slots=3, max_len=100).num_slots_of(GEOMETRY) == 3


def test_a_budget_below_one_slot_is_refused_with_the_bytes_one_needs() -> None:
    with pytest.raises(BadConfig, match=f"at least {100 * TOKEN_BYTES} bytes"):
        EngineConfig(max_len=100, kv_budget_bytes=100 * TOKEN_BYTES - 1).num_slots_of(GEOMETRY)


@pytest.mark.parametrize(("wanted", "expected"), [(0, 2048), (100, 100), (9999, 4096)])
def test_the_longest_sequence_is_what_was_asked_for_within_the_models_positions(
    wanted: int, expected: int
) -> None:
    assert EngineConfig(max_len=wanted).max_len_of(GEOMETRY) == expected


@pytest.mark.parametrize(
    "setting",
    [
        {"max_slots": 0},
        {"max_len": 1},
        {"kv_budget_bytes": 0},
        {"max_prefill_tokens_per_step": 0},
        {"max_queue_tokens": 0},
        {"max_decode_slowdown": 1.0},
        {"max_prefill_wait_s": 0},
        {"assumed_deadline_s": 0},
    ],
)
def test_a_value_outside_its_range_is_refused_by_name(setting: dict[str, int]) -> None:
    with pytest.raises(BadConfig, match=next(iter(setting))):
        EngineConfig(**setting)


def test_every_setting_can_come_from_the_environment() -> None:
    environ = {"X_MAX_SLOTS": "4", "X_MAX_DECODE_SLOWDOWN": "2.5"}
    assert fill(EngineConfig, environ, prefix="X_") == EngineConfig(max_slots=4, max_decode_slowdown=2.5)
