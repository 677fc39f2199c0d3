"""`aimass speak`: text, from the command line or standard input, to an audio file."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.console import Console

from aimass.channel import Connection
from aimass.cli.options import SPEECH_ADDRESS, Address, AsJson, Deadline
from aimass.cli.session import connected
from aimass.recognition_options import AudioEncoding
from aimass.spoken_audio import SpeechTiming
from aimass.synthesis_client import SpeechStream, SynthesisClient
from aimass.synthesis_options import SynthesisOptions

_ENCODINGS = {
    ".wav": AudioEncoding.WAV,
    ".flac": AudioEncoding.FLAC,
    ".ogg": AudioEncoding.OGG_OPUS,
    ".opus": AudioEncoding.OGG_OPUS,
    ".mp3": AudioEncoding.MP3,
    ".pcm": AudioEncoding.PCM_S16LE,
    ".ulaw": AudioEncoding.MULAW,
    ".alaw": AudioEncoding.ALAW,
}
_WAV_HEADER_BYTES = 44
_STDIN = "-"

Text = Annotated[
    str | None, typer.Argument(help="What to speak. Default, or -: standard input, sentence by sentence.")
]
VoiceName = Annotated[
    str | None, typer.Option("--voice", help="Name or name@version. Default: the only voice there is.")
]
Output = Annotated[
    Path, typer.Option("-o", "--output", dir_okay=False, help=f"File to write: {' '.join(_ENCODINGS)}")
]
Ssml = Annotated[bool, typer.Option("--ssml", help="The text is an SSML document.")]
Rate = Annotated[float | None, typer.Option(help="Speaking rate; 2 is twice as fast.")]
Volume = Annotated[float | None, typer.Option("--volume", metavar="DB", help="Change of loudness.")]
SampleRate = Annotated[int | None, typer.Option(help="Samples a second. Default: the voice's own.")]
SpeechSeed = Annotated[int | None, typer.Option("--seed", help="Makes the audio repeatable.")]
Pronounce = Annotated[
    list[str] | None, typer.Option(metavar="WORD=IPA", help="How to say a word; may be repeated.")
]


def speak(
    ctx: typer.Context,
    text: Text = None,
    *,
    output: Output,
    voice: VoiceName = None,
    address: Address = SPEECH_ADDRESS,
    ssml: Ssml = False,
    rate: Rate = None,
    volume_db: Volume = None,
    sample_rate: SampleRate = None,
    seed: SpeechSeed = None,
    pronounce: Pronounce = None,
    as_json: AsJson = False,
    deadline_s: Deadline = None,
) -> None:
    """Speak a text into an audio file."""
    options = SynthesisOptions(
        rate=rate,
        volume_db=volume_db,
        encoding=_encoding(output),
        sample_rate_hz=sample_rate,
        seed=seed,
        pronunciations=dict(_pronunciation(item) for item in pronounce or ()),
        word_timings=as_json,
    )
    with connected(ctx, address) as connection:
        stream = _start(connection, text, voice or "", options, ssml=ssml, deadline_s=deadline_s)
        with stream:
            timings = _write(stream, output)
    _report(stream, output, timings, as_json=as_json)


def _start(
    connection: Connection,
    text: str | None,
    voice: str,
    options: SynthesisOptions,
    *,
    ssml: bool,
    deadline_s: float | None,
) -> SpeechStream:
    client = SynthesisClient(connection)
    from_stdin = text is None or text == _STDIN
    if ssml:
        document = sys.stdin.read() if from_stdin else text or ""
        return client.speak_ssml(document, voice=voice, options=options, deadline_s=deadline_s)
    if from_stdin:
        return client.speak_stream(_lines(), voice=voice, options=options, deadline_s=deadline_s)
    return client.speak(text or "", voice=voice, options=options, deadline_s=deadline_s)


def _lines() -> Iterator[str]:
    """Yield standard input as it comes, in pieces that a message can hold."""
    while line := sys.stdin.readline(10_000):
        yield line


def _encoding(output: Path) -> AudioEncoding:
    encoding = _ENCODINGS.get(output.suffix.lower())
    if encoding is None:
        expected = f"a file that ends in one of {' '.join(_ENCODINGS)}"
        raise typer.BadParameter(f"expected {expected}, got {output.name}", param_hint="--output")
    return encoding


def _pronunciation(item: str) -> tuple[str, str]:
    word, separator, ipa = item.partition("=")
    if not separator:
        raise typer.BadParameter(f"expected WORD=IPA, got {item}", param_hint="--pronounce")
    return word, ipa


def _write(stream: SpeechStream, output: Path) -> list[SpeechTiming]:
    """Write the audio as it comes, and say how much there is; return the timings."""
    timings: list[SpeechTiming] = []
    num_bytes = 0
    unfinished = output.with_name(f".{output.name}.part")
    try:
        with unfinished.open("wb") as file, Console(stderr=True).status("speaking") as status:
            for chunk in stream:
                file.write(chunk.data)
                timings += chunk.timings
                num_bytes += len(chunk.data)
                status.update(f"speaking: {num_bytes / 1024:.0f} KiB")
            if stream.info.encoding is AudioEncoding.WAV:
                _state_length(file, num_bytes)
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)
    return timings


def _state_length(file: BinaryIO, num_bytes: int) -> None:
    """Write the length into a WAV header, where a stream's says that it is not known."""
    file.seek(4)
    file.write(struct.pack("<I", num_bytes - 8))
    file.seek(_WAV_HEADER_BYTES - 4)
    file.write(struct.pack("<I", num_bytes - _WAV_HEADER_BYTES))


def _report(stream: SpeechStream, output: Path, timings: list[SpeechTiming], *, as_json: bool) -> None:
    info, end = stream.info, stream.end
    if as_json:
        answer = {"file": str(output), **asdict(info), **asdict(end), "timings": [asdict(t) for t in timings]}
        typer.echo(json.dumps(answer, ensure_ascii=False))
        return
    typer.echo(
        f"{output}: {end.audio_s:.2f} s of {info.encoding.value} at {info.sample_rate_hz} Hz, first audio "
        f"after {end.first_audio_ms:.0f} ms, all after {end.total_ms:.0f} ms, seed {info.seed}"
    )
    if end.unpronounceable:
        typer.echo(f"left out, as the voice cannot speak them: {' '.join(end.unpronounceable)}", err=True)
