"""Whatever audio a caller sends to mono samples at 16 kHz, or an error that says what is wrong with it.

Must not know models or the wire. Nothing is allocated for audio that is longer than allowed.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import soundfile
import soxr
from aimass_serving.errors import InvalidField
from numpy.typing import NDArray

from aimass_speech.g711 import decode_alaw, decode_mulaw

SAMPLE_RATE_HZ = 16_000
"""Rate of everything inside the service but synthesis."""
MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 192_000
MAX_CHANNELS = 8
_BLOCK_SAMPLES = 2**20
"""Samples of all channels that are decoded at a time."""
_UNKNOWN_LENGTHS = (0, 0xFFFF_FFFF)
"""Lengths that writers of WAV streams put into the header when they do not know the real one."""


_UNKNOWN_FRAMES = 2**63 - 1
"""What the decoder says of a FLAC stream whose writer did not know its length."""
_MP3_HEADER_BYTES, _MP3_FRAME_BYTES = 64 * 2**10, 1441
"""Where the first frame is looked for behind its tags; the longest frame there can be."""


class AudioEncoding(StrEnum):
    """A container or a raw sample format."""

    AUTO = "auto"
    """Recognised from the first bytes."""
    WAV = "wav"
    PCM_S16LE = "pcm_s16le"
    MULAW = "mulaw"
    ALAW = "alaw"
    FLAC = "flac"
    OGG_OPUS = "ogg_opus"
    MP3 = "mp3"

    @property
    def is_raw(self) -> bool:
        """Whether it is samples without a header."""
        return self in _SAMPLE_BYTES


_SAMPLE_BYTES = {AudioEncoding.PCM_S16LE: 2, AudioEncoding.MULAW: 1, AudioEncoding.ALAW: 1}


class EmptyAudio(InvalidField):
    """There is not one sample."""

    def __init__(self, field: str) -> None:
        super().__init__(field, expected="audio with at least one sample", got="none")


class TruncatedAudio(InvalidField):
    """The audio ends before its header says, or inside a sample."""

    def __init__(self, field: str, *, detail: str) -> None:
        super().__init__(field, expected="the whole of the audio", got=f"a part: {detail}")


class MislabelledAudio(InvalidField):
    """The bytes are not what the format says, or no audio this server knows."""


class WrongSampleRate(InvalidField):
    """The header's rate is not the one the request states."""


