"""The whole journey in one command: export, serve, chat, speak and hear the answer, embed, show traces, stop.

`make demo` runs it. It uses what a user has: the `aimass` command and the Python client. What was exported
stays in the store (`AIMASS_STORE`, else `models/`), so that a second run starts at once.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from aimass import (
    AudioEncoding,
    EmbeddingClient,
    GenerationClient,
    GenerationOptions,
    RecognitionClient,
    RpcError,
    SpokenAudio,
    SynthesisClient,
    SynthesisOptions,
    export_spans,
)
from aimass.cli.embed import similarity_table
from aimass.trace_collector import TraceCollector, running_collector
from aimass.trace_tree import FinishedSpan, print_tree, span_forest
from opentelemetry import trace
from rich.console import Console
from rich.markup import escape

CHAT_MODEL = "smollm2-135m-instruct"
EMBEDDING_MODEL = "all-minilm-l6-v2"
VOICE, SPEECH_MODEL = "hibari-heart", "whisper-tiny.en"
AUDIO_FILE = Path(tempfile.gettempdir()) / "aimass-demo-answer.wav"
QUESTION = "Why is the sky blue? Explain it to a child in three sentences."
SENTENCES = (
    "A man is playing the guitar on stage.",
    "Someone performs music for an audience.",
    "The central bank raised interest rates.",
    "Borrowing money has become more expensive.",
)
MAX_NEW_TOKENS = 120

READY_WITHIN_S = 300.0
END_WITHIN_S = 30.0
TRACES_WITHIN_S = 10.0
SPANS_EVERY_MS = "200"
"""How long the services gather spans before they send them; the standard 5 s would keep viewers waiting."""

AIMASS = (sys.executable, "-m", "aimass.cli")


class DemoFailed(Exception):
    """A step did not work; the message says which, and what is known about it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which models to show, and where they are kept."""

    store: Path
    chat_model: str
    embedding_model: str
    voice: str
    speech_model: str
    audio: Path
    """Where the spoken answer is written."""

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that is shown."""
        return self.chat_model, self.embedding_model, self.voice, self.speech_model


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; return its exit code."""
    console = Console()
    plan = _plan(argv)
    signal.signal(signal.SIGTERM, _leave)
    try:
        _run(console, plan)
    except (DemoFailed, RpcError) as failure:
        console.print(f"\nThe demo failed: {failure}", style="bold red", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("\nStopped.")
        return 130
    return 0


def _plan(argv: Sequence[str] | None) -> Plan:
    parser = argparse.ArgumentParser(
        description="Export, serve, chat, speak, embed and trace, in one command."
    )
    store = os.environ.get("AIMASS_STORE") or "models"
    parser.add_argument("--store", type=Path, default=Path(store), help="folder of the models (%(default)s)")
    parser.add_argument("--chat-model", default=CHAT_MODEL, help="model that answers (%(default)s)")
    parser.add_argument("--embedding-model", default=EMBEDDING_MODEL, help="model that embeds (%(default)s)")
    parser.add_argument("--voice", default=VOICE, help="voice that speaks the answer (%(default)s)")
    parser.add_argument("--speech-model", default=SPEECH_MODEL, help="model that hears it (%(default)s)")
    parser.add_argument("--audio", type=Path, default=AUDIO_FILE, help="file of the answer (%(default)s)")
    return Plan(**vars(parser.parse_args(argv)))


def _run(console: Console, plan: Plan) -> None:
    for model in plan.models:
        export_unless_there(console, model, plan.store)
    collector = TraceCollector(quiet_s=2 * int(SPANS_EVERY_MS) / 1000)
    with running_collector(collector, port=0) as port:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{port}"
        with running_services(console, plan.store) as addresses:
            flush = export_spans("aimass-demo")
            with trace.get_tracer(__name__).start_as_current_span("conversation"):
                answer, spoken = chat(console, addresses, plan)
                hear(console, addresses, plan, answer=answer, spoken=spoken)
            embed(console, addresses["encoder"], plan.embedding_model)
            flush()
            show_traces(console, collector)
    _say_what_is_next(console, plan)


def export_unless_there(console: Console, model: str, store: Path) -> None:
    """Export a model of the catalogue into the store; its own progress bars show how far it is."""
    if any(store.glob(f"{model}/*/manifest.json")):
        console.print(f"[green]✓[/] {model} is in {store}/")
        return
    console.print(f"Exporting [bold]{model}[/] into {store}/ (once; takes a minute or two)")
    command = [*AIMASS, "export", model, "--precision", "fp32", "--store", str(store)]
    if (code := subprocess.run(command, check=False).returncode) != 0:  # noqa: S603 - a command of our own
        raise DemoFailed(f"exporting {model} ended with exit code {code}")


@contextmanager
def running_services(console: Console, store: Path) -> Iterator[Mapping[str, str]]:
    """Run every service on a free port; give their addresses by name. They end when the block does."""
    ports = [text for name in ("generation", "encoder", "speech") for text in ("--port", f"{name}=0")]
    command = [*AIMASS, "up", "--store", str(store), *ports, "--log-level", "warning", "--json"]
    environ = {**os.environ, "OTEL_BSP_SCHEDULE_DELAY": SPANS_EVERY_MS}
    # A session of its own: Ctrl-C reaches the demo alone, which then ends the services in order.
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(  # noqa: S603 - a command of our own
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environ, start_new_session=True
        ) as process,
    ):
        try:
            with console.status("Starting the services: load, verify and warm up the models"):
                ready_line = _first_line(process)
            yield _addresses(ready_line, log)
        finally:
            _end(process)


def chat(console: Console, addresses: Mapping[str, str], plan: Plan) -> tuple[str, SpokenAudio]:
    """Stream an answer token by token, spoken sentence by sentence meanwhile; say how fast it came."""
    console.rule("chat", align="left")
    console.print(f"[bold]you>[/] {QUESTION}\n[bold]{plan.chat_model}>[/] ", end="")
    options = GenerationOptions(temperature=0.0, max_new_tokens=MAX_NEW_TOKENS)
    started_s = time.monotonic()
    answer = ""
    with (
        GenerationClient(addresses["generation"]) as client,
        client.generate([("user", QUESTION)], model=plan.chat_model, options=options) as stream,
        spoken_meanwhile(addresses["speech"], plan.voice) as speech,
    ):
        first_s = None
        for delta in stream:
            first_s = first_s or time.monotonic()
            sys.stdout.write(delta.text)
            sys.stdout.flush()
            answer += delta.text
            speech.pieces.put(delta.text)
    usage, decode_s = stream.finish.usage, stream.finish.timings.compute_ms / 1000
    speed = (usage.output_tokens - 1) / decode_s if decode_s else 0.0
    first_ms = ((first_s or started_s) - started_s) * 1000
    console.print(
        f"\n[dim]first text after {first_ms:.0f} ms, {speed:.0f} tokens/s; "
        f"{usage.input_tokens} + {usage.output_tokens} tokens, ended by {stream.finish.reason}[/]"
    )
    return answer, speech.audio.result()


@dataclass(frozen=True, slots=True)
class Speech:
    """An answer that is spoken while it is written."""

    pieces: queue.SimpleQueue[str | None]
    """Its text as it comes; None at its end."""
    audio: Future[SpokenAudio]


@contextmanager
def spoken_meanwhile(address: str, voice: str) -> Iterator[Speech]:
    """Speak what is put into `pieces` while the block runs; the audio is complete when it has ended."""
    pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    options = SynthesisOptions(encoding=AudioEncoding.PCM_S16LE)
    with (
        SynthesisClient(address) as client,
        client.speak_stream(iter(pieces.get, None), voice=voice, options=options) as stream,
        ThreadPoolExecutor(1) as reader,
    ):
        try:
            yield Speech(pieces, reader.submit(stream.read_all))
        finally:
            pieces.put(None)


def hear(
    console: Console, addresses: Mapping[str, str], plan: Plan, *, answer: str, spoken: SpokenAudio
) -> None:
    """Write the spoken answer to a file, write down what is heard in it, and compare the two texts."""
    console.rule("speech", align="left")
    with wave.open(str(plan.audio), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(spoken.info.sample_rate_hz)
        file.writeframes(spoken.data)
    seconds = f"{spoken.end.audio_s:.1f} s"
    console.print(f"{plan.audio}: {seconds}, spoken by {plan.voice} while it was written")
    with RecognitionClient(addresses["speech"]) as client:
        heard = client.recognize(plan.audio.read_bytes(), model=plan.speech_model)
    console.print(f"[bold]{plan.speech_model} heard>[/] {escape(heard.text.strip())}")
    with EmbeddingClient(addresses["encoder"]) as encoder:
        written, read_back = encoder.embed([answer, heard.text], model=plan.embedding_model).require_all()
    alike = sum(left * right for left, right in zip(written, read_back, strict=True))
    console.print(f"[dim]alike in meaning: {alike:.3f}; heard in {heard.total_ms:.0f} ms[/]")


def embed(console: Console, address: str, model: str) -> None:
    """Embed a few sentences and show which are alike."""
    console.rule("embeddings", align="left")
    with EmbeddingClient(address) as client:
        vectors = client.embed(SENTENCES, model=model).require_all()
    console.print(similarity_table(SENTENCES, vectors))


def show_traces(console: Console, collector: TraceCollector) -> None:
    """Show the trees of the two requests, once the services have sent their part of both."""
    console.rule("traces", align="left")
    traces: list[Sequence[FinishedSpan]] = []
    until_s = time.monotonic() + TRACES_WITHIN_S
    while len(traces) < 2 and time.monotonic() < until_s:
        traces += [spans for spans in collector.take_finished() if _has_both_sides(spans)]
        time.sleep(0.05)
    if len(traces) < 2:
        raise DemoFailed(
            f"expected the traces of two requests within {TRACES_WITHIN_S:.0f} s, got {len(traces)}"
        )
    for spans in sorted(traces, key=lambda each: min(span.start_ns for span in each)):
        for root in span_forest(spans):
            print_tree(root)


def _has_both_sides(spans: Sequence[FinishedSpan]) -> bool:
    return len({span.service for span in spans}) > 1


def _first_line(process: subprocess.Popen[str]) -> str:
    """Return the line that says that all is ready; empty when the process ended first."""
    assert process.stdout is not None
    overdue = threading.Timer(READY_WITHIN_S, process.terminate)
    overdue.start()
    try:
        return process.stdout.readline()
    finally:
        overdue.cancel()


def _addresses(ready_line: str, log: IO[str]) -> Mapping[str, str]:
    if not ready_line:
        log.seek(0)
        raise DemoFailed(f"the services did not become ready. They said:\n{log.read()[-2000:]}")
    return {service["service"]: service["address"] for service in json.loads(ready_line)["services"]}


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(END_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _say_what_is_next(console: Console, plan: Plan) -> None:
    console.rule("next", align="left")
    console.print(
        f"aimass up --store {plan.store}          # serve on ports 50051, 50052 and 50053\n"
        "aimass status                       # in another terminal: what is served, is it ready\n"
        f"aimass chat --model {plan.chat_model}\n"
        f'aimass generate "Once upon a time" --model {plan.chat_model} --json\n'
        f'aimass embed "one text" "another" --model {plan.embedding_model}\n'
        f'aimass speak "Hello there." --voice {plan.voice} -o hello.wav\n'
        f"aimass transcribe hello.wav --model {plan.speech_model}\n"
        "aimass traces                       # shows every request's trace",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _leave(number: int, frame: object) -> None:
    """End in order on SIGTERM: the `finally` blocks stop the services."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
