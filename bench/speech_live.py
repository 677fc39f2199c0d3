"""The live recognition benchmark: streams at the pace of speech, and silence that must stay silent.

Utterances end in turn by silence and by a flush. Times are those of the client: from when the audio in
question was sent to when the answer came.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from aimass import AudioEncoding, AudioFormat, Final, Flush, Interim, RecognitionClient, SpeechActivity
from aimass_exporters.testing import cached_export
from numpy.typing import NDArray

from bench.machine import describe_machine
from bench.service import ServiceProcess
from bench.speech import MODELS
from bench.speech_audio import RATE_HZ, Clip, clips
from bench.speech_runners import error_rates
from bench.study import Study
from bench.table import Panel, Table

PIECE_S = 0.04
PAUSE_S = 1.5
"""Silence behind an utterance; it must be longer than the server's end silence."""
MAX_UTTERANCE_S = 5.6
"""Longest clip that is played: 5 s of speech and the silence around it."""
PCM = AudioFormat(encoding=AudioEncoding.PCM_S16LE, sample_rate_hz=RATE_HZ)
MIN_SOUND = 0.05
"""What is softer than this share of a clip's peak is silence."""
END_SILENCE_S = 0.5
NO_SILENCE = 5.0
"""Silence that ends an utterance where a flush does it, in seconds."""


@dataclass(slots=True)
class Heard:
    """What one stream measured. Owned by its thread."""

    first_interim_s: list[float] = field(default_factory=list)
    """From the audio in which speech began to the first interim."""
    final_s: list[float] = field(default_factory=list)
    """From what ended the utterance, a flush or the last of its silence, to the final, in order of time."""
    after_speech_s: list[float] = field(default_factory=list)
    """From the audio in which speech ended to the final, the silence that tells the end included."""
    final_at_s: list[float] = field(default_factory=list)
    """When each final came, from the start of the stream."""
    texts: list[str] = field(default_factory=list)
    lag_s: float = 0.0
    """From the last audio to the end of the stream."""


class Player:
    """Plays clips at the pace of speech, and knows when each sample was sent. One thread plays, one reads."""

    def __init__(self, parts: Sequence[Clip], *, is_flushed: bool) -> None:
        self._parts = parts
        self.flushes = is_flushed
        """Whether a flush ends each clip, instead of silence."""
        self._sent: list[float] = []
        """When each piece was sent."""
        self._ends: list[int] = []
        """Samples of the stream up to the end of each piece; the last one of a clip may be short."""
        self.started_s = 0.0
        self.flushed_s: list[float] = []
        self.finished_s = 0.0

    def _samples(self, clip: Clip) -> NDArray[np.float32]:
        """Return a clip; one that a flush ends stops with its last sound: nothing tells the end before."""
        if not self.flushes:
            return clip.samples
        is_sound = np.abs(clip.samples) > MIN_SOUND * np.abs(clip.samples).max()
        return clip.samples[: int(np.flatnonzero(is_sound)[-1]) + 1]

    def pieces(self) -> Iterator[bytes | Flush]:
        """Yield the audio, and a flush behind each clip where that ends it."""
        step, self.started_s = int(PIECE_S * RATE_HZ), time.perf_counter()
        for index, clip in enumerate(self._parts):
            spoken, pause = self._samples(clip), np.zeros(int(PAUSE_S * RATE_HZ), np.float32)
            for samples in (spoken, pause):
                for place in range(0, len(samples), step):
                    piece = samples[place : place + step]
                    yield _pcm(piece)
                    self._sent.append(time.perf_counter())
                    self._ends.append(len(piece) + (self._ends[-1] if self._ends else 0))
                    due_s = self.started_s + self._ends[-1] / RATE_HZ
                    time.sleep(max(0.0, due_s - time.perf_counter()))
                if self.flushes and samples is spoken:
                    self.flushed_s.append(time.perf_counter())
                    yield Flush(str(index))
        self.finished_s = time.perf_counter()

    def sent_at(self, seconds: float) -> float:
        """Return when the audio at a time of the stream was sent."""
        piece = bisect.bisect_right(self._ends, round(seconds * RATE_HZ))
        return self._sent[min(piece, len(self._sent) - 1)]