class AudioTooLong(InvalidField):
    """The audio lasts longer than the server takes."""

    def __init__(self, field: str, *, max_audio_s: float) -> None:
        super().__init__(field, expected=f"at most {max_audio_s:g} seconds of audio", got="more")


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """How a caller says its audio is packed. Construction checks what can be checked without the audio."""

    encoding: AudioEncoding = AudioEncoding.AUTO
    sample_rate_hz: int = 0
    """Samples a second of each channel; 0 leaves it to the header."""
    num_channels: int = 0
    """Interleaved channels; 0 leaves it to the header, or is 1 for raw samples."""
    field: str = "format"
    """How the wire names it, for error messages."""

    def __post_init__(self) -> None:
        """Refuse rates and channels outside their range, and raw samples without a rate."""
        needs_rate = self.encoding.is_raw
        if (needs_rate or self.sample_rate_hz) and not MIN_RATE_HZ <= self.sample_rate_hz <= MAX_RATE_HZ:
            expected = f"{MIN_RATE_HZ} to {MAX_RATE_HZ}" + (", required for raw samples" * needs_rate)
            raise InvalidField(f"{self.field}.sample_rate_hz", expected=expected, got=self.sample_rate_hz)
        if not 0 <= self.num_channels <= MAX_CHANNELS:
            raise InvalidField(
                f"{self.field}.num_channels", expected=f"1 to {MAX_CHANNELS}", got=self.num_channels
            )

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of all channels; raw formats only."""
        return _SAMPLE_BYTES[self.encoding] * (self.num_channels or 1)


def decode_audio(
    content: bytes, audio_format: AudioFormat, *, max_audio_s: float, field: str = "audio"
) -> NDArray[np.float32]:
    """Return mono samples [n] at 16 kHz, full scale 1.

    Raises `EmptyAudio`, `TruncatedAudio`, `MislabelledAudio`, `WrongSampleRate`, `AudioTooLong`.
    """
    if not content:
        raise EmptyAudio(field)
    if audio_format.encoding.is_raw:
        samples = _decode_raw(content, audio_format, max_audio_s=max_audio_s, field=field)
    else:
        _check_container(content, audio_format.encoding, field)
        samples = _decode_container(content, audio_format, max_audio_s=max_audio_s, field=field)
    if not len(samples):
        raise EmptyAudio(field)
    if not np.isfinite(samples).all():
        raise MislabelledAudio(field, expected="samples that are numbers", got="infinite ones, or none")
    return samples


class StreamDecoder:
    """Raw samples as they arrive to mono samples at 16 kHz. Samples may be split between pieces.

    Owned by one stream: it keeps the split sample and the resampler's state.
    """

    def __init__(self, audio_format: AudioFormat) -> None:
        if not audio_format.encoding.is_raw:
            raise InvalidField(
                f"{audio_format.field}.encoding",
                expected="raw samples: PCM_S16LE, MULAW or ALAW",
                got=audio_format.encoding.name,
            )
        self._format = audio_format
        self._resampler = _Resampler(audio_format.sample_rate_hz)
        self._split = b""

    def feed(self, content: bytes) -> NDArray[np.float32]:
        """Return the samples [n] that are complete with this piece; n may be 0."""
        joined = self._split + content
        end = len(joined) - len(joined) % self._format.frame_bytes
        self._split = joined[end:]
        return self._resampler.feed(_mono(joined[:end], self._format))

    def finish(self) -> NDArray[np.float32]:
        """Return what the resampler still holds. A split sample is dropped."""
        return self._resampler.finish()


class _Resampler:
    """Mono samples of any rate to 16 kHz, piece by piece."""

    def __init__(self, rate_hz: int) -> None:
        is_needed = rate_hz != SAMPLE_RATE_HZ
        self._stream = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32") if is_needed else None

    def feed(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._stream is None or not len(samples):
            return samples
        resampled: NDArray[np.float32] = self._stream.resample_chunk(samples)
        return resampled

    def finish(self) -> NDArray[np.float32]:
        if self._stream is None:
            return np.zeros(0, np.float32)
        rest: NDArray[np.float32] = self._stream.resample_chunk(np.zeros(0, np.float32), last=True)
        return rest


def _decode_raw(
    content: bytes, audio_format: AudioFormat, *, max_audio_s: float, field: str
) -> NDArray[np.float32]:
    if len(content) % audio_format.frame_bytes:
        detail = f"{len(content)} bytes are not whole samples of {audio_format.frame_bytes} bytes"
        raise TruncatedAudio(field, detail=detail)
    if len(content) // audio_format.frame_bytes > max_audio_s * audio_format.sample_rate_hz:
        raise AudioTooLong(field, max_audio_s=max_audio_s)
    block = _BLOCK_SAMPLES * audio_format.frame_bytes
    pieces = (content[start : start + block] for start in range(0, len(content), block))
    resampler = _Resampler(audio_format.sample_rate_hz)
    return np.concatenate([*(resampler.feed(_mono(p, audio_format)) for p in pieces), resampler.finish()])


def _mono(content: bytes, audio_format: AudioFormat) -> NDArray[np.float32]:
    match audio_format.encoding:
        case AudioEncoding.MULAW:
            samples = decode_mulaw(content)
        case AudioEncoding.ALAW:
            samples = decode_alaw(content)
        case _:
            samples = np.frombuffer(content, "<i2").astype(np.float32) * np.float32(1 / 32_768)
    return _downmixed(samples.reshape(-1, audio_format.num_channels or 1))


def _downmixed(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of the channels: [n, channels] to [n]."""
    return frames[:, 0] if frames.shape[1] == 1 else frames.mean(axis=1, dtype=np.float32)


def _check_container(content: bytes, stated: AudioEncoding, field: str) -> None:
    """Refuse bytes that are not what they are said to be, and those that end before they should."""
    found = _sniff(content)
    if found is None:
        expected = "WAV, FLAC, Ogg or MP3, or a format that says how raw samples are packed"
        raise MislabelledAudio(field, expected=expected, got=content[:12])
    if stated not in (AudioEncoding.AUTO, found):
        raise MislabelledAudio(f"{field}", expected=stated.name, got=found.name)
    if found is AudioEncoding.WAV:
        _check_wav_length(content, field)
    if found is AudioEncoding.OGG_OPUS:
        _check_ogg_end(content, field)
    if found is AudioEncoding.MP3:
        _check_mp3_length(content, field)


def _sniff(content: bytes) -> AudioEncoding | None:
    if content[:4] in (b"RIFF", b"RF64") and content[8:12] == b"WAVE":
        return AudioEncoding.WAV
    if content[:4] == b"fLaC":
        return AudioEncoding.FLAC
    if content[:4] == b"OggS":
        return AudioEncoding.OGG_OPUS
    if content[:3] == b"ID3" or _is_mp3_frame(content[:4]):
        return AudioEncoding.MP3
    return None


