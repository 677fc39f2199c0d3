"""What goes into the engine and what comes out: token ids, how to choose them, and when to end.

Construction is validation: an instance that exists is in range. Knows no text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
from aimass_serving.errors import InvalidField
from numpy.typing import NDArray

from aimass_decoding.cross_attention import SourceMemory

MAX_TOP_LOGPROBS = 20
MAX_STOP_TOKENS = 64
MAX_LOGIT_BIASES = 1024
MAX_ALLOWED_TOKENS = 4096
MAX_SEQUENCES = 16
MAX_CACHE_SALT_CHARS = 256
MAX_BEAMS = 16
MAX_NGRAM = 64


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
    """How the next token is chosen: penalties, bias, allowed tokens, temperature, filters, then one draw.

    The order is: repetition penalty, frequency and presence penalty, logit bias, allowed tokens, temperature,
    top-k, top-p, min-p, typical-p.
    """

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
    typical_p: float = 1.0
    """Keep the tokens whose surprise is nearest to the expected one, until their probability reaches p. Range
    (0, 1]. Locally typical sampling: Meister et al. 2022."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit for each time it was generated; the prompt does not count. Range -2 to 2."""
    presence_penalty: float = 0.0
    """Taken from a token's logit once it was generated; the prompt does not count. Range -2 to 2."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these tokens. At most 1024, each from -100 to 100."""
    allowed_token_ids: tuple[int, ...] = ()
    """Only these, and the tokens that end the text, may be chosen; empty allows all. At most 4096."""
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
        _require(0 < self.typical_p <= 1, "sampling.typical_p", "a number above 0, up to 1", self.typical_p)
        for name in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            _require(-2 <= value <= 2, f"sampling.{name}", "a number from -2 to 2", value)
        self._check_tokens()

    def _check_tokens(self) -> None:
        num_biases, num_allowed = len(self.logit_bias), len(self.allowed_token_ids)
        _require(
            num_biases <= MAX_LOGIT_BIASES, "sampling.logit_bias", f"at most {MAX_LOGIT_BIASES}", num_biases
        )
        for token_id, bias in self.logit_bias.items():
            _require(
                -100 <= bias <= 100, f"sampling.logit_bias[{token_id}]", "a number from -100 to 100", bias
            )
        _require(
            num_allowed <= MAX_ALLOWED_TOKENS,
            "sampling.allowed_token_ids",
            f"at most {MAX_ALLOWED_TOKENS}",
            num_allowed,
        )

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0


@dataclass(frozen=True, slots=True)
class BeamParams:
    """How to search with beams. Several texts are written side by side; the best as a whole is given."""

    num_beams: int = 1
    """Range 1 to 16; 1 is greedy."""
    length_penalty: float = 1.0
    """A finished text's score is its log-probability divided by its length to this power. Range -10 to 10."""
    early_stopping: bool = False
    """End as soon as `num_beams` texts are finished; else when no running one looks better than the worst."""
    no_repeat_ngram_size: int = 0
    """No run of this many tokens occurs twice, those of the prompt included; 0 allows all. Range 0 to 64."""
    forced_eos_id: int | None = None
    """The token that a text ends with when it becomes as long as it may."""
    num_counted_prompt_tokens: int = 0
    """Last tokens of the prompt that count as written where a score is divided by a length."""

    def __post_init__(self) -> None:
        """Refuse values outside their range, naming the field as the wire names it."""
        _require(
            1 <= self.num_beams <= MAX_BEAMS,
            "beams.num_beams",
            f"a number from 1 to {MAX_BEAMS}",
            self.num_beams,
        )
        _require(
            -10 <= self.length_penalty <= 10,
            "beams.length_penalty",
            "a number from -10 to 10",
            self.length_penalty,
        )
        _require(
            0 <= self.no_repeat_ngram_size <= MAX_NGRAM,
            "beams.no_repeat_ngram_size",
            f"a number from 0 to {MAX_NGRAM}",
            self.no_repeat_ngram_size,
        )

    @property
    def is_greedy(self) -> bool:
        """Whether no search is needed: the best token each time is the answer."""
        return self.num_beams == 1 and self.no_repeat_ngram_size == 0


class TokenMask(Protocol):
    """Which tokens may come next in one sequence, by the tokens before.

    The methods are called in turn, one at a time, on a thread beside the engine's, so that a mask is computed
    while the graph runs. What they raise ends the sequence.
    """

    def allowed(self) -> NDArray[np.uint32] | None:
        """Return one bit a token, set when it may come next; None allows all.

        Shape `[ceil(vocab / 32)]`, token i is bit `i % 32` of word `i // 32`; tokens beyond the end may not.
        It stays as it is until the next call.
        """

    def accept(self, token_id: int) -> None:
        """Take the token that was chosen into account. Not called with one that ends the sequence."""


@dataclass(frozen=True, slots=True)
class SequenceRequest:
    """A prompt, and how to continue it: once, or several times side by side."""

    request_id: str
    prompt_ids: NDArray[np.int64]  # [num_prompt_tokens], at least one
    max_new_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    num_sequences: int = 1
    """Continuations of the prompt, which is computed once. Sequence i draws with the seed plus i. At most 16;
    more than one only with a temperature above 0."""
    cache_salt: str = ""
    """Only prompts with the same salt share what was computed of them. At most 256 characters."""
    new_mask: Callable[[], TokenMask] | None = field(default=None, repr=False, compare=False)
    """Makes the mask of each sequence; it runs on the thread of the masks."""
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
    beams: BeamParams | None = None
    """Search with beams: one sequence, without draws, masks and log-probabilities; its text comes whole."""
    wants_prompt_logprobs: bool = False
    """Give the log-probability of each prompt token but the first. Such a prompt shares nothing."""
    adapter: int = 0
    """Number of the adapter the sequence is computed with, from 1; 0 is none. Prompts of different adapters
    share nothing."""

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
            1 <= self.num_sequences <= MAX_SEQUENCES,
            "num_sequences",
            f"a number from 1 to {MAX_SEQUENCES}",
            self.num_sequences,
        )
        _require(
            self.num_sequences == 1 or not self.sampling.is_greedy,
            "num_sequences",
            "1 without a temperature: greedy sequences would all be the same",
            self.num_sequences,
        )
        _require(
            len(self.cache_salt) <= MAX_CACHE_SALT_CHARS,
            "cache_salt",
            f"at most {MAX_CACHE_SALT_CHARS} characters",
            len(self.cache_salt),
        )
        _require(
            0 <= self.num_top_logprobs <= MAX_TOP_LOGPROBS,
            "output.top_logprobs",
            f"a number from 0 to {MAX_TOP_LOGPROBS}",
            self.num_top_logprobs,
        )
        _require(-100 <= self.priority <= 100, "priority", "a number from -100 to 100", self.priority)
        is_plain = self.num_sequences == 1 and self.sampling.is_greedy and self.new_mask is None
        _require(
            self.beams is None or (is_plain and not self.wants_logprobs and not self.wants_prompt_logprobs),
            "beams",
            "no draws, log-probabilities, guidance or further sequences with beams",
            self.beams,
        )


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
    num_reused_prompt_tokens: int = 0
    """Prompt tokens that were not computed for this sequence: another's were copied."""


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
    index: int = 0
    """Which of the request's sequences this is of."""
    timings: SequenceTimings | None = None
    """With the first delta: when the phases so far began, for a reader who may stop before the end."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """With the first delta of the request: those of the prompt's tokens but the first, when asked for."""
