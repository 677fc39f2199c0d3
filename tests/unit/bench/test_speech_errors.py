"""Word errors as the speech benchmarks count them."""

import numpy as np
import pytest

from bench.speech_audio import LIBRIVOX, SYNTHETIC, Clip
from bench.speech_runners import error_rates, timed


def clip(source: str, words: str) -> Clip:
    return Clip(source, words, np.zeros(16_000, np.float32), words)


def test_capitals_and_marks_are_no_errors_and_each_source_has_its_own_rate() -> None:
    every = [clip(LIBRIVOX, "he was not ill"), clip(SYNTHETIC, "It's fine."), clip(SYNTHETIC, "So what now?")]
    rates = error_rates(every, ["He was not ILL.", "it is fine", "so what"])
    assert rates[f"wer_{LIBRIVOX}"] == 0
    assert rates[f"wer_{SYNTHETIC}"] == pytest.approx(100 / 6)


def test_a_run_counts_the_seconds_of_its_audio_and_keeps_the_texts() -> None:
    outcome = timed([clip(LIBRIVOX, "one"), clip(LIBRIVOX, "two")], lambda one: one.words)
    assert outcome.units == 2
    assert outcome.answers == ("one", "two")
    assert outcome.details["wer_librivox"] == 0
    assert outcome.details["rtf"] == pytest.approx(outcome.seconds / 2)
