"""`aimass transcribe`: a recording as text, JSON or subtitles; with --stream, while it is sent."""

from __future__ import annotations

import json
import sys
import time
import wave
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from aimass.cli.options import SPEECH_ADDRESS, Address, Deadline, ModelName
from aimass.cli.session import chosen_model, connected
from aimass.recognition_client import RecognitionClient
from aimass.recognition_options import AudioEncoding, AudioFormat, RecognitionOptions
from aimass.transcripts import Final, Interim, RecognitionEvent, Segment

PIECE_S = 0.1
TASK = "speech_recognition"


class TranscriptFormat(StrEnum):
    """How the transcript is printed."""

    TEXT = "text"
    JSON = "json"
    SRT = "srt"
    VTT = "vtt"


File = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="WAV, FLAC, Ogg or MP3.")]
Stream = Annotated[bool, typer.Option("--stream", help="Send it as live audio; 16-bit WAV only.")]
Realtime = Annotated[bool, typer.Option("--realtime", help="With --stream: no faster than it is spoken.")]
Format = Annotated[TranscriptFormat, typer.Option("--format", help="What to print.")]
Language = Annotated[str | None, typer.Option(help="Language spoken, such as en. Default: found out.")]
Translate = Annotated[bool, typer.Option("--translate", help="Write English, whatever is spoken.")]
BeamSize = Annotated[int | None, typer.Option(help="Beams of the search; 1 is greedy.")]
HotPhrase = Annotated[
    list[str] | None, typer.Option("--hot-phrase", help="Favour this phrase; may be repeated.")
]
Phrase = Annotated[
    list[str] | None,
    typer.Option("--phrase", help="Answer this phrase, or another one given so, or nothing."),
]


def transcribe(
    ctx: typer.Context,
    file: File,
    *,
    model: ModelName = None,
    address: Address = SPEECH_ADDRESS,
    stream: Stream = False,
    realtime: Realtime = False,
    output: Format = TranscriptFormat.TEXT,
    language: Language = None,
    translate: Translate = False,
    beam_size: BeamSize = None,
    hot_phrase: HotPhrase = None,
    phrase: Phrase = None,
    deadline_s: Deadline = None,
) -> None:
    """Write down the speech of a recording."""
    options = RecognitionOptions(
        language=language,
        translate=translate,
        beam_size=beam_size,
        hot_phrases=dict.fromkeys(hot_phrase or (), None),
        phrases=phrase or (),
        word_times=output is TranscriptFormat.JSON and not phrase,
    )
    with connected(ctx, address) as connection:
        name = chosen_model(connection, model, task=TASK)
        client = RecognitionClient(connection)
        if stream:
            audio = _WavPieces(file, is_realtime=realtime)
            events = client.recognize_stream(
                audio,
                model=name,
                audio_format=audio.format,
                options=options,
                interim_results=sys.stderr.isatty(),
                deadline_s=deadline_s,
            )
            with events:
                _follow(events, audio, output)
        else:
            with Console(stderr=True).status(f"listening to {file.name}"):
                segments = client.recognize(
                    file.read_bytes(), model=name, options=options, deadline_s=deadline_s
                ).segments
            _print_all(segments, output)


def transcript_object(segments: Sequence[Segment]) -> dict[str, object]:
    """Return a transcript as one JSON-ready object: text, segments, words."""
    plain = [asdict(segment) for segment in segments]
    words = [word for segment in plain for word in segment.pop("words")]
    text = " ".join(segment.text.strip() for segment in segments)
    return {"text": text, "segments": plain, "words": words}


def subtitles(segments: Sequence[Segment], output: TranscriptFormat) -> str:
    """Return SubRip (`srt`) or WebVTT (`vtt`) subtitles, one for each segment."""
    mark = "," if output is TranscriptFormat.SRT else "."
    blocks = [
        f"{index}\n{_clock(s.start_s, mark)} --> {_clock(s.end_s, mark)}\n{s.text.strip()}\n"
        for index, s in enumerate(segments, 1)
    ]
    header = [] if output is TranscriptFormat.SRT else ["WEBVTT\n"]
    return "\n".join([*header, *blocks])


def _clock(seconds: float, mark: str) -> str:
    whole_ms = round(seconds * 1000)
    minutes, ms = divmod(whole_ms, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{ms // 1000:02}{mark}{ms % 1000:03}"


def _print_all(segments: Sequence[Segment], output: TranscriptFormat) -> None:
    if output is TranscriptFormat.JSON:
        typer.echo(json.dumps(transcript_object(segments), ensure_ascii=False))
    elif output is TranscriptFormat.TEXT:
        typer.echo(" ".join(segment.text.strip() for segment in segments))
    else:
        typer.echo(subtitles(segments, output))


class _WavPieces:
    """The samples of a WAV file in pieces, as a microphone gives them."""

    def __init__(self, file: Path, *, is_realtime: bool) -> None:
        self._file = file
        self._is_realtime = is_realtime
        self.seconds_read = 0.0
        try:
            with wave.open(str(file)) as opened:
                width, rate, channels = opened.getsampwidth(), opened.getframerate(), opened.getnchannels()
                self.length_s = opened.getnframes() / rate
        except (wave.Error, EOFError) as error:
            raise typer.BadParameter(f"--stream needs a WAV file: {error}", param_hint="FILE") from error
        if width != 2:
            raise typer.BadParameter(f"--stream needs 16-bit samples, got {8 * width}-bit", param_hint="FILE")
        self.format = AudioFormat(
            encoding=AudioEncoding.PCM_S16LE, sample_rate_hz=rate, num_channels=channels
        )

    def __iter__(self) -> Iterator[bytes]:
        start_s = time.monotonic()
        with wave.open(str(self._file)) as opened:
            while piece := opened.readframes(int(PIECE_S * opened.getframerate())):
                if self._is_realtime:
                    time.sleep(max(0.0, start_s + self.seconds_read - time.monotonic()))
                yield piece
                self.seconds_read += PIECE_S


def _follow(events: Iterator[RecognitionEvent], audio: _WavPieces, output: TranscriptFormat) -> None:
    """Print finals as they come; on a terminal, what is being said and how far the file is, below them."""
    segments: list[Segment] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=audio.length_s)
        for event in events:
            progress.update(bar, completed=audio.seconds_read)
            if isinstance(event, Final):
                segments.append(event.segment)
                if output is TranscriptFormat.TEXT and event.segment.text:
                    typer.echo(event.segment.text.strip())
            _show(event, lambda text: progress.update(bar, description=text))
    if output is not TranscriptFormat.TEXT:
        _print_all(segments, output)


def _show(event: RecognitionEvent, describe: Callable[[str], None]) -> None:
    if isinstance(event, Interim):
        describe(f"{escape(event.committed_text[-120:])}[dim]{escape(event.tentative_text[-60:])}[/dim]")
    elif isinstance(event, Final):
        describe("")
