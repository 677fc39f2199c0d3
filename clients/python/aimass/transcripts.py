"""What was said in a recording or a live stream. Plain values; knows no call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration

from aimass.speech.v1 import recognition_service_pb2 as pb


@dataclass(frozen=True, slots=True)
class Word:
    """One word and when it was said, in seconds from the start of the audio."""

    text: str
    """With the space and punctuation that belong to it."""
    start_s: float
    end_s: float
    confidence: float
    """0 to 1."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another reading."""

    text: str
    avg_logprob: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech and its text, in seconds from the start of the audio."""

    start_s: float
    end_s: float
    text: str
    avg_logprob: float
    no_speech_probability: float
    temperature: float
    words: Sequence[Word] = ()
    alternatives: Sequence[Alternative] = ()


@dataclass(frozen=True, slots=True)
class PhraseScore:
    """How probable it is that a phrase was said, 0 to 1."""

    phrase: str
    score: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said in a recording."""

    text: str
    segments: Sequence[Segment]
    language: str
    language_probability: float
    audio_s: float
    speech_s: float
    """Length of what was taken for speech."""
    total_ms: float
    """Time on the server."""
    phrase: str | None = None
    """The phrase that was said, where some were given to choose from; None when none was."""
    phrase_scores: Sequence[PhraseScore] = ()
    """Best first."""


@dataclass(frozen=True, slots=True)
class Interim:
    """A reading of the open utterance that may still change."""

    utterance: int
    committed_text: str
    tentative_text: str
    stability: float


@dataclass(frozen=True, slots=True)
class Final:
    """The final reading of an utterance."""

    utterance: int
    segment: Segment
    language: str
    finalization_ms: float
    phrase: str | None = None
    """The phrase that was said, where some were given to choose from; None when none was."""
    phrase_scores: Sequence[PhraseScore] = ()


@dataclass(frozen=True, slots=True)
class SpeechActivity:
    """Speech began or ended."""

    is_begin: bool
    at_s: float


@dataclass(frozen=True, slots=True)
class Flushed:
    """Everything sent before the flush of this id has been answered."""

    id: str


RecognitionEvent = Interim | Final | SpeechActivity | Flushed


def seconds_of(duration: Duration) -> float:
    """Return a duration in seconds."""
    return float(duration.seconds) + duration.nanos / 1e9


def segment_of(segment: pb.Segment) -> Segment:
    """Return a segment of the wire as a value."""
    return Segment(
        start_s=seconds_of(segment.start),
        end_s=seconds_of(segment.end),
        text=segment.text,
        avg_logprob=segment.avg_logprob,
        no_speech_probability=segment.no_speech_probability,
        temperature=segment.temperature,
        words=[
            Word(word.text, seconds_of(word.start), seconds_of(word.end), word.confidence)
            for word in segment.words
        ],
        alternatives=[Alternative(other.text, other.avg_logprob) for other in segment.alternatives],
    )


def transcript_of(response: pb.RecognizeResponse) -> Transcript:
    """Return an answer of the wire as a value."""
    return Transcript(
        text=response.text,
        segments=[segment_of(segment) for segment in response.segments],
        language=response.language,
        language_probability=response.language_probability,
        audio_s=seconds_of(response.audio_duration),
        speech_s=seconds_of(response.speech_duration),
        total_ms=response.timings.total_ms,
        phrase=response.phrase if response.HasField("phrase") else None,
        phrase_scores=_scores_of(response.phrase_scores),
    )


def _scores_of(scores: Iterable[pb.PhraseScore]) -> list[PhraseScore]:
    return [PhraseScore(one.phrase, one.score) for one in scores]


def event_of(response: pb.StreamingRecognizeResponse) -> RecognitionEvent | None:
    """Return an event of the wire as a value; None for one newer than this client."""
    match response.WhichOneof("event"):
        case "interim":
            interim = response.interim
            return Interim(
                interim.utterance, interim.committed_text, interim.tentative_text, interim.stability
            )
        case "final":
            final = response.final
            return Final(
                final.utterance,
                segment_of(final.segment),
                final.language,
                final.finalization_ms,
                final.phrase if final.HasField("phrase") else None,
                _scores_of(final.phrase_scores),
            )
        case "activity":
            is_begin = response.activity.kind == pb.SpeechActivity.KIND_BEGIN
            return SpeechActivity(is_begin, seconds_of(response.activity.at))
        case "flushed":
            return Flushed(response.flushed.id)
    return None
