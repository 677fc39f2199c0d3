"""One request's way through a voice: pieces become phrases, phrases chunks of audio, one step at a time.

Must not know threads, queues or the wire. Every step is short: one sentence read, or one chunk computed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from aimass_speech.synthesis.alphabet import Alphabet, phonemes_of
from aimass_speech.synthesis.noise import SeededNoise
from aimass_speech.synthesis.phrasing import phrases_of
from aimass_speech.synthesis.reading import Reading, TextReader, Word, joined
from aimass_speech.synthesis.script import (
    MAX_RATE,
    MAX_VOLUME_DB,
    MIN_RATE,
    MIN_VOLUME_DB,
    Mark,
    Pause,
    Phonemes,
    Piece,
    Spoken,
    Style,
    SynthesisOptions,
)
from aimass_speech.synthesis.voice import Manner, Speech, Voice

FIRST_CHUNK_FRAMES, MAX_CHUNK_FRAMES = 12, 160
"""A chunk has twice the frames of the one before it: the first one is there soon, later ones cost less."""
MAX_REPORTED = 1000
"""Symbols that are reported as unpronounceable."""
_PAUSE_CHUNK_S = 1.0


class TimingKind(Enum):
    """What a timing is about."""

    WORD = "word"
    PHONEME = "phoneme"
    MARK = "mark"


@dataclass(frozen=True, slots=True)
class Timing:
    """When something is spoken, in samples of the voice from the start of the audio."""

    kind: TimingKind
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next stretch of audio."""

    samples: NDArray[np.float32]  # [n]
    timings: Sequence[Timing] = ()
    """Of what begins in this chunk, in order of time."""


@dataclass(frozen=True, slots=True, eq=False)
class VoiceParts:
    """What a request is spoken with."""

    voice: Voice
    alphabet: Alphabet
    reader: TextReader


@dataclass(frozen=True, slots=True)
class _Phrase:
    words: Sequence[Word]
    style: Style


@dataclass(slots=True, eq=False)
class _Open:
    """The phrase that is being computed."""

    speech: Speech
    gain: np.float32
    timings: deque[Timing]
    position: int = 0


