"""A voice that needs no graph, for tests: every symbol is a tone of its own, a few frames long."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from aimass_speech.synthesis.alphabet import Alphabet
from aimass_speech.synthesis.characters import CharacterReader
from aimass_speech.synthesis.noise import Noise
from aimass_speech.synthesis.speaking import VoiceParts
from aimass_speech.synthesis.voice import Manner

FRAMES_PER_SYMBOL = 4


class FakeSpeech:
    """A phrase of a `FakeVoice`: its samples are known at once."""

    def __init__(
        self,
        voice: FakeVoice,
        ids: NDArray[np.int64],
        samples: NDArray[np.float32],
        durations: NDArray[np.int64],
    ) -> None:
        self._voice, self._ids, self._samples = voice, ids, samples
        self.durations = durations

    @property
    def num_frames(self) -> int:
        return int(self.durations.sum())

    def render(self, start: int, end: int) -> NDArray[np.float32]:
        self._voice.before_render()
        self._voice.rendered.append(int(self._ids[0]))
        hop = self._voice.hop_samples
        return self._samples[start * hop : end * hop]


class FakeVoice:
    """A voice of tones. `before_render` is called on the engine's thread before each chunk."""

    sample_rate_hz = 8_000
    hop_samples = 80
    execution_provider = "CPUExecutionProvider"

    def __init__(self, before_render: Callable[[], None] = lambda: None) -> None:
        self.before_render = before_render
        self.rendered: list[int] = []
        """First id of the phrase of each chunk."""

    @property
    def num_renders(self) -> int:
        """Chunks computed."""
        return len(self.rendered)

    def begin(self, ids: NDArray[np.int64], manner: Manner, noise: Noise) -> FakeSpeech:
        frames = max(1, round(FRAMES_PER_SYMBOL / manner.rate))
        durations = np.full(len(ids), frames, np.int64)
        pitch = np.repeat(ids.astype(np.float32), durations * self.hop_samples)
        hiss = noise.draw(len(pitch)) * np.float32(0.01)
        samples = np.sin(0.01 * pitch * np.arange(len(pitch))) / 2 + hiss
        return FakeSpeech(self, ids, samples, durations)


class Gate:
    """Holds the engine's thread before a chunk until it is opened, to look at what happens meanwhile."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self.reached = threading.Event()

    def __call__(self) -> None:
        """Wait; called on the engine's thread."""
        self.reached.set()
        assert self._open.wait(10), "the test opens the gate"

    def open(self) -> None:
        """Let the thread go on, now and from now on."""
        self._open.set()


def letter_parts(voice: FakeVoice, *, ids: Mapping[str, int] | None = None) -> VoiceParts:
    """Return a voice whose symbols are the small letters, the space and the full stop."""
    letters = ids or {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz .", 1)}
    alphabet = Alphabet(letters)
    return VoiceParts(voice, alphabet, CharacterReader(alphabet))
