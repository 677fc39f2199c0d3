"""The demo with small models: what a newcomer sees, and that nothing is left running."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

DEMO = Path(__file__).parents[2] / "demo" / "demo.py"


@pytest.fixture(scope="module")
def store(
    tiny_llama_store: Path,
    minilm_store: Path,
    hibari_store: Path,
    whisper_tiny_store: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "models"
    for source in (tiny_llama_store, minilm_store, hibari_store, whisper_tiny_store):
        shutil.copytree(source, folder, dirs_exist_ok=True)
    return folder


def demo(store: Path, *more: str) -> Sequence[str]:
    own = ["--chat-model", "tiny-llama", "--audio", str(store.parent / "answer.wav")]
    return [sys.executable, str(DEMO), "--store", str(store), *own, *more]


def test_the_demo_shows_a_chat_a_table_and_two_connected_traces(store: Path) -> None:
    result = subprocess.run(demo(store), capture_output=True, text=True, timeout=300, check=False)

    assert result.returncode == 0, result.stdout + result.stderr
    shown = result.stdout
    assert "tokens/s" in shown
    assert "0.502" in shown, "the similarity of the first two sentences, as sentence-transformers has it"
    for phase in ("tokenize", "queue", "prefill", "decode", "batch", "first_audio", "recognize"):
        assert f"── {phase}" in shown
    conversation = shown[shown.index("conversation  ") : shown.index("next ─")]
    for service in ("aimass-generation", "aimass-speech", "aimass-encoder"):
        assert service in conversation
    with wave.open(str(store.parent / "answer.wav")) as file:
        assert file.getnframes() > file.getframerate(), "more than a second is spoken"
    assert "aimass-demo" in shown
    assert "aimass up --store" in shown
    places = [shown.index(f"{part} ─") for part in ("chat", "speech", "embeddings", "traces", "next")]
    assert places == sorted(places)


def test_a_model_that_cannot_be_exported_ends_the_demo_with_a_message(store: Path) -> None:
    arguments = demo(store, "--embedding-model", "no-such-model")
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)

    assert result.returncode == 1
    assert "The demo failed: exporting no-such-model ended with exit code" in result.stdout


def test_services_that_do_not_start_end_the_demo_with_what_they_said(store: Path, tmp_path: Path) -> None:
    broken = tmp_path / "models"
    shutil.copytree(store, broken)
    graph = next(broken.glob("tiny-llama/*/decoder.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1])
    result = subprocess.run(demo(broken), capture_output=True, text=True, timeout=300, check=False)

    assert result.returncode == 1
    assert "The demo failed: the services did not become ready" in result.stdout
    assert "tiny-llama" in result.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_demo_leaves_nothing_running(store: Path, number: signal.Signals, code: int) -> None:
    with subprocess.Popen(demo(store), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            _wait_until(lambda: len(_serving(store)) >= 4, "`aimass up` and three services run")
            os.kill(process.pid, number)
            process.communicate(timeout=60)
        finally:
            process.kill()

    assert process.returncode == code
    _wait_until(lambda: _serving(store) == [], "no service is left")


def _serving(store: Path) -> list[psutil.Process]:
    """Processes that were given the store of this test, the demo itself excepted."""
    found = psutil.process_iter(["cmdline"])
    commands = [(process, process.info["cmdline"] or []) for process in found]
    return [process for process, words in commands if str(store) in words and str(DEMO) not in words]


def _wait_until(is_so: Callable[[], bool], what: str) -> None:
    until_s = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < until_s, f"not within 60 s: {what}"
        time.sleep(0.05)
