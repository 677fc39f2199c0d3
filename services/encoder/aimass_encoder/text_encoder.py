"""Texts in, readings out: checks and tokenises the texts of a call and has them encoded, for every task.

Must not know what a reading is (the head) nor what is made of it. One bad text fails its own result; what
concerns the whole call is raised.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from aimass_serving.errors import AimassError, InputTooLong, InvalidField
from aimass_serving.telemetry import GenAiMeasurement, emit_phase, record_gen_ai

from aimass_encoder.config import EncoderConfig
from aimass_encoder.head import Head
from aimass_encoder.pipeline import BatchPipeline, EncodeTimes
from aimass_encoder.request import PhaseTimings, Truncation
from aimass_encoder.runner import EncoderRunner, TokenRow
from aimass_encoder.tokenization import TextInput, TokenizedText, Tokenizer, TokenizerPool

A = TypeVar("A")
B = TypeVar("B")
Reading = TypeVar("Reading")

_NS_PER_MS = 1e6


@dataclass(frozen=True, slots=True)
class TextCall:
    """The texts of one call, and how they are to be read."""

    texts: Sequence[TextInput]
    """A text that is bad by itself fails its own result, not the call."""
    field_of: Callable[[int], str]
    """The wire's name of text number `index`, for error messages."""
    list_field: str
    """The wire's name of all of them."""
    truncation: Truncation = Truncation.END
    deadline_s: float | None = None
    """On `time.monotonic`: past it, waiting texts are dropped and the call fails."""
    prefixes: Sequence[str] = ()
    """Put before the texts that are no pairs, one for each; none at all for none."""
    max_total_tokens: int | None = None
    """Most tokens of all texts together; None for no bound."""
    needs_spans: bool = False
    """Whether to report where tokens stand in the text."""
    part_fields: tuple[str, str] = (".text", ".text_pair")
    """What the wire's names of the two texts of a pair end in."""


@dataclass(frozen=True, slots=True)
class Encoded(Generic[A]):
    """What was read off one text."""

    reading: A
    text: TokenizedText


@dataclass(frozen=True, slots=True)
class EncodedTexts(Generic[A]):
    """One result for each text of a call, in order."""

    results: Sequence[Encoded[A] | AimassError]
    timings: PhaseTimings

    @property
    def num_tokens(self) -> int:
        """Tokens the model saw, over all texts."""
        return sum(len(r.text.token_ids) for r in self.results if isinstance(r, Encoded))


