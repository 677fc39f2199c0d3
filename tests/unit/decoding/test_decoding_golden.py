"""A golden prompt that gives other numbers, or does not run, makes a bad bundle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from aimass_decoding.golden import replay_golden
from aimass_decoding.runner import DecoderRunner
from aimass_decoding.testing import (
    ADAPTER_STRIDE,
    FakeDecoder,
    LogitsOf,
    fake_geometry,
    hashed_logits,
)
from aimass_serving.errors import BadBundle
from numpy.typing import NDArray

LOGITS = hashed_logits()


def golden(**changes: Any) -> dict[str, NDArray[Any]]:
    right = {"prompt_ids": np.arange(1, 6), "logits": LOGITS((1, 2, 3, 4, 5)), "tolerance": np.float64(1e-3)}
    return {name: np.asarray(value) for name, value in (right | changes).items()}


def runner(logits_of: LogitsOf = LOGITS) -> DecoderRunner:
    return DecoderRunner(FakeDecoder(logits_of).session(), fake_geometry(), max_slots=2, max_len=16)


def test_the_right_numbers_pass() -> None:
    replay_golden(runner(), golden(), bundle="m@1")


def test_a_prompt_of_one_token_passes() -> None:
    replay_golden(runner(), golden(prompt_ids=[3], logits=LOGITS((3,))), bundle="m@1")


def test_a_difference_above_the_tolerance_names_the_bundle_and_the_difference() -> None:
    with pytest.raises(BadBundle, match=r"m@1.*differ by 0\.0[12]"):
        replay_golden(runner(), golden(logits=LOGITS((1, 2, 3, 4, 5)) + np.float32(0.015)), bundle="m@1")


def test_logits_that_are_not_numbers_do_not_pass() -> None:
    with pytest.raises(BadBundle, match="differ by nan"):
        replay_golden(runner(lambda tokens: np.full(32, np.nan, np.float32)), golden(), bundle="m@1")


def test_a_wrong_decode_step_does_not_pass_although_the_prompt_does() -> None:
    runs: list[int] = []

    def wrong_from_the_third_run_on(tokens: tuple[int, ...]) -> NDArray[np.float32]:
        runs.append(len(tokens))
        return LOGITS(tokens) + np.float32(len(runs) == 3)

    with pytest.raises(BadBundle, match="differ by 1"):
        replay_golden(runner(wrong_from_the_third_run_on), golden(), bundle="m@1")


@pytest.mark.parametrize("changes", [{"logits": np.zeros(5)}, {"prompt_ids": np.zeros(99, np.int64)}])
def test_golden_data_that_does_not_fit_the_graph_is_a_bad_bundle(changes: dict[str, Any]) -> None:
    with pytest.raises(BadBundle):
        replay_golden(runner(), golden(**changes), bundle="m@1")


def test_golden_data_without_logits_is_a_bad_bundle() -> None:
    with pytest.raises(BadBundle, match="does not run"):
        replay_golden(runner(), {"prompt_ids": np.array([1])}, bundle="m@1")


def golden_with(*adapters: int) -> dict[str, NDArray[Any]]:
    """Return what the prompt gives with each of these adapters, after what it gives without one."""
    prompts = [tuple(token + ADAPTER_STRIDE * adapter for token in range(1, 6)) for adapter in adapters]
    logits, tolerances = np.stack([LOGITS(prompt) for prompt in prompts]), np.full(len(adapters), 1e-3)
    return golden(adapter_logits=logits, adapter_tolerances=tolerances)


def adapted_runner() -> DecoderRunner:
    geometry = fake_geometry(num_adapters=2)
    return DecoderRunner(FakeDecoder(LOGITS).session(), geometry, max_slots=2, max_len=16)


def test_the_golden_prompt_is_replayed_with_every_adapter() -> None:
    replay_golden(adapted_runner(), golden_with(1, 2), bundle="m@1", num_adapters=2)
    with pytest.raises(BadBundle, match="differ"):
        replay_golden(adapted_runner(), golden_with(1, 1), bundle="m@1", num_adapters=2)


@pytest.mark.parametrize("data", [golden_with(1), golden_with(1, 2, 2), golden()])
def test_golden_data_of_other_adapters_is_a_bad_bundle(data: dict[str, NDArray[Any]]) -> None:
    with pytest.raises(BadBundle, match="adapter"):
        replay_golden(adapted_runner(), data, bundle="m@1", num_adapters=2)
