"""What the generation engine gives: what it understood, text as it becomes final, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from aimass_decoding.request import SequenceTimings, TokenLogprob


class FinishReason(StrEnum):
    """Why a text ended: the decoding engine's reasons, and stop strings."""

    EOS = "eos"
    STOP_STRING = "stop_string"
    STOP_TOKEN = "stop_token"  # noqa: S105 - not a secret
    MAX_NEW_TOKENS = "max_new_tokens"
    CONTEXT_FULL = "context_full"
    TIME_LIMIT = "time_limit"


@dataclass(frozen=True, slots=True)
class PromptInfo:
    """What the engine understood of a request."""

    prompt_ids: tuple[int, ...]
    """Special tokens included."""
    seed: int | None
    """The seed in use; None when decoding is greedy."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """Those of the prompt's tokens but the first, when asked for."""
    adapter: str = ""
    """Name of the adapter in use; empty for the base model alone."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of text, which will not change any more, and the tokens that are wholly out with it."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    index: int = 0
    """Which of the request's sequences this is of."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a sequence."""

    input_tokens: int
    output_tokens: int
    """Tokens the model produced, the one that ended the text included."""
    cached_input_tokens: int = 0
    """Tokens of the prompt that were copied from another's cache instead of computed."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in milliseconds of wall time."""

    tokenize_ms: float
    queue_ms: float
    prefill_ms: float
    """Computing the prompt, up to the first token."""
    decode_ms: float
    """From the first token to the end."""
    time_to_first_token_ms: float
    """From arrival to the first token; 0 if there was none."""
    total_ms: float
    """From arrival to the end."""

    @classmethod
    def of(cls, phases: SequenceTimings, *, arrived_ns: int, tokenized_ns: int, finished_ns: int) -> Timings:
        """Return the phases' lengths. One that never began took no time; one still running ends now."""
        prefill_ns = phases.prefill_ns or finished_ns
        first_token_ns = phases.first_token_ns or finished_ns
        return cls(
            tokenize_ms=_ms(arrived_ns, tokenized_ns),
            queue_ms=_ms(phases.submitted_ns or prefill_ns, prefill_ns),
            prefill_ms=_ms(prefill_ns, first_token_ns),
            decode_ms=_ms(first_token_ns, finished_ns),
            time_to_first_token_ms=_ms(arrived_ns, first_token_ns) if phases.first_token_ns else 0.0,
            total_ms=_ms(arrived_ns, finished_ns),
        )


@dataclass(frozen=True, slots=True)
class GenerationFinish:
    """How a text ended."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    stop_string: str | None = None
    """The stop string that appeared, for STOP_STRING."""
    stop_token_id: int | None = None
    """The token that ended the text, for EOS and STOP_TOKEN."""
    index: int = 0
    """Which of the request's sequences ended."""


GenerationEvent = PromptInfo | TextDelta | GenerationFinish


@dataclass(frozen=True, slots=True)
class Continuation:
    """One whole sequence."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish: GenerationFinish

    @classmethod
    def of(cls, deltas: Sequence[TextDelta], finish: GenerationFinish) -> Continuation:
        """Join the deltas of a sequence."""
        return cls(
            text="".join(delta.text for delta in deltas),
            token_ids=tuple(token_id for delta in deltas for token_id in delta.token_ids),
            logprobs=tuple(logprob for delta in deltas for logprob in delta.logprobs),
            finish=finish,
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole generation: its stream, collected."""

    prompt_info: PromptInfo
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish: GenerationFinish
    further: tuple[Continuation, ...] = ()
    """The sequences after the first."""


def _ms(start_ns: int, end_ns: int) -> float:
    """Wall clocks may step back: a length is never negative."""
    return max(0, end_ns - start_ns) / 1e6
