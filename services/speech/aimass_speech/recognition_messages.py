"""Recognition's messages, to and from the recogniser's own words."""

from __future__ import annotations

from collections.abc import Mapping

from aimass.speech.v1 import recognition_service_pb2 as pb
from aimass_serving.errors import InvalidField

from aimass_speech.recognition import Alternative, HotPhrase, RecognitionOptions, Segment, Word
from aimass_speech.wire import duration_of_samples

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
        initial_prompt=options.initial_prompt,
        skips_silence=(options.voice_activity_filter if options.HasField("voice_activity_filter") else None),
        field=field,
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
