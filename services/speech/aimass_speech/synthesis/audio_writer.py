"""Samples as they are computed to the bytes of an encoding, at any rate. Knows no voice and no wire.

The bytes of all calls, joined, are one stream. A container's length fields say "unknown": it is not known
when the header is sent.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import soundfile
import soxr
from aimass_serving.errors import InvalidField
from numpy.typing import NDArray

from aimass_speech.audio import AudioEncoding
from aimass_speech.g711 import encode_alaw, encode_mulaw

_UNKNOWN = 0xFFFF_FFFF
_RATES: Mapping[AudioEncoding, Sequence[int]] = {
    AudioEncoding.OGG_OPUS: (8_000, 12_000, 16_000, 24_000, 48_000),
    AudioEncoding.MP3: (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
}
"""Rates of the encodings that do not have every one."""
_CONTAINERS: Mapping[AudioEncoding, tuple[str, str]] = {
    AudioEncoding.FLAC: ("FLAC", "PCM_16"),
    AudioEncoding.OGG_OPUS: ("OGG", "OPUS"),
    AudioEncoding.MP3: ("MP3", "MPEG_LAYER_III"),
}
_CONSTANT_RATE: Mapping[str, Any] = {"bitrate_mode": "CONSTANT", "compression_level": 0.5}
"""64 kilobits a second at 16 kHz, 80 at 24 kHz; without a level libsndfile ignores the mode."""


def output_rate(encoding: AudioEncoding, asked_hz: int, voice_hz: int, *, field: str) -> int:
    """Return the rate of the output: the one asked for, or the voice's own, or the next higher one there is.

    Raises `InvalidField` when the encoding does not have the rate asked for.
    """
    rates = _RATES.get(encoding)
    if rates is None:
        return asked_hz or voice_hz
    if asked_hz and asked_hz not in rates:
        expected = f"for {encoding.name} one of: {', '.join(map(str, rates))}"
        raise InvalidField(field, expected=expected, got=asked_hz)
    return asked_hz or min((rate for rate in rates if rate >= voice_hz), default=rates[-1])


class _Packer(Protocol):
    """Packs 16-bit samples."""

    def pack(self, samples: NDArray[np.int16]) -> bytes:
        """Return the bytes that are complete with these samples [n]."""

    def finish(self) -> bytes:
        """Return the last bytes."""


class AudioWriter:
    """Writes one stream of mono audio. Owned by one request."""

    def __init__(self, encoding: AudioEncoding, *, voice_hz: int, output_hz: int) -> None:
        self._resampler = (
            None if voice_hz == output_hz else soxr.ResampleStream(voice_hz, output_hz, 1, dtype="float32")
        )
        self._packer = _packer(encoding, output_hz)

    def write(self, samples: NDArray[np.float32]) -> bytes:
        """Take samples [n], full scale 1, louder ones cut off; return the bytes that are ready."""
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples)
        return self._packer.pack(_pcm16(samples))

    def finish(self) -> bytes:
        """Return what is left."""
        rest = b""
        if self._resampler is not None:
            tail = self._resampler.resample_chunk(np.zeros(0, np.float32), last=True)
            rest = self._packer.pack(_pcm16(tail))
        return rest + self._packer.finish()


def _pcm16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    return (np.clip(samples, -1, 1) * 32_767).round().astype(np.int16)


def _packer(encoding: AudioEncoding, rate_hz: int) -> _Packer:
    if encoding in (AudioEncoding.WAV, AudioEncoding.AUTO):
        return _Raw(encoding, header=_wav_header(rate_hz))
    return _Container(encoding, rate_hz) if encoding in _CONTAINERS else _Raw(encoding)


def _wav_header(rate_hz: int) -> bytes:
    """Return the header of 16-bit mono samples of unknown number."""
    riff = struct.pack("<4sI4s", b"RIFF", _UNKNOWN, b"WAVE")
    described = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate_hz, 2 * rate_hz, 2, 16)
    return riff + described + struct.pack("<4sI", b"data", _UNKNOWN)


class _Raw:
    """Samples one behind the other, behind a header or none."""

    def __init__(self, encoding: AudioEncoding, *, header: bytes = b"") -> None:
        self._encoding = encoding
        self._header = header

    def pack(self, samples: NDArray[np.int16]) -> bytes:
        header, self._header = self._header, b""
        match self._encoding:
            case AudioEncoding.MULAW:
                return encode_mulaw(samples)
            case AudioEncoding.ALAW:
                return encode_alaw(samples)
            case _:
                return header + samples.astype("<i2").tobytes()

    def finish(self) -> bytes:
        return self._header


class _Container:
    """A container that libsndfile writes."""

    def __init__(self, encoding: AudioEncoding, rate_hz: int) -> None:
        kind, subtype = _CONTAINERS[encoding]
        self._sink = _Sink()
        # A stream of constant rate tells its length without the header that is written last.
        mode = _CONSTANT_RATE if encoding is AudioEncoding.MP3 else {}
        self._file = soundfile.SoundFile(self._sink, "w", rate_hz, 1, subtype, format=kind, **mode)

    def pack(self, samples: NDArray[np.int16]) -> bytes:
        if len(samples):
            self._file.write(samples)
        return self._sink.take()

    def finish(self) -> bytes:
        self._file.close()
        return self._sink.take()


class _Sink(io.RawIOBase):
    """A file whose written bytes are taken away. What is written again over taken bytes is lost.

    libsndfile writes lengths into the header at the end; a stream's header has been sent by then.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._taken = 0
        self._place = 0

    def take(self) -> bytes:
        """Return the bytes written since the last call."""
        taken = bytes(self._held)
        self._taken += len(taken)
        self._held.clear()
        return taken

    def write(self, content: object) -> int:
        data = bytes(content)  # type: ignore[call-overload]  # a buffer, by libsndfile's hand
        start = self._place - self._taken
        fresh = data[-start:] if start < 0 else data
        start = max(start, 0)
        self._held[start : start + len(fresh)] = fresh
        self._place += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        bases = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._taken + len(self._held)}
        self._place = bases[whence] + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True