def _pcm(samples: NDArray[np.float32]) -> bytes:
    return (samples * 32767).astype("<i2").tobytes()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this part."""
    parser.add_argument("--model", choices=MODELS, default="whisper-tiny.en")
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32")
    parser.add_argument("--streams", default="1,8", help="how many at once, such as 1,8")
    parser.add_argument("--utterances", type=int, default=40, help="of each stream")
    parser.add_argument(
        "--endurance-minutes", type=float, default=10, help="length of the long run of 8; 0: none"
    )
    parser.add_argument("--silence-minutes", type=float, default=10, help="silence and noise; 0: none")


def run(options: argparse.Namespace, *, command: str) -> Study:
    """Measure and return the record."""
    machine = describe_machine()
    parts = [clip for clip in clips(120) if clip.seconds <= MAX_UTTERANCE_S]
    counts = [int(count) for count in options.streams.split(",")]
    with tempfile.TemporaryDirectory(prefix="aimass-bench-") as folder:
        name = _fill(Path(folder), options)
        with ServiceProcess("speech", store=folder, model="") as service:
            _play(service.address, name, parts[:2], num_streams=1, is_flushed=False)  # warm
            tables = [_latencies(service.address, name, parts, counts, options.utterances)]
            if options.endurance_minutes:
                tables.append(_endurance(service.address, name, parts, options.endurance_minutes))
            if options.silence_minutes:
                tables.append(_silence(service.address, name, options.silence_minutes))
    return Study(
        name=f"speech-live-{name}",
        title=f"Live speech recognition: {MODELS[options.model].title}, {options.precision}",
        command=command,
        machine=machine,
        remarks=[
            "After a flush: from when it was sent, right behind the last sound of the clip",
            f"After silence: from when the last of the {END_SILENCE_S:g} s of silence that end an utterance "
            "was sent, the first moment at which a server may say that it is over",
            "After speech: from when the audio was sent in which the detector says that speech ended; the "
            f"{END_SILENCE_S:g} s of silence count",
        ],
        settings={"utterances": f"{options.utterances} a stream, at most 5 s", "pieces": f"{PIECE_S:g} s"},
        tables=tables,
        panels=[Panel("median", "ms", {str(row[0]): float(row[2]) for row in tables[0].rows})],
    )


def _fill(store: Path, options: argparse.Namespace) -> str:
    """Put the recogniser and the detector into one store; return the recogniser's name."""
    model = MODELS[options.model]
    for source in (model.store(options.precision), cached_export("silero-vad", name="silero-vad")):
        shutil.copytree(source, store, dirs_exist_ok=True)
    return model.served_name(options.precision)


def _latencies(address: str, model: str, parts: list[Clip], counts: list[int], num_utterances: int) -> Table:
    rows: list[list[str | float]] = []
    for num_streams, is_flushed in itertools.product(counts, (False, True)):
        own = list(itertools.islice(itertools.cycle(parts), num_utterances))
        heard = _play(address, model, own, num_streams=num_streams, is_flushed=is_flushed)
        wer = _word_errors(heard, own)
        ending = f"{num_streams} stream{'s' if num_streams > 1 else ''}, ended by "
        ending += "flush" if is_flushed else "silence"
        final_aim = "p50 200, p95 500" if num_streams == 1 else "p95 1000"
        kinds = [
            ("first interim", "first_interim_s", "p50 700" if num_streams == 1 else ""),
            (f"final after {'the flush' if is_flushed else 'silence'}", "final_s", final_aim),
            *([] if is_flushed else [("final after speech", "after_speech_s", "")]),
        ]
        for what, name, aim in kinds:
            values = [value for one in heard for value in getattr(one, name)]
            rows.append([f"{what}, {ending}", len(values), *_spread_ms(values), aim, wer])
    columns = ["", "count", "p50 ms", "p95 ms", "most ms", "aim", "WER %"]
    return Table("Latencies of utterances of at most 5 s", columns, rows)


def _word_errors(heard: Sequence[Heard], own: list[Clip]) -> float:
    texts = [" ".join(one.texts) for one in heard]
    whole = Clip("all", "all", own[0].samples, " ".join(clip.words for clip in own))
    return statistics.fmean(error_rates([whole], [text])["wer_all"] for text in texts)


