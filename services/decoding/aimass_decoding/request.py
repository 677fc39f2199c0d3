"""What goes into the engine and what comes out: token ids, how to choose them, and when to end.

Construction is validation: an instance that exists is in range. Knows no text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from aimass_serving.errors import InvalidField
from numpy.typing import NDArray

from aimass_decoding.cross_attention import SourceMemory

MAX_TOP_LOGPROBS = 20
MAX_STOP_TOKENS = 64


class FinishReason(StrEnum):
    """Why a sequence ended. Stop strings are not known here: the text layer above watches for them."""

    EOS = "eos"
    STOP_TOKEN = "stop_token"  # noqa: S105 - not a secret
    MAX_NEW_TOKENS = "max_new_tokens"
    CONTEXT_FULL = "context_full"
    TIME_LIMIT = "time_limit"


def _require(condition: bool, field_name: str, expected: str, got: object) -> None:
    if not condition:
        raise InvalidField(field_name, expected=expected, got=got)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen: repetition penalty, temperature, top-k, top-p, min-p, then one draw."""

    temperature: float = 0.0
    """0 is greedy; above 0 divides the logits. Range 0 to 10."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set whose probability reaches p. Range (0, 1]."""
    min_p: float = 0.0
    """Drop tokens less probable than this share of the best one. Range [0, 1)."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens seen before. Range (0, 10]."""
    seed: int = 0
    """Seeds this sequence's own generator, so that its draws do not depend on its neighbours."""

    def __post_init__(self) -> None:
        """Refuse values outside their range, naming the field as the wire names it."""
        _require(
            math.isfinite(self.temperature) and 0 <= self.temperature <= 10,
            "sampling.temperature",
            "a number from 0 to 10",
            self.temperature,
        )
        _require(self.top_k >= 0, "sampling.top_k", "a whole number of at least 0", self.top_k)
        _require(0 < self.top_p <= 1, "sampling.top_p", "a number above 0, up to 1", self.top_p)
        _require(0 <= self.min_p < 1, "sampling.min_p", "a number from 0 up to, not including, 1", self.min_p)
        _require(
            0 < self.repetition_penalty <= 10,
            "sampling.repetition_penalty",
            "a number above 0, up to 10",
            self.repetition_penalty,
        )

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0


@dataclass(frozen=True, slots=True)
class SequenceRequest:
    """One sequence to run to completion."""

    request_id: str
    prompt_ids: NDArray[np.int64]  # [num_prompt_tokens], at least one
    max_new_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    min_new_tokens: int = 0
    """Tokens of `eos_token_ids` and `stop_token_ids` are not chosen before this many."""
    eos_token_ids: frozenset[int] = frozenset()
    stop_token_ids: frozenset[int] = frozenset()
    wants_logprobs: bool = False
    num_top_logprobs: int = 0
    priority: int = 0
    """Higher is served earlier."""
    deadline_s: float | None = None
    """On the engine's clock (`time.monotonic`): past it the sequence fails with `DeadlineExceeded`."""
    time_limit_at_s: float | None = None
    """On the engine's clock: past it the sequence ends with `FinishReason.TIME_LIMIT`."""
    memory: SourceMemory | None = field(default=None, repr=False, compare=False)
    """What the encoder of an encoder-decoder made of the request's source. The cache of a prompt depends on
    it: two prompts with different memories share nothing."""

    def __post_init__(self) -> None:
        """Refuse values outside their range, naming the field as the wire names it."""
        _require(len(self.prompt_ids) > 0, "prompt", "at least one token", "an empty prompt")
        _require(self.max_new_tokens >= 1, "stopping.max_new_tokens", "at least 1", self.max_new_tokens)
        _require(
            0 <= self.min_new_tokens <= self.max_new_tokens,
            "stopping.min_new_tokens",
            f"a number from 0 to max_new_tokens ({self.max_new_tokens})",
            self.min_new_tokens,
        )
        _require(
            len(self.stop_token_ids) <= MAX_STOP_TOKENS,
            "stopping.stop_token_ids",
            f"at most {MAX_STOP_TOKENS} ids",
            len(self.stop_token_ids),
        )
        _require(
            0 <= self.num_top_logprobs <= MAX_TOP_LOGPROBS,
            "output.top_logprobs",
            f"a number from 0 to {MAX_TOP_LOGPROBS}",
            self.num_top_logprobs,
        )
        _require(-100 <= self.priority <= 100, "priority", "a number from -100 to 100", self.priority)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural log-probability of a chosen token before temperature and filters, and the best at its place."""

    token_id: int
    logprob: float
    candidates: tuple[tuple[int, float], ...] = ()
    """`(token_id, logprob)`, best first."""


@dataclass(frozen=True, slots=True)
class SequenceTimings:
    """When each phase began, in nanoseconds of the wall clock (`time.time_ns`); 0 if it never did."""

    submitted_ns: int
    prefill_ns: int = 0
    first_token_ns: int = 0
    finished_ns: int = 0
    num_steps: int = 0
    """Decode steps the sequence took part in."""


@dataclass(frozen=True, slots=True)
class SequenceFinish:
    """How a sequence ended."""

    reason: FinishReason
    stop_token_id: int | None
    """The token that ended it, for EOS and STOP_TOKEN. It is not among the emitted tokens."""
    num_output_tokens: int
    """Tokens produced, the one that ended the sequence included."""
    timings: SequenceTimings


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """New tokens of one sequence, and its end with the last of them."""

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: SequenceFinish | None = None
    timings: SequenceTimings | None = None
    """With the first delta: when the phases so far began, for a reader who may stop before the end."""
