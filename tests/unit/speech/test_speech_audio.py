"""Audio of every kind to samples, and every way in which it can be wrong."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
import soundfile
from aimass_serving.errors import InvalidField
from aimass_speech.audio import (
    AudioEncoding,
    AudioFormat,
    AudioTooLong,
    EmptyAudio,
    MislabelledAudio,
    StreamDecoder,
    TruncatedAudio,
    WrongSampleRate,
    decode_audio,
)
from aimass_speech.features import Behind, LogMel, MelShape, mel_filters
from aimass_speech.g711 import decode_alaw, decode_mulaw, encode_alaw, encode_mulaw
from faster_whisper.feature_extractor import FeatureExtractor
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

RATE = 16_000
CONTAINERS = [
    ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("WAV", "ALAW"),
    ("FLAC", "PCM_16"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"),
]  # fmt: skip


def tone(rate: int, seconds: float = 1.0) -> NDArray[np.float32]:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def packed(samples: NDArray[np.float32], rate: int, container: str, subtype: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


def decoded(content: bytes, audio_format: AudioFormat | None = None) -> NDArray[np.float32]:
    return decode_audio(content, audio_format or AudioFormat(), max_audio_s=60)


@pytest.mark.parametrize(("container", "subtype"), CONTAINERS)
@pytest.mark.parametrize("rate", [8000, 48_000])
def test_every_container_gives_the_tone_at_16_khz(container: str, subtype: str, rate: int) -> None:
    samples = decoded(packed(np.stack([tone(rate)] * 2, axis=1), rate, container, subtype))
    spectrum = np.abs(np.fft.rfft(samples[2000:14_000]))
    assert len(samples) == pytest.approx(RATE, abs=1200)  # MP3 has a lead-in
    assert spectrum.argmax() * RATE / 12_000 == pytest.approx(440, abs=2)
    assert np.abs(samples[2000:14_000]).max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("container", "subtype"), CONTAINERS)
def test_half_a_file_is_refused(container: str, subtype: str) -> None:
    content = packed(tone(RATE, 3.0), RATE, container, subtype)
    with pytest.raises((TruncatedAudio, MislabelledAudio)):
        decoded(content[: len(content) // 2])


def test_g711_is_what_libsndfile_makes_of_it() -> None:
    codes = bytes(range(256))
    for subtype, decode in (("ULAW", decode_mulaw), ("ALAW", decode_alaw)):
        read, _ = soundfile.read(
            io.BytesIO(codes), samplerate=8000, channels=1, format="RAW", subtype=subtype, dtype="float32"
        )
        np.testing.assert_allclose(decode(codes), read, atol=1e-6)


@given(st.binary(min_size=1, max_size=200))
def test_g711_codes_survive_a_round_trip(codes: bytes) -> None:
    for decode, encode in ((decode_mulaw, encode_mulaw), (decode_alaw, encode_alaw)):
        samples = (decode(codes) * 32_768).astype(np.int16)
        np.testing.assert_array_equal(decode(encode(samples)), decode(codes))


@pytest.mark.parametrize("encoding", [AudioEncoding.PCM_S16LE, AudioEncoding.MULAW, AudioEncoding.ALAW])
@pytest.mark.parametrize("rate", [8000, RATE, 44_100])
@pytest.mark.parametrize("piece", [1, 333, 4096])
def test_streamed_samples_are_those_of_the_whole(encoding: AudioEncoding, rate: int, piece: int) -> None:
    raw = (tone(rate, 0.3) * 32_767).astype("<i2")
    stereo = np.repeat(raw, 2)
    encode = {AudioEncoding.MULAW: encode_mulaw, AudioEncoding.ALAW: encode_alaw}.get(encoding)
    content = encode(stereo) if encode else stereo.tobytes()
    audio_format = AudioFormat(encoding, rate, 2)
    decoder = StreamDecoder(audio_format)
    pieces = [decoder.feed(content[start : start + piece]) for start in range(0, len(content), piece)]
    streamed = np.concatenate([*pieces, decoder.finish()])
    np.testing.assert_allclose(streamed, decoded(content, audio_format), atol=1e-6)


def test_what_is_wrong_is_named() -> None:
    wav = packed(tone(RATE), RATE, "WAV", "PCM_16")
    with pytest.raises(EmptyAudio):
        decoded(b"")
    with pytest.raises(EmptyAudio):
        decoded(packed(np.zeros(0, np.float32), RATE, "WAV", "PCM_16"))
    with pytest.raises(MislabelledAudio, match="FLAC"):
        decoded(wav, AudioFormat(AudioEncoding.FLAC))
    with pytest.raises(WrongSampleRate, match="16000"):
        decoded(wav, AudioFormat(sample_rate_hz=8000))
    with pytest.raises(MislabelledAudio, match="num_channels"):
        decoded(wav, AudioFormat(num_channels=2))
    with pytest.raises(TruncatedAudio, match="whole samples"):
        decoded(b"\0\0\0", AudioFormat(AudioEncoding.PCM_S16LE, RATE))
    with pytest.raises(MislabelledAudio, match="numbers"):
        decoded(packed(np.array([0, np.nan, 1], np.float32), RATE, "WAV", "FLOAT"))
    with pytest.raises(InvalidField, match="sample_rate_hz"):
        AudioFormat(AudioEncoding.PCM_S16LE)
    with pytest.raises(InvalidField, match="num_channels"):
        AudioFormat(num_channels=9)
    with pytest.raises(InvalidField, match="raw samples"):
        StreamDecoder(AudioFormat(AudioEncoding.WAV))


def test_audio_that_is_too_long_is_refused_before_it_is_allocated() -> None:
    six_hours = packed(np.zeros(6 * 3600 * 8000, np.float32), 8000, "FLAC", "PCM_16")
    tracemalloc.start()
    try:
        with pytest.raises(AudioTooLong, match="3600 seconds"):
            decode_audio(six_hours, AudioFormat(), max_audio_s=3600)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * 2**20


@given(
    st.binary(max_size=400),
    st.sampled_from([b"", b"RIFF\0\0\0\0WAVE", b"fLaC", b"OggS", b"ID3", b"\xff\xfb\x90"]),
)
def test_no_bytes_do_more_than_be_refused(content: bytes, magic: bytes) -> None:
    try:
        samples = decoded(magic + content)
    except InvalidField:
        return
    assert np.isfinite(samples).all()


def test_spectrogram_is_that_of_transformers() -> None:
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor()
    rng = np.random.default_rng(0)
    log_mel = LogMel(MelShape())
    for samples in (tone(RATE, 3), rng.normal(scale=0.1, size=480_000).astype(np.float32)):
        expected = extractor(samples, sampling_rate=RATE, return_tensors="np").input_features[0]
        np.testing.assert_allclose(log_mel(samples, num_samples=480_000), expected, atol=1e-4)
    np.testing.assert_allclose(mel_filters(MelShape()), extractor.mel_filters, atol=1e-6)


@pytest.mark.parametrize("num_samples", [100, 159, 160, 16_000, 64_123, 479_999, 480_000])
def test_the_last_window_of_a_recording_is_that_of_faster_whisper(num_samples: int) -> None:
    """Columns that audio fills, then zeros; at least one, where faster-whisper reads nothing at all."""
    samples = np.random.default_rng(1).normal(scale=0.1, size=num_samples).astype(np.float32)
    mel = LogMel(MelShape())(samples, num_samples=480_000, behind=Behind.ZEROS)
    num_columns = num_samples // 160
    expected = FeatureExtractor()(samples)[:, :num_columns]
    np.testing.assert_allclose(mel[:, :num_columns], expected, atol=1e-4)
    assert not mel[:, max(1, num_columns) :].any()