def _is_mp3_frame(header: bytes) -> bool:
    """Whether four bytes are the header of an MPEG audio frame of layer III with a real bit rate and rate."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return False
    version, layer = (header[1] >> 3) & 3, (header[1] >> 1) & 3
    return version != 1 and layer == 1 and header[2] >> 4 not in (0, 15) and (header[2] >> 2) & 3 != 3


def _check_wav_length(content: bytes, field: str) -> None:
    """Compare the `data` chunk's stated length with what is there: the decoder reads on without a word."""
    place = 12
    while place + 8 <= len(content):
        name, length = content[place : place + 4], struct.unpack_from("<I", content, place + 4)[0]
        if name == b"data":
            available = len(content) - place - 8
            if length not in _UNKNOWN_LENGTHS and length > available:
                raise TruncatedAudio(field, detail=f"{available} of {length} bytes of samples")
            return
        place += 8 + length + length % 2
    raise TruncatedAudio(field, detail="a WAV header without samples")


def _check_ogg_end(content: bytes, field: str) -> None:
    """Require that the last page is whole and marked as the last."""
    page = content.rfind(b"OggS")
    num_segments = content[page + 26] if page + 26 < len(content) else None
    if num_segments is not None:
        end = page + 27 + num_segments + sum(content[page + 27 : page + 27 + num_segments])
        if content[page + 5] & 4 and end <= len(content):
            return
    raise TruncatedAudio(field, detail="an Ogg stream whose last page is missing")


def _check_mp3_length(content: bytes, field: str) -> None:
    """Compare the length in the first frame's `Xing` or `Info` header with what is there.

    Without that header nothing in the format tells how long the audio should be, and all passes.
    """
    head = content[:_MP3_HEADER_BYTES]
    place = max(head.find(b"Xing"), head.find(b"Info"))
    if place < 0 or place + 16 > len(head) or head[place + 7] & 3 != 3:
        return
    stated, available = struct.unpack_from(">I", head, place + 12)[0], len(content) - place
    if available < stated - _MP3_FRAME_BYTES:
        raise TruncatedAudio(field, detail=f"{available} of {stated} bytes of frames")


def _decode_container(
    content: bytes, audio_format: AudioFormat, *, max_audio_s: float, field: str
) -> NDArray[np.float32]:
    try:
        with _SoundFile(io.BytesIO(content)) as file:
            _check_header(file, audio_format, max_audio_s=max_audio_s, field=field)
            return _read(file, max_audio_s=max_audio_s, field=field)
    except soundfile.SoundFileError as error:
        detail = str(getattr(error, "error_string", "unreadable"))
        raise MislabelledAudio(field, expected="audio that can be decoded", got=detail) from error


class _SoundFile(soundfile.SoundFile):  # type: ignore[misc]  # it ships no types
    """A file that is read on without seeking when its length is not known: there it cannot seek."""

    def seekable(self) -> bool:
        """Whether the library may go to the place that it has just read up to."""
        return bool(super().seekable()) and self.frames != _UNKNOWN_FRAMES


def _check_header(
    file: soundfile.SoundFile, audio_format: AudioFormat, *, max_audio_s: float, field: str
) -> None:
    stated = audio_format.sample_rate_hz
    if stated and stated != file.samplerate:
        raise WrongSampleRate(
            f"{audio_format.field}.sample_rate_hz", expected=f"the header's {file.samplerate}", got=stated
        )
    if audio_format.num_channels and audio_format.num_channels != file.channels:
        raise MislabelledAudio(
            f"{audio_format.field}.num_channels",
            expected=f"the header's {file.channels}",
            got=audio_format.num_channels,
        )
    if not MIN_RATE_HZ <= file.samplerate <= MAX_RATE_HZ or file.channels > MAX_CHANNELS:
        expected = f"{MIN_RATE_HZ} to {MAX_RATE_HZ} samples a second in at most {MAX_CHANNELS} channels"
        raise MislabelledAudio(field, expected=expected, got=f"{file.samplerate} in {file.channels}")
    has_length = file.format != "MP3" and file.frames != _UNKNOWN_FRAMES
    if has_length and file.frames > max_audio_s * file.samplerate:
        raise AudioTooLong(field, max_audio_s=max_audio_s)


def _read(file: soundfile.SoundFile, *, max_audio_s: float, field: str) -> NDArray[np.float32]:
    resampler, num_read, pieces = _Resampler(file.samplerate), 0, []
    for block in _blocks(file):
        num_read += len(block)
        if num_read > max_audio_s * file.samplerate:
            raise AudioTooLong(field, max_audio_s=max_audio_s)
        pieces.append(resampler.feed(_downmixed(block)))
    if file.format == "FLAC" and num_read < file.frames != _UNKNOWN_FRAMES:
        raise TruncatedAudio(field, detail=f"{num_read} of {file.frames} samples")
    return np.concatenate([*pieces, resampler.finish()])


def _blocks(file: soundfile.SoundFile) -> Iterator[NDArray[np.float32]]:
    """Yield the frames [n, channels] as they are decoded."""
    num_frames = max(1, _BLOCK_SAMPLES // file.channels)
    while len(block := file.read(num_frames, dtype="float32", always_2d=True)):
        yield block
