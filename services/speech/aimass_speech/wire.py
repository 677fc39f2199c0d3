"""Messages that several speech RPCs share, to and from the service's own words."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TypeVar

from aimass.speech.v1 import audio_pb2
from aimass_serving.errors import InvalidField
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from aimass_speech.audio import SAMPLE_RATE_HZ, AudioEncoding, AudioFormat

_ENCODINGS: Mapping[int, AudioEncoding] = {
    audio_pb2.AUDIO_ENCODING_UNSPECIFIED: AudioEncoding.AUTO,
    audio_pb2.AUDIO_ENCODING_WAV: AudioEncoding.WAV,
    audio_pb2.AUDIO_ENCODING_PCM_S16LE: AudioEncoding.PCM_S16LE,
    audio_pb2.AUDIO_ENCODING_MULAW: AudioEncoding.MULAW,
    audio_pb2.AUDIO_ENCODING_ALAW: AudioEncoding.ALAW,
    audio_pb2.AUDIO_ENCODING_FLAC: AudioEncoding.FLAC,
    audio_pb2.AUDIO_ENCODING_OGG_OPUS: AudioEncoding.OGG_OPUS,
    audio_pb2.AUDIO_ENCODING_MP3: AudioEncoding.MP3,
}


RequestT = TypeVar("RequestT", bound=Message)
"""A message of a stream whose first message is a configuration and whose others carry audio."""


def audio_format(message: audio_pb2.AudioFormat, *, field: str) -> AudioFormat:
    """Return a caller's format. Raises `InvalidField`."""
    encoding = audio_encoding(message.encoding, field=f"{field}.encoding")
    return AudioFormat(encoding, message.sample_rate_hz, message.num_channels, field)


def audio_encoding(number: int, *, field: str) -> AudioEncoding:
    """Return an encoding by its number on the wire. Raises `InvalidField`."""
    if number not in _ENCODINGS:
        known = ", ".join(value.name for value in AudioEncoding)
        raise InvalidField(field, expected=f"one of: {known}", got=number)
    return _ENCODINGS[number]


def seconds_of(message: Duration) -> float:
    """Return a duration in seconds."""
    return float(message.seconds) + message.nanos / 1e9


def duration_of_samples(num_samples: int, rate_hz: int = SAMPLE_RATE_HZ) -> Duration:
    """Return the length of samples, at 16 kHz if nothing else is said, exact to the nanosecond."""
    return Duration(seconds=num_samples // rate_hz, nanos=num_samples % rate_hz * 10**9 // rate_hz)


async def first_request(requests: AsyncIterator[RequestT]) -> RequestT:
    """Return the first message of a stream. Raises `InvalidField` unless it is the configuration."""
    first = await anext(requests, None)
    kind = first.WhichOneof("request") if first is not None else None
    if first is None or kind != "config":
        raise InvalidField("config", expected="the configuration in the first message", got=kind or "nothing")
    return first


async def later_requests(
    requests: AsyncIterator[RequestT], *, content: str = "audio"
) -> AsyncIterator[RequestT]:
    """Yield the messages after the first. Raises `InvalidField` for a second configuration."""
    async for request in requests:
        kind = request.WhichOneof("request")
        if kind is None or kind == "config":
            raise InvalidField(
                "request", expected=f"{content} in every message after the first", got=kind or "nothing"
            )
        yield request