@dataclass(slots=True, eq=False)
class Speaking:
    """One request. Owned by the thread that steps it; `pieces` is fed between steps."""

    parts: VoiceParts
    options: SynthesisOptions
    seed: int
    pieces: deque[Piece] = field(default_factory=deque)
    unpronounceable: dict[str, None] = field(default_factory=dict)
    num_samples: int = 0
    """Samples given so far."""
    _phrases: deque[_Phrase] = field(default_factory=deque)
    _open: _Open | None = None
    _num_phrases: int = 0
    _chunk_frames: int = FIRST_CHUNK_FRAMES
    _waiting_marks: list[Timing] = field(default_factory=list)
    _pause_left: int = 0
    _pronunciations: Mapping[str, str] = field(init=False)
    """Symbols of the request's own pronunciations, by word."""

    def __post_init__(self) -> None:
        """Write the request's pronunciations in the voice's symbols."""
        alphabet, given = self.parts.alphabet, self.options.pronunciations
        self._pronunciations = {word: alphabet.of_ipa(ipa) for word, ipa in given.items()}

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do until more pieces come."""
        return not (self.pieces or self._phrases or self._open or self._pause_left or self._waiting_marks)

    def step(self) -> Chunk | None:
        """Do the next piece of work; return the audio it gave, if any. Raises `UnspeakablePhrase`."""
        if self._pause_left:
            return self._silence()
        if self._open is None and not self._phrases and self.pieces:
            self._take(self.pieces.popleft())
        if self._open is None and self._phrases:
            self._begin(self._phrases.popleft())
        if self._open is not None:
            return self._render(self._open)
        return self._marks_alone() if not self.pieces else None

    # From pieces to phrases.

    def _take(self, piece: Piece) -> None:
        match piece:
            case Pause():
                self._pause_left = round(piece.seconds * self.parts.voice.sample_rate_hz)
            case Mark():
                self._waiting_marks.append(
                    Timing(TimingKind.MARK, piece.name, self.num_samples, self.num_samples)
                )
            case Spoken():
                self._plan(self.parts.reader.read(piece.text, self._pronunciations), piece.style)
            case Phonemes():
                self._plan(self._read_phonemes(piece), piece.style)

    def _plan(self, reading: Reading, style: Style) -> None:
        self._report(reading.unpronounceable)
        is_first = not self._num_phrases
        for words in phrases_of(reading.words, is_first=is_first):
            if any(word.is_spoken for word in words):
                self._phrases.append(_Phrase(words, style))

    def _read_phonemes(self, piece: Phonemes) -> Reading:
        """Return words of IPA. With a text, they are one word."""
        alphabet = self.parts.alphabet
        symbols = [alphabet.of_ipa(ipa) for ipa in piece.ipa.split()]
        unknown = [symbol for word in symbols for symbol in alphabet.unknown(word)]
        if piece.text:
            return Reading([Word(piece.text, alphabet.known(" ".join(symbols)))], unknown)
        return Reading([Word(ipa, alphabet.known(ipa)) for ipa in symbols], unknown)

    def _report(self, symbols: Iterable[str]) -> None:
        for symbol in symbols:
            if len(self.unpronounceable) < MAX_REPORTED:
                self.unpronounceable[symbol] = None

    # From phrases to chunks.

    def _begin(self, phrase: _Phrase) -> None:
        alphabet, symbols = self.parts.alphabet, joined(phrase.words)
        rate = min(max(self.options.rate * phrase.style.rate, MIN_RATE), MAX_RATE)
        noise = SeededNoise(self.seed, self._num_phrases)
        speech = self.parts.voice.begin(alphabet.encode(symbols), Manner(rate), noise)
        self._num_phrases += 1
        volume_db = self.options.volume_db + phrase.style.volume_db
        gain = 10 ** (min(max(volume_db, MIN_VOLUME_DB), MAX_VOLUME_DB) / 20)
        begins = alphabet.symbol_frames(symbols, speech.durations) * self.parts.voice.hop_samples
        timings = deque(self._timings(phrase.words, symbols, self.num_samples + begins))
        self._open = _Open(speech, np.float32(gain), timings)

    def _timings(self, words: Sequence[Word], symbols: str, begins: NDArray[np.int64]) -> Iterable[Timing]:
        """Yield what was asked for, in order of time; a word before its phonemes."""
        place = 0
        for word in words:
            end = place + len(word.symbols)
            if word.is_spoken and self.options.has_words:
                yield Timing(TimingKind.WORD, word.text, int(begins[place]), int(begins[end]))
            if self.options.has_phonemes:
                for first, last in phonemes_of(symbols[place:end]):
                    text = symbols[place + first : place + last]
                    if text[-1].isalpha() or text[0].isalpha():
                        span = int(begins[place + first]), int(begins[place + last])
                        yield Timing(TimingKind.PHONEME, text, *span)
            place = end + word.has_space

    def _render(self, current: _Open) -> Chunk:
        begin = current.position
        end = min(current.speech.num_frames, begin + self._chunk_frames)
        samples = current.speech.render(begin, end) * current.gain
        current.position = end
        self._chunk_frames = min(MAX_CHUNK_FRAMES, 2 * self._chunk_frames)
        if end == current.speech.num_frames:
            self._open = None
        return self._chunk(samples, current.timings, is_last=self._open is None)

    def _silence(self) -> Chunk:
        count = min(self._pause_left, round(_PAUSE_CHUNK_S * self.parts.voice.sample_rate_hz))
        self._pause_left -= count
        return self._chunk(np.zeros(count, np.float32), deque(), is_last=True)

    def _marks_alone(self) -> Chunk | None:
        """Tell of marks that nothing is spoken behind."""
        if not self._waiting_marks:
            return None
        return self._chunk(np.zeros(0, np.float32), deque(), is_last=True)

    def _chunk(self, samples: NDArray[np.float32], timings: deque[Timing], *, is_last: bool) -> Chunk:
        """Count the samples, and take the timings that begin in them."""
        self.num_samples += len(samples)
        begun, self._waiting_marks = self._waiting_marks, []
        while timings and (is_last or timings[0].start < self.num_samples):
            begun.append(timings.popleft())
        return Chunk(samples, begun)