def _spread_ms(values: Sequence[float]) -> tuple[float, float, float]:
    if not values:
        return (float("nan"),) * 3
    p50, p95 = np.percentile(values, (50, 95))
    return 1e3 * float(p50), 1e3 * float(p95), 1e3 * max(values)


def _endurance(address: str, model: str, parts: list[Clip], minutes: float) -> Table:
    """Play 8 streams for a long time, and see whether their finals come later and later."""
    seconds, own = 0.0, []
    for clip in itertools.cycle(parts):
        if seconds >= 60 * minutes:
            break
        own.append(clip)
        seconds += clip.seconds + PAUSE_S
    heard = _play(address, model, own, num_streams=8, is_flushed=False)
    third = max(1, len(own) // 3)
    first = [value for one in heard for value in one.final_s[:third]]
    last = [value for one in heard for value in one.final_s[-third:]]
    at_s = [value for one in heard for value in one.final_at_s]
    slope = np.polynomial.Polynomial.fit(at_s, [value for one in heard for value in one.final_s], 1)
    rows: list[list[str | float]] = [
        ["finals of the first third", *_spread_ms(first)],
        ["finals of the last third", *_spread_ms(last)],
        ["behind the last audio", *_spread_ms([one.lag_s for one in heard])],
    ]
    growth_ms = 60e3 * float(slope.convert().coef[1])
    heading = f"{minutes:g} minutes of 8 streams: finals come {growth_ms:+.1f} ms later each minute (aim: 0)"
    return Table(heading, ["", "p50 ms", "p95 ms", "most ms"], rows)


def _silence(address: str, model: str, minutes: float) -> Table:
    rows: list[list[str | float]] = []
    rng, second = np.random.default_rng(1), RATE_HZ
    for name, scale in (("silence", 0.0), ("noise", 0.02)):
        content = (
            _pcm(rng.normal(scale=scale, size=second).astype(np.float32)) for _ in range(int(60 * minutes))
        )
        with (
            RecognitionClient(address) as client,
            client.recognize_stream(content, model=model, audio_format=PCM) as stream,
        ):
            finals = [event for event in stream if isinstance(event, Final)]
        words = sum(len(final.segment.text.split()) for final in finals)
        rows.append([name, f"{minutes:g} min", words, "0"])
    return Table("Audio without speech", ["", "length", "words", "aim"], rows)


def _play(
    address: str, model: str, parts: Sequence[Clip], *, num_streams: int, is_flushed: bool
) -> list[Heard]:
    """Play the same clips on every stream; they begin some time apart, as callers do."""
    heard = [Heard() for _ in range(num_streams)]
    with RecognitionClient(address) as client:
        threads = [
            threading.Thread(target=_follow, args=(client, model, Player(parts, is_flushed=is_flushed), one))
            for one in heard
        ]
        for thread in threads:
            thread.start()
            time.sleep(0.73)
        for thread in threads:
            thread.join()
    return heard


def _follow(client: RecognitionClient, model: str, player: Player, heard: Heard) -> None:
    begun: dict[int, float] = {}
    num_begun, ended_s, spoken_s = 0, 0.0, 0.0
    stream = client.recognize_stream(
        player.pieces(),
        model=model,
        audio_format=PCM,
        interim_results=True,
        end_silence_s=NO_SILENCE if player.flushes else END_SILENCE_S,
    )
    with stream:
        for event in stream:
            now_s = time.perf_counter()
            match event:
                case SpeechActivity(is_begin=True):
                    begun[num_begun] = player.sent_at(event.at_s)
                    num_begun += 1
                case SpeechActivity():
                    ended_s = player.sent_at(event.at_s + END_SILENCE_S)
                    spoken_s = player.sent_at(event.at_s)
                case Interim() if event.utterance in begun:
                    heard.first_interim_s.append(now_s - begun.pop(event.utterance))
                case Final():
                    heard.texts.append(event.segment.text)
                    if player.flushes:
                        ended_s = max(sent_s for sent_s in player.flushed_s if sent_s <= now_s)
                    heard.final_s.append(now_s - ended_s)
                    heard.after_speech_s.append(now_s - spoken_s)
                    heard.final_at_s.append(now_s - player.started_s)
    heard.lag_s = time.perf_counter() - player.finished_s
