"""What the generation engine gives: what it understood, text as it becomes final, and how it ended."""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of text, which will not change any more, and the tokens that are wholly out with it."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request."""

    input_tokens: int
    output_tokens: int
    """Tokens the model produced, the one that ended the text included."""


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


GenerationEvent = PromptInfo | TextDelta | GenerationFinish


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole generation: its stream, collected."""

    prompt_info: PromptInfo
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish: GenerationFinish


def _ms(start_ns: int, end_ns: int) -> float:
    """Wall clocks may step back: a length is never negative."""
    return max(0, end_ns - start_ns) / 1e6
