"""Several listeners at once: each starts its player with the first chunk, and none may run dry."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from aimass import AudioEncoding, SynthesisClient, SynthesisOptions

from bench.playback import Playback
from bench.service import ServiceProcess
from bench.synthesis_runners import LONG, WARM_UP, sentences
from bench.table import Table

_BYTES_PER_SAMPLE = 2


@dataclass(slots=True)
class _Listener:
    """What one listener heard. Owned by its thread."""

    players: list[Playback] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)


def parallel_table(stores: Mapping[str, Path], counts: Sequence[int], *, num_rounds: int) -> Table:
    """Return underruns and margins of so many listeners, who all begin at once, round by round."""
    rows: list[list[str | float]] = []
    for voice, store in stores.items():
        with (
            ServiceProcess("speech", store=str(store), model=voice) as service,
            SynthesisClient(service.address) as client,
        ):
            for text in sentences(WARM_UP, 0):
                _listen(client, voice, text, _Listener())
            rows += [_row(client, voice, count, num_rounds) for count in counts]
    columns = ["", "sentences", "underruns", "least margin, ms", "first audio, p50 ms", "first audio, p95 ms"]
    return Table("Listeners who begin at once, sentences of about 12 s (aim, 4: no underrun)", columns, rows)


def _row(client: SynthesisClient, voice: str, count: int, num_rounds: int) -> list[str | float]:
    listeners = [_Listener() for _ in range(count)]
    start = threading.Barrier(count)
    texts = sentences(LONG, count * num_rounds)

    def follow(number: int) -> None:
        for turn in range(num_rounds):
            start.wait()
            text = texts[(turn * count + number) % len(texts)]
            _listen(client, voice, text, listeners[number])

    threads = [threading.Thread(target=follow, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    players = [player for listener in listeners for player in listener.players]
    p50, p95 = np.percentile([each for listener in listeners for each in listener.first_s], (50, 95))
    return [
        f"{voice}, {count} at once",
        len(players),
        sum(player.num_underruns for player in players),
        1e3 * min(player.least_margin_s for player in players),
        1e3 * float(p50),
        1e3 * float(p95),
    ]


def _listen(client: SynthesisClient, voice: str, text: str, listener: _Listener) -> None:
    player, start_s = Playback(), time.perf_counter()
    options = SynthesisOptions(encoding=AudioEncoding.PCM_S16LE)
    listener.players.append(player)
    with client.speak(text, voice=voice, options=options) as stream:
        for number, chunk in enumerate(stream):
            now_s = time.perf_counter()
            if number == 0:
                listener.first_s.append(now_s - start_s)
            audio_s = len(chunk.data) / _BYTES_PER_SAMPLE / stream.info.sample_rate_hz
            player.take(audio_s, now_s=now_s)