class TextEncoder:
    """One model's tokeniser and graph. Lives on the event loop; its work runs in threads of its own."""

    def __init__(
        self,
        runner: EncoderRunner,
        tokenizer: Tokenizer,
        *,
        model: str,
        config: EncoderConfig,
        permit: AbstractContextManager[None],
    ) -> None:
        self.model = model
        self.config = config
        self.max_tokens = tokenizer.max_tokens
        """Longest text, special tokens included."""
        self.execution_provider = runner.execution_provider
        self._tokenizers = TokenizerPool(
            tokenizer, num_threads=config.num_tokenizer_threads, max_waiting_chars=config.max_tokenizing_chars
        )
        limits = config.batch_limits(
            runner.execution_provider,
            max_tokens=tokenizer.max_tokens,
            output_bytes_per_token=runner.output_bytes_per_token,
        )
        self.pipeline = BatchPipeline(runner, limits, model=model, permit=permit)

    def close(self) -> None:
        """Stop at once: work that waits fails. Blocking; may be called twice."""
        self.pipeline.close()
        self._tokenizers.close()

    async def encode(self, call: TextCall, head: Head[Reading]) -> EncodedTexts[Reading]:
        """Return what `head` reads off each text, in order; a bad text has an error in its place.

        Readings are the same, up to rounding, whatever else runs at the time. Raises `InvalidField` for too
        many texts, `Overloaded`, `DeadlineExceeded`, `Draining`.
        """
        arrived_ns = time.time_ns()
        tokenized = await self.tokenize(call)
        readings, times = await self._run(tokenized, head, deadline_s=call.deadline_s)
        results = [_encoded(r, t) for r, t in zip(readings, tokenized, strict=True)]
        return EncodedTexts(results, phase_timings(arrived_ns, times, time.time_ns()))

    @contextmanager
    def measured(self, operation: str) -> Iterator[None]:
        """Record how long a call took and how it ended, under the name of its operation."""
        start_s, error_type = time.monotonic(), None
        try:
            yield
        except AimassError as error:
            error_type = error.reason
            raise
        except asyncio.CancelledError:
            error_type = "CANCELLED"
            raise
        finally:
            duration_s = time.monotonic() - start_s
            record_gen_ai(
                GenAiMeasurement(
                    operation=operation, model=self.model, duration_s=duration_s, error_type=error_type
                )
            )

    def _check_num_texts(self, call: TextCall) -> None:
        if len(call.texts) > self.config.max_batch_items:
            expected = f"at most {self.config.max_batch_items} texts"
            raise InvalidField(call.list_field, expected=expected, got=len(call.texts))

    async def tokenize(self, call: TextCall) -> Sequence[TokenizedText | AimassError]:
        """Return the tokens of each text, in order; a bad text has an error in its place.

        Raises `InvalidField` for too many texts, `Overloaded`, `DeadlineExceeded`, `Draining`.
        """
        self._check_num_texts(call)
        self.pipeline.check_admission(deadline_s=call.deadline_s)
        start_ns = time.time_ns()
        checked = [
            self._check_text(text, call.field_of(i), call.part_fields) or _prefixed(text, call, i)
            for i, text in enumerate(call.texts)
        ]
        try:
            tokenized = await self._tokenizers.tokenize(
                good(checked), call.truncation, needs_spans=call.needs_spans
            )
        finally:
            emit_phase("tokenize", start_ns, time.time_ns())
        _check_total(tokenized, call)
        return [
            item if isinstance(item, AimassError) else self._check_tokens(item, call, i) or item
            for i, item in enumerate(merged(checked, tokenized))
        ]

    def _check_text(self, text: TextInput, field: str, part_fields: tuple[str, str]) -> AimassError | None:
        if isinstance(text, tuple):
            checked = [
                self._check_text(part, field + end, part_fields)
                for part, end in zip(text, part_fields, strict=True)
            ]
            return next(iter(filter(None, checked)), None)
        if not text:
            return InvalidField(field, expected="a text that is not empty", got=text)
        if len(text) > self.config.max_text_chars:
            expected = f"at most {self.config.max_text_chars} characters"
            return InvalidField(field, expected=expected, got=len(text))
        return None

    def _check_tokens(self, text: TokenizedText, call: TextCall, index: int) -> AimassError | None:
        field = call.field_of(index)
        if text.num_truncated_tokens and call.truncation is Truncation.NONE:
            num_tokens = len(text.token_ids) + text.num_truncated_tokens
            return InputTooLong(field, num_tokens=num_tokens, max_tokens=self.max_tokens)
        if not len(text.token_ids):
            return InvalidField(field, expected="a text with at least one token", got=call.texts[index])
        return None

    async def _run(
        self,
        tokenized: Sequence[TokenizedText | AimassError],
        head: Head[Reading],
        *,
        deadline_s: float | None,
    ) -> tuple[Sequence[Reading | AimassError], EncodeTimes]:
        texts = good(tokenized)
        if not texts:
            return [item for item in tokenized if isinstance(item, AimassError)], EncodeTimes.none()
        rows = [TokenRow(text.token_ids, text.type_ids) for text in texts]
        readings, times = await self.pipeline.run(rows, head, deadline_s=deadline_s)
        return merged(tokenized, readings), times


def good(items: Sequence[A | AimassError]) -> list[A]:
    """Return the items that are not errors."""
    return [item for item in items if not isinstance(item, AimassError)]


def merged(items: Sequence[A | AimassError], results: Sequence[B]) -> list[B | AimassError]:
    """Put the results of the good items in their places, and leave errors where they are."""
    remaining = iter(results)
    return [item if isinstance(item, AimassError) else next(remaining) for item in items]


def phase_timings(arrived_ns: int, times: EncodeTimes, now_ns: int) -> PhaseTimings:
    """Return the phases' durations of a call that arrived and ended then, on the wall clock."""
    return PhaseTimings(
        tokenize_ms=(times.submitted_ns - arrived_ns) / _NS_PER_MS,
        queue_ms=(times.started_ns - times.submitted_ns) / _NS_PER_MS,
        compute_ms=(times.finished_ns - times.started_ns) / _NS_PER_MS,
        total_ms=(now_ns - arrived_ns) / _NS_PER_MS,
    )


def _check_total(tokenized: Sequence[TokenizedText], call: TextCall) -> None:
    num_tokens = sum(len(text.token_ids) for text in tokenized)
    if call.max_total_tokens is not None and num_tokens > call.max_total_tokens:
        expected = f"at most {call.max_total_tokens} tokens together, so that the answer can be sent"
        raise InvalidField(call.list_field, expected=expected, got=num_tokens)


def _prefixed(text: TextInput, call: TextCall, index: int) -> TextInput:
    return call.prefixes[index] + text if call.prefixes and isinstance(text, str) else text


def _encoded(reading: A | AimassError, text: TokenizedText | AimassError) -> Encoded[A] | AimassError:
    if isinstance(reading, AimassError):
        return reading
    assert isinstance(text, TokenizedText), "only tokenised texts were encoded"
    return Encoded(reading, text)
