"""Text to speech to text: the words that Whisper hears in what a voice says, spoken by the service and by the
voice as it came.

The voice as it came speaks each sentence in one go, with the noise that the service draws for a sentence in
one piece: where the service cuts nothing, both say the same.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence

import numpy as np
from aimass import (
    AudioEncoding,
    AudioFormat,
    RecognitionClient,
    RecognitionOptions,
    SynthesisClient,
    SynthesisOptions,
)
from aimass_exporters.progress import SilentProgress
from aimass_exporters.sources.source import resolve_source
from aimass_exporters.testing import cached_export
from aimass_exporters.voices.voice_bundle import load_voice
from aimass_exporters.voices.voice_model import RecordedNoise
from aimass_serving.bundle import read_bundle
from aimass_serving.session import Device, SessionConfig
from aimass_speech.synthesis.bundled_voice import open_bundled_voice
from aimass_speech.synthesis.noise import SeededNoise
from aimass_speech.synthesis.reading import joined
from aimass_speech.synthesis.voice import Manner

from bench.models import BenchModel
from bench.service import ServiceProcess
from bench.speech_audio import Clip
from bench.speech_runners import error_rates
from bench.synthesis_runners import LONG, SHORT, sentences
from bench.table import Table

RECOGNIZER = "whisper-tiny.en"
_SEED = 3
_SCENARIOS = (SHORT, LONG)


def round_trip_table(voices: Sequence[BenchModel], num_sentences: int) -> Table:
    """Return word error rates in per cent of both ways, for sentences of each length."""
    rows: list[list[str | float]] = []
    with tempfile.TemporaryDirectory(prefix="aimass-bench-") as folder:
        for store in (cached_export(RECOGNIZER, name=RECOGNIZER), *(v.store("fp32") for v in voices)):
            shutil.copytree(store, folder, dirs_exist_ok=True)
        with (
            ServiceProcess("speech", store=folder, model="") as service,
            SynthesisClient(service.address) as speaker,
            RecognitionClient(service.address) as hearer,
        ):
            for model in voices:
                reference = VoiceAsItCame(model)
                for scenario in _SCENARIOS:
                    texts = sentences(scenario, num_sentences)
                    ours = _heard(hearer, texts, [_spoken(speaker, model.name, text) for text in texts])
                    theirs = _heard(hearer, texts, [reference.speak(text) for text in texts])
                    words = sum(len(text.split()) for text in texts)
                    rows.append([f"{model.name}, {scenario} sentences", words, ours, theirs, ours - theirs])
    columns = ["", "words", "WER %, service", "WER %, the voice as it came", "difference (aim: at most 0.3)"]
    return Table(f"Heard again by {RECOGNIZER}, greedy", columns, rows)


class VoiceAsItCame:
    """A voice by its package's own graph and code, whole sentences at a time."""

    def __init__(self, model: BenchModel) -> None:
        self._model = load_voice(resolve_source(model.find(), SilentProgress()))
        (manifest,) = model.store("fp32").rglob("manifest.json")
        bundle = read_bundle(manifest.parent)
        self._voice, self._alphabet, self._reader = open_bundled_voice(
            bundle, SessionConfig(device=Device.CPU)
        )

    def speak(self, text: str) -> tuple[bytes, int]:
        """Return 16-bit samples and their rate."""
        ids = self._alphabet.encode(joined(self._reader.read(text, {}).words))
        noise = RecordedNoise(SeededNoise(_SEED, 0))
        self._voice.begin(ids, Manner(), noise)  # draws what a phrase needs
        audio = self._model.expected(ids, noise.drawn, has_noise=True)
        return (np.clip(audio, -1, 1) * 32767).round().astype("<i2").tobytes(), self._voice.sample_rate_hz


def _spoken(client: SynthesisClient, voice: str, text: str) -> tuple[bytes, int]:
    options = SynthesisOptions(encoding=AudioEncoding.PCM_S16LE, seed=_SEED)
    with client.speak(text, voice=voice, options=options) as stream:
        audio = stream.read_all()
    return audio.data, audio.info.sample_rate_hz


def _heard(client: RecognitionClient, texts: Sequence[str], spoken: Sequence[tuple[bytes, int]]) -> float:
    """Return the word error rate of what is heard."""
    options = RecognitionOptions(language="en", beam_size=1, voice_activity_filter=False)
    heard = []
    for content, rate_hz in spoken:
        form = AudioFormat(encoding=AudioEncoding.PCM_S16LE, sample_rate_hz=rate_hz)
        answer = client.recognize(content, model=RECOGNIZER, audio_format=form, options=options)
        heard.append(answer.text)
    every = [Clip("all", "all", np.zeros(0, np.float32), text) for text in texts]
    return error_rates(every, heard)["wer_all"]
