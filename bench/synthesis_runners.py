"""Contenders of the synthesis benchmark: the service over gRPC, and each voice as its own package runs it.

One sentence after the other. A scenario says how long they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.measurement import Outcome
from bench.texts import plain_sentences

LONG, SHORT, WARM_UP = "long", "short", "warm up"
LONG_WORDS, SHORT_WORDS = range(40, 49), range(5, 17)
"""Words of a sentence: about 12 s, and about 3.5 s."""

Speak = Callable[[str], tuple[float, float]]
"""Speaks a sentence; returns how long it was until the first audio, and how long the audio is, in seconds."""


def sentences(scenario: str, count: int) -> list[str]:
    """Return the sentences of a scenario, always the same ones."""
    if scenario == WARM_UP:
        return [*plain_sentences(2, num_words=LONG_WORDS), *plain_sentences(1, num_words=SHORT_WORDS)]
    return plain_sentences(count, num_words=LONG_WORDS if scenario == LONG else SHORT_WORDS)


class ServedVoice:
    """The speech service as its users run it, called by the typed client."""

    def __init__(self, *, store: str, voice: str, num_sentences: int) -> None:
        from aimass import SynthesisClient

        from bench.service import ServiceProcess

        self._voice, self._num_sentences = voice, num_sentences
        self._service = ServiceProcess("speech", store=store, model=voice)
        self._client = SynthesisClient(self._service.address)

    def run(self, scenario: str) -> Outcome:
        return _timed(sentences(scenario, self._num_sentences), self._speak)

    def _speak(self, text: str) -> tuple[float, float]:
        from aimass import AudioEncoding, SynthesisOptions

        options = SynthesisOptions(encoding=AudioEncoding.PCM_S16LE, seed=0)
        start_s, first_s = time.perf_counter(), 0.0
        with self._client.speak(text, voice=self._voice, options=options) as stream:
            for chunk in stream:
                if chunk.data and not first_s:
                    first_s = time.perf_counter() - start_s
            return first_s, stream.end.audio_s

    def close(self) -> None:
        self._client.close()
        self._service.close()


class HibariPackage:
    """hibari's own code, in this process."""

    def __init__(self, *, num_sentences: int) -> None:
        import hibari

        self._num_sentences = num_sentences
        self._voice: Any = hibari.Hibari()

    def run(self, scenario: str) -> Outcome:
        return _timed(sentences(scenario, self._num_sentences), self._speak)

    def _speak(self, text: str) -> tuple[float, float]:
        start_s = time.perf_counter()
        audio = self._voice(text, seed=0)
        return time.perf_counter() - start_s, len(audio) / float(self._voice.sample_rate)

    def close(self) -> None:
        pass


class PiperWhole:
    """A Piper voice's one graph in ONNX Runtime, whole sentences, in this process.

    Piper's own reader is espeak; here it is the one that our service reads with.
    """

    def __init__(self, *, source: str, num_threads: int, num_sentences: int) -> None:
        import onnxruntime as ort
        from aimass_exporters.progress import SilentProgress
        from aimass_exporters.sources.source import resolve_source
        from aimass_exporters.voices.piper_voice import CONFIG_PATTERN, PiperVoice
        from aimass_serving.session import Device, SessionConfig
        from aimass_speech.synthesis.bundled_voice import alphabet_of, reader_of

        folder: Path = resolve_source(source, SilentProgress()).path
        (config,) = folder.glob(CONFIG_PATTERN)
        options = ort.SessionOptions()
        options.intra_op_num_threads = num_threads
        self._session: Any = ort.InferenceSession(
            str(config.with_suffix("")), options, providers=["CPUExecutionProvider"]
        )
        self._spec = PiperVoice(folder).spec
        self._alphabet = alphabet_of(self._spec)
        self._reader = reader_of(self._spec, self._alphabet, SessionConfig(device=Device.CPU))
        self._num_sentences = num_sentences

    def run(self, scenario: str) -> Outcome:
        return _timed(sentences(scenario, self._num_sentences), self._speak)

    def _speak(self, text: str) -> tuple[float, float]:
        from aimass_speech.synthesis.reading import joined

        start_s = time.perf_counter()
        ids = self._alphabet.encode(joined(self._reader.read(text, {}).words))
        feeds = {
            "input": ids[None],
            "input_lengths": np.array([len(ids)], np.int64),
            "scales": np.array([self._spec.noise_scale, 1, self._spec.duration_noise_scale], np.float32),
        }
        audio = self._session.run(None, feeds)[0].reshape(-1)
        return time.perf_counter() - start_s, len(audio) / self._spec.sample_rate_hz

    def close(self) -> None:
        pass


def _timed(texts: Sequence[str], speak: Speak) -> Outcome:
    """Speak one sentence after the other. Units are seconds of audio."""
    start_s = time.perf_counter()
    spoken = [speak(text) for text in texts]
    seconds = time.perf_counter() - start_s
    audio_s = sum(length_s for _, length_s in spoken)
    p50, p95 = np.percentile([first_s for first_s, _ in spoken], (50, 95))
    details = {
        "rtf": seconds / audio_s,
        "first_audio_p50_ms": 1e3 * float(p50),
        "first_audio_p95_ms": 1e3 * float(p95),
        "sentence_s": audio_s / len(texts),
    }
    return Outcome(round(audio_s), seconds, details=details)
