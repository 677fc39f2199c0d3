"""Recognition's messages, to and from the recogniser's own words."""

from __future__ import annotations

from collections.abc import Mapping

from aimass.speech.v1 import keywords_pb2
from aimass.speech.v1 import recognition_service_pb2 as pb
from aimass_serving.errors import InvalidField

from aimass_speech.endpointer import EndpointRules
from aimass_speech.keyword_spotter import Keyword, Spotted, check_keywords
from aimass_speech.live_recognizer import (
    FinalRead,
    FlushAsked,
    FlushDone,
    InterimRead,
    LiveEvent,
    SpeechChanged,
)
from aimass_speech.phrase_match import PhraseMatch
from aimass_speech.recognition import (
    Alternative,
    HotPhrase,
    RecognitionOptions,
    Segment,
    Transcript,
    Word,
)
from aimass_speech.wire import duration_of_samples, seconds_of

_TASKS: Mapping[int, bool] = {
    pb.RECOGNITION_TASK_UNSPECIFIED: False,
    pb.RECOGNITION_TASK_TRANSCRIBE: False,
    pb.RECOGNITION_TASK_TRANSLATE: True,
}


def recognition_options(options: pb.RecognitionOptions, *, field: str) -> RecognitionOptions:
    """Return how to recognise. Raises `InvalidField`."""
    if options.task not in _TASKS:
        known = ", ".join(pb.RecognitionTask.keys())
        raise InvalidField(f"{field}.task", expected=f"one of: {known}", got=options.task)
    default = RecognitionOptions()
    return RecognitionOptions(
        language=options.language,
        is_translation=_TASKS[options.task],
        num_beams=options.beam_size if options.HasField("beam_size") else default.num_beams,
        has_words=options.word_times,
        num_alternatives=(
            options.max_alternatives if options.HasField("max_alternatives") else default.num_alternatives
        ),
        hot_phrases=[
            HotPhrase(hot.phrase, hot.boost) if hot.HasField("boost") else HotPhrase(hot.phrase)
            for hot in options.hot_phrases
        ],
        phrases=list(options.phrases),
        phrase_threshold=(
            options.phrase_threshold if options.HasField("phrase_threshold") else default.phrase_threshold
        ),
        best_of=options.best_of if options.HasField("best_of") else None,
        initial_prompt=options.initial_prompt,
        skips_silence=(options.voice_activity_filter if options.HasField("voice_activity_filter") else None),
        field=field,
    )


def keywords(config: keywords_pb2.SpotKeywordsConfig) -> list[Keyword]:
    """Return what to listen for. Raises `InvalidField`."""
    found = []
    for index, keyword in enumerate(config.keywords):
        field = f"config.keywords[{index}]"
        threshold = keyword.threshold if keyword.HasField("threshold") else 0.5
        found.append(Keyword(keyword.phrase, threshold, keyword.boost, field))
    check_keywords(found)
    return found


def spotted_pb(spotted: Spotted) -> keywords_pb2.SpotKeywordsResponse:
    """Return a find as it travels."""
    return keywords_pb2.SpotKeywordsResponse(
        phrase=spotted.phrase,
        score=spotted.score,
        start=duration_of_samples(spotted.start),
        end=duration_of_samples(spotted.end),
    )


def segment_pb(segment: Segment) -> pb.Segment:
    """Return a segment as it travels."""
    return pb.Segment(
        start=duration_of_samples(segment.start),
        end=duration_of_samples(segment.end),
        text=segment.text,
        avg_logprob=segment.avg_logprob,
        no_speech_probability=segment.no_speech,
        temperature=segment.temperature,
        words=[_word_pb(word) for word in segment.words],
        alternatives=[_alternative_pb(other) for other in segment.alternatives],
    )


def _word_pb(word: Word) -> pb.Word:
    return pb.Word(
        text=word.text,
        start=duration_of_samples(word.start),
        end=duration_of_samples(word.end),
        confidence=word.confidence,
    )


def _alternative_pb(other: Alternative) -> pb.Alternative:
    return pb.Alternative(text=other.text, avg_logprob=other.avg_logprob)


def endpoint_rules(config: pb.StreamingRecognitionConfig) -> EndpointRules:
    """Return when utterances end. Raises `InvalidField`."""
    if not config.HasField("end_silence"):
        return EndpointRules()
    end_silence_s = seconds_of(config.end_silence)
    return EndpointRules(
        end_silence_s=end_silence_s, pause_s=min(EndpointRules().pause_s, 0.6 * end_silence_s)
    )


def live_input(request: pb.StreamingRecognizeRequest) -> bytes | FlushAsked:
    """Return a later message of a stream: audio, or a flush."""
    return FlushAsked(request.flush.id) if request.HasField("flush") else request.audio


def live_event_pb(event: LiveEvent) -> pb.StreamingRecognizeResponse:
    """Return an event of a live stream as it travels."""
    match event:
        case InterimRead():
            interim = pb.InterimResult(
                utterance=event.utterance,
                committed_text=event.interim.committed,
                tentative_text=event.interim.tentative,
                stability=event.interim.stability,
            )
            return pb.StreamingRecognizeResponse(interim=interim)
        case FinalRead():
            return pb.StreamingRecognizeResponse(final=_final_pb(event))
        case SpeechChanged():
            kind = pb.SpeechActivity.KIND_BEGIN if event.is_begin else pb.SpeechActivity.KIND_END
            activity = pb.SpeechActivity(kind=kind, at=duration_of_samples(event.at))
            return pb.StreamingRecognizeResponse(activity=activity)
        case FlushDone():
            return pb.StreamingRecognizeResponse(flushed=pb.Flushed(id=event.id))


def _final_pb(final: FinalRead) -> pb.FinalResult:
    transcript = final.transcript
    match = transcript.match or PhraseMatch()
    return pb.FinalResult(
        utterance=final.utterance,
        segment=segment_pb(_joined(transcript, offset=final.start, end=final.end)),
        language=transcript.language,
        finalization_ms=final.finalization_ms,
        phrase=match.phrase,
        phrase_scores=phrase_scores_pb(match),
    )


def phrase_scores_pb(match: PhraseMatch) -> list[pb.PhraseScore]:
    """Return the scores of phrases as they travel."""
    return [pb.PhraseScore(phrase=one.phrase, score=one.score) for one in match.scores]


def _joined(transcript: Transcript, *, offset: int, end: int) -> Segment:
    """Return an utterance's segments as one, its times moved from the utterance to the stream."""
    segments = transcript.segments or [Segment(0, end - offset, "", 0.0, 0.0, 0.0)]
    return Segment(
        start=offset + segments[0].start,
        end=min(end, offset + segments[-1].end),
        text=transcript.text,
        avg_logprob=sum(segment.avg_logprob for segment in segments) / len(segments),
        no_speech=max(segment.no_speech for segment in segments),
        temperature=max(segment.temperature for segment in segments),
        words=[
            Word(word.text, offset + word.start, offset + word.end, word.confidence)
            for segment in segments
            for word in segment.words
        ],
        alternatives=[other for segment in segments for other in segment.alternatives],
    )
