"""Samples to every encoding, and back by the service's own decoder."""

from __future__ import annotations

import numpy as np
import pytest
from aimass_serving.errors import InvalidField
from aimass_speech.audio import AudioEncoding, AudioFormat, decode_audio
from aimass_speech.synthesis.audio_writer import AudioWriter, output_rate
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

ENCODINGS = [encoding for encoding in AudioEncoding if encoding is not AudioEncoding.AUTO]
VOICE_HZ = 22_050


def tone(seconds: float) -> NDArray[np.float32]:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * VOICE_HZ)) / VOICE_HZ)).astype(np.float32)


def written(encoding: AudioEncoding, pieces: list[NDArray[np.float32]], rate_hz: int) -> bytes:
    writer = AudioWriter(encoding, voice_hz=VOICE_HZ, output_hz=rate_hz)
    return b"".join([*(writer.write(piece) for piece in pieces), writer.finish()])


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("asked_hz", [0, 8_000, 48_000])
def test_a_streamed_tone_is_read_back(encoding: AudioEncoding, asked_hz: int) -> None:
    rate_hz = output_rate(encoding, asked_hz, VOICE_HZ, field="sample_rate_hz")
    content = written(encoding, np.array_split(tone(1.5), 9), rate_hz)
    stated = AudioFormat(encoding, rate_hz if encoding.is_raw else 0)
    heard = decode_audio(content, stated, max_audio_s=10)
    padding_s = 0.25 if encoding is AudioEncoding.MP3 else 0.01  # MP3 fills up its frames of 72 ms
    assert 1.49 <= len(heard) / 16_000 <= 1.5 + padding_s
    loudest = np.abs(np.fft.rfft(heard)).argmax() * 16_000 / len(heard)
    assert loudest == pytest.approx(440, abs=2)
    assert heard[4_000:20_000].std() == pytest.approx(0.3 / 2**0.5, rel=0.08)


@given(st.lists(st.integers(0, 700), max_size=6))
def test_bytes_do_not_depend_on_how_the_samples_come(places: list[int]) -> None:
    samples = tone(0.03)
    pieces = np.split(samples, sorted(min(place, len(samples)) for place in places))
    for encoding in (AudioEncoding.WAV, AudioEncoding.MULAW):
        assert written(encoding, pieces, 16_000) == written(encoding, [samples], 16_000)


def test_loud_samples_are_cut_off_and_not_turned_over() -> None:
    content = written(AudioEncoding.PCM_S16LE, [np.array([2, -2, 0], np.float32)], VOICE_HZ)
    assert np.frombuffer(content, "<i2").tolist() == [32_767, -32_767, 0]


def test_a_rate_that_the_encoding_lacks_is_refused() -> None:
    with pytest.raises(InvalidField, match=r"options\.sample_rate_hz: expected for OGG_OPUS one of: 8000"):
        output_rate(AudioEncoding.OGG_OPUS, 44_100, VOICE_HZ, field="options.sample_rate_hz")
    assert output_rate(AudioEncoding.OGG_OPUS, 0, VOICE_HZ, field="") == 24_000
