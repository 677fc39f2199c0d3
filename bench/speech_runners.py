"""Contenders of the recognition benchmark: the service over gRPC, and faster-whisper on the same weights.

Whole recordings one after the other, without voice activity detection, timestamps and fallback as each does
by default. A scenario says how wide the search is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from bench.measurement import Outcome
from bench.speech_audio import Clip, clips, librivox

GREEDY, BEAMS, WARM_UP = "greedy", "beam 5", "warm up"
NUM_BEAMS = {GREEDY: 1, BEAMS: 5, WARM_UP: 5}
DRAWS = 5
"""Outputs drawn at each temperature above 0, for both."""


class ServedRecognition:
    """The speech service as its users run it, called by the typed client."""

    def __init__(self, *, store: str, model: str, num_synthetic: int) -> None:
        from aimass import AudioEncoding, AudioFormat, RecognitionClient

        from bench.service import ServiceProcess

        self._model, self._clips = model, clips(num_synthetic)
        self._service = ServiceProcess("speech", store=store, model=model)
        self._client = RecognitionClient(self._service.address)
        self._format = AudioFormat(encoding=AudioEncoding.PCM_S16LE, sample_rate_hz=16_000)

    def run(self, scenario: str) -> Outcome:
        from aimass import RecognitionOptions

        options = RecognitionOptions(
            language="en", beam_size=NUM_BEAMS[scenario], best_of=DRAWS, voice_activity_filter=False
        )

        def recognize(clip: Clip) -> str:
            content = (clip.samples * 32767).astype("<i2").tobytes()
            answer = self._client.recognize(
                content, model=self._model, audio_format=self._format, options=options
            )
            return answer.text

        return timed(_clips_of(scenario, self._clips), recognize)

    def close(self) -> None:
        self._client.close()
        self._service.close()


class FasterWhisper:
    """faster-whisper on CTranslate2, in this process; `compute_type` is `float32` or `int8`."""

    def __init__(self, *, folder: str, compute_type: str, num_threads: int, num_synthetic: int) -> None:
        from faster_whisper import WhisperModel

        self._clips = clips(num_synthetic)
        self._model: Any = WhisperModel(
            folder, device="cpu", compute_type=compute_type, cpu_threads=num_threads, local_files_only=True
        )

    def run(self, scenario: str) -> Outcome:
        def recognize(clip: Clip) -> str:
            segments, _ = self._model.transcribe(
                clip.samples, beam_size=NUM_BEAMS[scenario], best_of=DRAWS, language="en"
            )
            return "".join(segment.text for segment in segments).strip()

        return timed(_clips_of(scenario, self._clips), recognize)

    def close(self) -> None:
        pass


def _clips_of(scenario: str, every: list[Clip]) -> list[Clip]:
    return librivox()[:1] if scenario == WARM_UP else every


def timed(every: list[Clip], recognize: Callable[[Clip], str]) -> Outcome:
    """Recognise one clip after the other. Units are seconds of audio; word errors are in the details."""
    start_s = time.perf_counter()
    texts = [recognize(clip) for clip in every]
    seconds = time.perf_counter() - start_s
    audio_s = sum(clip.seconds for clip in every)
    return Outcome(
        round(audio_s), seconds, tuple(texts), {"rtf": seconds / audio_s, **error_rates(every, texts)}
    )


def error_rates(every: list[Clip], texts: list[str]) -> dict[str, float]:
    """Return the word error rate in per cent of each source, after Whisper's own normalisation."""
    import jiwer
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    normal: Any = EnglishTextNormalizer({})
    rates = {}
    for source in dict.fromkeys(clip.source for clip in every):
        pairs = [
            (normal(clip.words), normal(text))
            for clip, text in zip(every, texts, strict=True)
            if clip.source == source
        ]
        rates[f"wer_{source}"] = 100 * float(
            jiwer.wer([said for said, _ in pairs], [got for _, got in pairs])
        )
    return rates
