"""A window on its way through the decoder: its slots, its attempts, what has been found so far.

Knows no graph and no queue.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from aimass_decoding.cross_attention import SourceMemory
from aimass_serving.errors import AimassError

from aimass_speech.attempt import Attempt, BeamAttempt, DrawnAttempt, SingleAttempt
from aimass_speech.phrase_search import PhraseSearch
from aimass_speech.token_rules import TokenRules
from aimass_speech.window import Reading, WindowRequest, WindowResult

logger = logging.getLogger(__name__)

PHRASE_WIDTH = 8
"""Beginnings of phrases that are followed together, where slots are free."""
_SEED_STEP = 1000
"""Between the seeds of outputs drawn at one temperature."""


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """Outputs that the rules took for a failure, best first, and how often the best repeats itself."""

    readings: list[Reading]
    compression_ratio: float


@dataclass(slots=True, eq=False)
class WindowJob:
    """A window on its way. The event loop reads `done`; everything else belongs to the thread."""

    request: WindowRequest
    number: int
    done: asyncio.Future[WindowResult]
    submitted_ns: int
    started_ns: int = 0
    encoded_ns: int = 0
    memory: SourceMemory | None = None
    slots: list[int] = field(default_factory=list)
    rules: TokenRules | None = None
    attempt: Attempt | None = None
    drawn: list[Reading] = field(default_factory=list)
    """Outputs drawn so far at the present temperature."""
    phrases: PhraseSearch | None = None
    """Set while phrases are scored, after the free reading."""
    best: Reading | None = None
    """The reading that was taken, while other readings are searched for."""
    num_attempts: int = 0
    failures: list[FailedAttempt] = field(default_factory=list)
    start_ids: tuple[int, ...] = ()
    """Every token before the first that is chosen."""
    language: str = ""
    language_probability: float = 1.0
    no_speech: float = 0.0

    @property
    def num_slots(self) -> int:
        """Slots it needs to begin."""
        return self.request.num_beams

    @property
    def wants_others(self) -> bool:
        """Whether other readings are still to be searched for."""
        return self.request.num_readings > 1 and self.best is None and self.temperature == 0

    @property
    def urgency(self) -> tuple[int, int]:
        """Lowest first."""
        return (-self.request.priority, self.number)

    @property
    def temperature(self) -> float:
        return self.request.temperatures[self.num_attempts - 1]

    def free_attempt(self, *, end_of_text: int, room: int) -> Attempt:
        """Return the attempt at the present temperature, which may use all of the slots."""
        request, rules = self.request, self.the_rules
        if self.temperature == 0 and request.num_beams > 1:
            return BeamAttempt(
                rules, end_of_text=end_of_text, max_new_tokens=room, num_beams=request.num_beams
            )
        is_drawn = self.temperature > 0
        count = min(request.best_of - len(self.drawn), len(self.slots)) if is_drawn else 1
        singles = [
            SingleAttempt(
                rules,
                end_of_text=end_of_text,
                max_new_tokens=room,
                temperature=self.temperature,
                seed=self.num_attempts + _SEED_STEP * (len(self.drawn) + place),
            )
            for place in range(count)
        ]
        return DrawnAttempt(singles) if is_drawn else singles[0]

    def least_bad(self) -> list[Reading]:
        """Return the outputs to take when every temperature has failed.

        The most probable of those that do not repeat themselves, as faster-whisper does. OpenAI's
        `transcribe` takes the last, drawn at temperature 1, whatever it says.
        """
        max_ratio = self.request.rules.max_compression_ratio
        plain = [failure for failure in self.failures if failure.compression_ratio <= max_ratio]
        return max(plain or self.failures, key=lambda failure: failure.readings[0].avg_logprob).readings

    @property
    def the_rules(self) -> TokenRules:
        """Its rules, once it has begun."""
        assert self.rules is not None, "set when a window begins"
        return self.rules

    def draft(self, *, room: int) -> tuple[int, ...]:
        """Return the guess at the outcome of the present attempt; empty for one that searches or draws."""
        is_greedy = self.temperature == 0 and self.request.num_beams == 1
        return self.request.draft_ids[: room - 1] if is_greedy else ()

    @property
    def missing_draws(self) -> int:
        """Outputs still to be drawn at the present temperature."""
        return self.request.best_of - len(self.drawn) if self.temperature > 0 else 0


def settle(job: WindowJob, outcome: WindowResult | AimassError) -> None:
    """Hand the outcome to the event loop, unless nobody waits any more."""

    def set_outcome() -> None:
        if job.done.done():
            return
        if isinstance(outcome, AimassError):
            job.done.set_exception(outcome)
        else:
            job.done.set_result(outcome)

    try:
        job.done.get_loop().call_soon_threadsafe(set_outcome)
    except RuntimeError:
        logger.debug("the event loop has ended: nobody waits for what was computed last")
