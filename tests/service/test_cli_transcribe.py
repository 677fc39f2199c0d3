"""`aimass transcribe` and the typed client against the real speech service, started as a user starts it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from aimass import AudioEncoding, AudioFormat, Final, Flush, Flushed, RecognitionClient
from aimass.cli import app
from aimass.errors import InvalidRequest
from numpy.typing import NDArray
from typer.testing import CliRunner

RATE = 16_000


@pytest.fixture(scope="module")
def address(
    silero_store: Path, whisper_tiny_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Address of the speech service, run by `aimass up`."""
    store = tmp_path_factory.mktemp("cli") / "models"
    for source in (silero_store, whisper_tiny_store):
        shutil.copytree(source, store, dirs_exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "aimass.cli",
        "up",
        "--store",
        str(store),
        "--port",
        "speech=0",
        "--json",
    ]
    with subprocess.Popen([*command, "--log-level", "warning"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            (service,) = json.loads(process.stdout.readline())["services"]
            assert service["service"] == "speech"
            yield service["address"]
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0


@pytest.fixture(scope="module")
def recording(spoken: NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("audio") / "spoken.wav"
    soundfile.write(file, spoken, RATE, subtype="PCM_16")
    return file


def transcribed(address: str, *arguments: str) -> str:
    result = CliRunner().invoke(app, ["transcribe", *arguments, "--address", address])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_json_is_one_object_of_text_segments_and_words(address: str, recording: Path) -> None:
    found = json.loads(transcribed(address, str(recording), "--format", "json"))
    assert set(found) == {"text", "segments", "words"}
    assert "age of foolishness" in found["text"]
    assert "".join(word["text"] for word in found["words"]).split() == found["text"].split()
    assert all(0 <= word["start_s"] <= word["end_s"] <= 10 for word in found["words"])


@pytest.mark.parametrize(("name", "begin"), [("srt", "1\n00:00:0"), ("vtt", "WEBVTT\n\n1\n00:00:0")])
def test_subtitles_have_times(name: str, begin: str, address: str, recording: Path) -> None:
    printed = transcribed(address, str(recording), "--format", name)
    assert printed.startswith(begin)
    assert " --> 00:00:" in printed


def test_streamed_finals_are_printed_a_line_each(address: str, recording: Path) -> None:
    lines = transcribed(address, str(recording), "--stream", "--model", "whisper-tiny.en").splitlines()
    assert len(lines) >= 1
    assert "foolishness" in lines[-1].lower()


def test_one_of_the_phrases_is_printed_or_nothing(
    address: str, spoken: NDArray[np.float32], tmp_path: Path
) -> None:
    file = tmp_path / "first.wav"
    soundfile.write(file, spoken[: 4 * RATE], RATE, subtype="PCM_16")
    said = "it was the best of times, it was the worst of times"
    assert transcribed(address, str(file), "--phrase", "stop", "--phrase", said).strip() == said
    assert transcribed(address, str(file), "--phrase", "stop", "--phrase", "turn it off").strip() == ""


def test_what_is_no_audio_fails_with_one_line(address: str, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("no audio at all")
    result = CliRunner().invoke(app, ["transcribe", str(file), "--address", address])
    assert result.exit_code == 1
    assert "audio" in result.stderr
    assert "Traceback" not in result.output


def test_the_client_flushes_and_refuses(address: str, spoken: NDArray[np.float32]) -> None:
    audio = (spoken[: int(2.2 * RATE)] * 32767).astype("<i2").tobytes()
    pcm = AudioFormat(encoding=AudioEncoding.PCM_S16LE, sample_rate_hz=RATE)
    with RecognitionClient(address) as client:
        stream = client.recognize_stream(
            [audio, Flush("f")], model="whisper-tiny.en", audio_format=pcm, end_silence_s=1.0
        )
        with stream:
            events = list(stream)
        with pytest.raises(InvalidRequest, match="at least one sample"):
            client.recognize(b"", model="whisper-tiny.en")
    final, flushed = events[-2:]
    assert isinstance(final, Final)
    assert "it was the best" in final.segment.text.lower()
    assert flushed == Flushed("f")
