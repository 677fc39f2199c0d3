"""Keywords to listen for, and those that were said. Knows their messages, and no connection."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from aimass.recognition_options import AudioFormat
from aimass.response_stream import CallStream
from aimass.speech.v1 import keywords_pb2 as pb
from aimass.transcripts import seconds_of
from aimass.wire import refusing, set_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyword:
    """A word, or a few, to listen for. What is None takes the server's default."""

    phrase: str
    threshold: float | None = None
    """Lowest score that is reported, 0 to 1."""
    boost: float | None = None
    """How much recognition favours it, for words the model hardly knows."""


@dataclass(frozen=True, slots=True)
class SpottedKeyword:
    """A keyword that was said, in seconds from the start of the stream."""

    phrase: str
    score: float
    """0 to 1."""
    start_s: float
    end_s: float


class KeywordStream(CallStream[pb.SpotKeywordsResponse]):
    """The keywords of one live stream. Use it in a `with` block; leaving it early cancels the call."""

    def __iter__(self) -> Iterator[SpottedKeyword]:
        return self

    def __next__(self) -> SpottedKeyword:
        """Return the next keyword; raise `RpcError` when the call fails."""
        found = next(self._responses)
        return SpottedKeyword(found.phrase, found.score, seconds_of(found.start), seconds_of(found.end))


def keyword_requests(
    audio: Iterable[bytes],
    keywords: Iterable[Keyword | str],
    *,
    model: str,
    audio_format: AudioFormat,
    language: str,
    request_id: str,
) -> Iterator[pb.SpotKeywordsRequest]:
    """Return the messages of a stream; values that do not fit their fields are refused at once."""
    config = pb.SpotKeywordsConfig(format=audio_format.message())
    for name, value in (("model", model), ("language", language), ("request_id", request_id)):
        with refusing(name):
            setattr(config, name, value)
    for index, item in enumerate(keywords):
        keyword = Keyword(phrase=item) if isinstance(item, str) else item
        names = ("phrase", "threshold", "boost")
        set_fields(config.keywords.add(), keyword, names, path=f"keywords[{index}].")
    first = pb.SpotKeywordsRequest(config=config)
    return _following(first, audio)


def _following(first: pb.SpotKeywordsRequest, audio: Iterable[bytes]) -> Iterator[pb.SpotKeywordsRequest]:
    yield first
    for piece in audio:
        yield pb.SpotKeywordsRequest(audio=piece)
