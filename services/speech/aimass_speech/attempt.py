"""One attempt at the text of a window: greedy, drawn, or a beam search over several slots.

Owned by the decoding thread. Knows logits and slots' tokens; must not know graphs, audio or text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from aimass_speech.token_rules import TokenRules, best_tokens, log_sum
from aimass_speech.window import Reading


class Attempt(Protocol):
    """Chooses tokens, one step at a time."""

    @property
    def tokens(self) -> Sequence[int]:
        """The newest token of each slot in use, slot by slot."""

    @property
    def num_tokens(self) -> int:
        """Tokens chosen so far; the newest has not been fed yet."""

    def advance(self, logits: NDArray[np.float32]) -> Sequence[int] | None:
        """Choose the next tokens from logits [slots, vocab], or [1, vocab] the first time; they are used up.

        Return for each slot the slot whose cache it must go on from, or None when the attempt is over.
        """

    def readings(self) -> list[Reading]:
        """Return the outputs, best first. Only after the end."""


class SingleAttempt:
    """One output: the most probable token each time, or one drawn at a temperature."""

    def __init__(
        self, rules: TokenRules, *, end_of_text: int, max_new_tokens: int, temperature: float, seed: int
    ) -> None:
        self._rules = rules
        self._end_of_text = end_of_text
        self._max_new_tokens = max_new_tokens
        self._temperature = temperature
        self._random = np.random.default_rng(seed)
        self._output: list[int] = []
        self._logprobs: list[float] = []
        self._is_ended = False

    @property
    def tokens(self) -> Sequence[int]:
        return self._output[-1:]

    @property
    def num_tokens(self) -> int:
        return len(self._output)

    def advance(self, logits: NDArray[np.float32]) -> Sequence[int] | None:
        row = logits[0]
        self._rules.apply(row, self._output)
        token = self._choose(row)
        self._logprobs.append(float(row[token]) - log_sum(row))
        if token == self._end_of_text:
            self._is_ended = True
            return None
        self._output.append(token)
        return [0] if len(self._output) < self._max_new_tokens else None

    def readings(self) -> list[Reading]:
        total, count = sum(self._logprobs), len(self._output) + 1
        return [Reading(tuple(self._output), tuple(self._logprobs[: len(self._output)]), total / count)]

    def _choose(self, logits: NDArray[np.float32]) -> int:
        if self._temperature == 0:
            return int(logits.argmax())
        noise = self._random.gumbel(size=len(logits)).astype(np.float32)
        return int((logits / self._temperature + noise).argmax())


class DrawnAttempt:
    """Several outputs drawn side by side, each in a slot of its own; ends with the last of them.

    Source: `best_of` of OpenAI's whisper.
    """

    def __init__(self, draws: Sequence[SingleAttempt]) -> None:
        self._draws = draws
        self._open = list(range(len(draws)))

    @property
    def tokens(self) -> Sequence[int]:
        return [draw.tokens[-1] if draw.tokens else 0 for draw in self._draws]

    @property
    def num_tokens(self) -> int:
        return max(draw.num_tokens for draw in self._draws)

    def advance(self, logits: NDArray[np.float32]) -> Sequence[int] | None:
        is_first = self.num_tokens == 0
        rows = [0] * len(self._draws) if is_first else range(len(self._draws))
        self._open = [
            place
            for place in self._open
            if self._draws[place].advance(logits[rows[place], None].copy()) is not None
        ]
        return rows if self._open else None

    def readings(self) -> list[Reading]:
        found = [reading for draw in self._draws for reading in draw.readings()]
        return sorted(found, key=lambda reading: -reading.avg_logprob)


@dataclass(frozen=True, slots=True)
class _Beam:
    """A beginning of an output."""

    output: tuple[int, ...]
    logprobs: tuple[float, ...]
    score: float

    def reading(self) -> Reading:
        return Reading(self.output, self.logprobs[: len(self.output)], self.score / (len(self.output) + 1))


class BeamAttempt:
    """The most probable outputs of a beam search: `num_beams` beginnings go on, each in a slot of its own.

    Ends when as many outputs have ended. Source: `BeamSearchDecoder` of OpenAI's whisper, patience 1.

    The most probable outputs of clear speech say the same and differ in their last time only. With `same`,
    which tells what an output says, only the best of those that say the same goes on or counts as ended.
    """

    def __init__(
        self,
        rules: TokenRules,
        *,
        end_of_text: int,
        max_new_tokens: int,
        num_beams: int,
        same: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        self._rules = rules
        self._end_of_text = end_of_text
        self._max_new_tokens = max_new_tokens
        self._num_beams = num_beams
        self._same = same
        self._beams = [_Beam((), (), 0.0)]
        self._ended: list[_Beam] = []

    @property
    def tokens(self) -> Sequence[int]:
        return [beam.output[-1] for beam in self._beams]

    @property
    def num_tokens(self) -> int:
        return len(self._beams[0].output)

    def advance(self, logits: NDArray[np.float32]) -> Sequence[int] | None:
        candidates = sorted(self._candidates(logits), key=lambda item: -item[1].score)
        beams, parents, said = [], [], _Said(self._same)
        for parent, beam in candidates:
            if beam.output[-1] == self._end_of_text:
                ended = _Beam(beam.output[:-1], beam.logprobs, beam.score)
                self._ended.append(ended)
            elif said.is_new(beam.output):
                beams.append(beam)
                parents.append(parent)
            if len(beams) == self._num_beams:
                break
        self._beams = beams or self._beams
        self._ended = self._distinct(self._ended)
        is_over = len(self._ended) >= self._num_beams or not beams
        return None if is_over or self.num_tokens >= self._max_new_tokens else parents

    def readings(self) -> list[Reading]:
        unended = self._beams if len(self._ended) < self._num_beams else []
        readings = [beam.reading() for beam in self._distinct([*self._ended, *unended])]
        return sorted(readings, key=lambda reading: -reading.avg_logprob)[: self._num_beams]

    def _distinct(self, beams: list[_Beam]) -> list[_Beam]:
        """Return the most probable of those that say the same."""
        if self._same is None:
            return beams
        said = _Said(self._same)
        return [beam for beam in sorted(beams, key=lambda beam: -beam.score) if said.is_new(beam.output)]

    def _candidates(self, logits: NDArray[np.float32]) -> list[tuple[int, _Beam]]:
        """Return `(parent, beam)` for the best tokens after each beginning."""
        return [
            (parent, _Beam((*beam.output, token), (*beam.logprobs, logprob), beam.score + logprob))
            for parent, (beam, row) in enumerate(zip(self._beams, logits, strict=False))
            for token, logprob in self._continuations(beam, row)
        ]

    def _continuations(self, beam: _Beam, row: NDArray[np.float32]) -> list[tuple[int, float]]:
        """Return the best possible tokens after a beginning, and their log-probabilities."""
        self._rules.apply(row, beam.output)
        tokens, total = best_tokens(row, self._num_beams + 1), log_sum(row)
        return [(int(token), float(row[token]) - total) for token in tokens if np.isfinite(row[token])]


class _Said:
    """What has been said by outputs so far; everything is new when nothing tells what they say."""

    def __init__(self, same: Callable[[Sequence[int]], str] | None) -> None:
        self._same = same
        self._seen: set[str] = set()

    def is_new(self, output: Sequence[int]) -> bool:
        """Whether no output before this one said the same."""
        if self._same is None:
            return True
        num_before = len(self._seen)
        self._seen.add(self._same(output))
        return len(self._seen) > num_before
