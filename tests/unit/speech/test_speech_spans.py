"""Stretches of speech, held against Silero's own function on random probabilities."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aimass_exporters.sources.packages import fetch_package, pinned_packages
from aimass_serving.errors import InvalidField
from aimass_speech.speech_spans import (
    DetectionOptions,
    SpeechSpan,
    SpeechStarted,
    SpeechTracker,
    speech_spans,
)
from aimass_speech.vad import DetectorShape, FrameCutter

FRAME, RATE = 512, 16_000


@pytest.fixture(scope="module")
def oracle() -> Callable[..., list[dict[str, int]]]:
    """`get_speech_timestamps_from_probs` of the pinned silero-vad."""
    file: Path = fetch_package(pinned_packages()["silero-vad"]) / "silero_vad/utils_vad.py"
    spec = importlib.util.spec_from_file_location("silero_utils_vad", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[..., list[dict[str, int]]] = module.get_speech_timestamps_from_probs
    return function


def wandering(seed: int, count: int = 400) -> list[float]:
    """Probabilities that stay high or low for a while."""
    rng = np.random.default_rng(seed)
    levels = np.repeat(rng.random(count // 5), rng.integers(1, 12, count // 5))[:count]
    return [float(p) for p in np.clip(levels + rng.normal(0, 0.05, len(levels)), 0, 1)]


@pytest.mark.parametrize("seed", range(40))
def test_spans_are_those_of_silero(seed: int, oracle: Callable[..., list[dict[str, int]]]) -> None:
    rng = np.random.default_rng(seed)
    probabilities = wandering(seed)
    options = DetectionOptions(
        threshold=float(rng.uniform(0.2, 0.8)),
        min_speech_s=int(rng.integers(0, 500)) / 1000,
        min_silence_s=int(rng.integers(0, 400)) / 1000,
        padding_s=int(rng.integers(0, 200)) / 1000,
    )
    num_samples = len(probabilities) * FRAME - int(rng.integers(0, FRAME))
    got = speech_spans(
        probabilities, options, num_samples=num_samples, frame_samples=FRAME, sample_rate_hz=RATE
    )
    expected = oracle(
        probabilities,
        threshold=options.threshold,
        min_speech_duration_ms=round(options.min_speech_s * 1000),
        min_silence_duration_ms=round(options.min_silence_s * 1000),
        speech_pad_ms=round(options.padding_s * 1000),
        audio_length_samples=num_samples,
    )
    assert [(span.start, span.end) for span in got] == [(s["start"], s["end"]) for s in expected]


@pytest.mark.parametrize("seed", range(10))
def test_a_start_is_told_before_its_end_and_only_for_speech_that_counts(seed: int) -> None:
    tracker = SpeechTracker(DetectionOptions(padding_s=0), frame_samples=FRAME, sample_rate_hz=RATE)
    probabilities = wandering(seed)
    events: list[Any] = [event for p in probabilities for event in tracker.feed(p)]
    events += tracker.finish(len(probabilities) * FRAME)
    kinds = [type(event) for event in events]
    assert kinds == [SpeechStarted, SpeechSpan] * (len(events) // 2)
    for started, span in zip(events[::2], events[1::2], strict=True):
        assert started.at == span.start
        assert span.end - span.start > 0.25 * RATE


@pytest.mark.parametrize("piece", [1, 100, 511, 512, 513, 5000])
def test_frames_are_the_same_however_the_audio_is_cut(piece: int) -> None:
    samples = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    whole, cut = FrameCutter(DetectorShape()), FrameCutter(DetectorShape())
    expected = np.concatenate([whole.feed(samples), whole.finish()])
    pieces = [cut.feed(samples[start : start + piece]) for start in range(0, len(samples), piece)]
    assert expected.shape == (10, 576)
    np.testing.assert_array_equal(np.concatenate([*pieces, cut.finish()]), expected)
    np.testing.assert_array_equal(expected[1, :64], expected[0, -64:])


@pytest.mark.parametrize(
    "bad", [{"threshold": 0.0}, {"threshold": 1.0}, {"min_speech_s": -1}, {"padding_s": 61}]
)
def test_options_outside_their_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InvalidField, match=r"options\."):
        DetectionOptions(**bad)
