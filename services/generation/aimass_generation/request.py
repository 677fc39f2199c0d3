"""What a caller asks of the generation engine, in text. Construction is validation: all bad fields at once.

Knows no wire and no model: what depends on the model (its vocabulary, its context) the engine checks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from aimass_decoding.request import BeamParams, SamplingParams, SequenceRequest
from aimass_serving.errors import InvalidField, InvalidFields, Violation

from aimass_generation.guidance import Guidance

MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 256

MAX_ADAPTER_CHARS = 128
MAX_TOOLS = 128
MAX_TOOL_CHARS = 262_144
_NOT_WITH_BEAMS = (
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "seed",
    "logit_bias",
    "allowed_token_ids",
    "frequency_penalty",
    "presence_penalty",
)

_ANY_TOKEN = np.zeros(1, np.int64)
_NO_LIMIT = 2**31 - 1


def violation(field_name: str, *, expected: str, got: object) -> Violation:
    """Return one refused field, worded as `InvalidField` words it."""
    return InvalidField(field_name, expected=expected, got=got).violations[0]


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Plain text, tokenised with the model's special tokens."""

    FIELD: ClassVar[str] = "text"
    text: str

    def violations(self) -> Iterator[Violation]:
        """Yield what is wrong whatever the model."""
        if not self.text:
            yield violation(self.FIELD, expected="a text that is not empty", got=self.text)


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids, used as they are."""

    FIELD: ClassVar[str] = "token_ids.ids"
    token_ids: tuple[int, ...]

    def violations(self) -> Iterator[Violation]:
        """Yield what is wrong whatever the model."""
        if not self.token_ids:
            yield violation(self.FIELD, expected="at least one token id", got=[])


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str
    content: str
    tool_calls: tuple[str, ...] = ()
    """Calls the model made in this turn, each a JSON object. At most 128."""
    name: str = ""
    """The tool whose result this is."""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation that ends where the model is to speak, laid out by the model's chat template."""

    FIELD: ClassVar[str] = "chat"
    messages: tuple[ChatMessage, ...]
    tools: tuple[str, ...] = ()
    """Functions the model may call, each a JSON object. At most 128, together at most 262144 characters."""

    def violations(self) -> Iterator[Violation]:
        """Yield what is wrong whatever the model."""
        if not self.messages:
            yield violation("chat.messages", expected="at least one message", got=[])
        for index, message in enumerate(self.messages):
            if not message.role:
                yield violation(f"chat.messages[{index}].role", expected="who speaks, such as 'user'", got="")
            yield from _object_violations(f"chat.messages[{index}].tool_calls", message.tool_calls)
        yield from _object_violations("chat.tools", self.tools)


Prompt = TextPrompt | TokenPrompt | ChatPrompt


def _object_violations(field_name: str, texts: tuple[str, ...]) -> Iterator[Violation]:
    """Yield which of some texts are not JSON objects, or that they are too many."""
    num_chars = sum(len(text) for text in texts)
    if len(texts) > MAX_TOOLS:
        yield violation(field_name, expected=f"at most {MAX_TOOLS}", got=len(texts))
    elif num_chars > MAX_TOOL_CHARS:
        yield violation(field_name, expected=f"at most {MAX_TOOL_CHARS} characters together", got=num_chars)
    else:
        for index, text in enumerate(texts):
            if not isinstance(_parsed(text), dict):
                yield violation(f"{field_name}[{index}]", expected="a JSON object", got=text)


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


@dataclass(frozen=True, slots=True)
class BeamOptions:
    """A search with beams. None takes the model's default. Ranges: `BeamParams`."""

    num_beams: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | None = None
    no_repeat_ngram_size: int | None = None

    def given(self) -> dict[str, Any]:
        """Return the fields that are set."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def asks_search(self) -> bool:
        """Whether the options alone, whatever the model's defaults, ask for more than the greedy text."""
        return (self.num_beams or 1) > 1 or bool(self.no_repeat_ngram_size)

    def params(self, defaults: BeamParams) -> BeamParams:
        """Return what the engine needs, with a model's defaults where nothing was given."""
        return replace(defaults, **self.given())

    def violations(self) -> Iterator[Violation]:
        """Yield the fields outside their range."""
        yield from _refusals(BeamParams, self.given())


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How the next token is chosen. None takes the model's default. Ranges: `SamplingParams`."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    """Chosen at random when None and the text is sampled."""
    typical_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: tuple[int, ...] | None = None

    def given(self) -> dict[str, Any]:
        """Return the fields that are set."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in values.items() if value is not None}

    def params(self, defaults: SamplingOptions) -> SamplingParams:
        """Return what the engine needs, with a model's defaults where nothing was given."""
        return SamplingParams(**(defaults.given() | self.given()))

    def violations(self) -> Iterator[Violation]:
        """Yield the fields outside their range."""
        yield from _refusals(SamplingParams, self.given())


@dataclass(frozen=True, slots=True)
class StoppingOptions:
    """When the text ends."""

    max_new_tokens: int | None = None
    """Most tokens to produce; None takes the model's default, within what the context leaves."""
    min_new_tokens: int = 0
    """End-of-text and stop tokens are not chosen before this many."""
    stop_strings: tuple[str, ...] = ()
    """At most 16, each of 1 to 256 characters."""
    stop_token_ids: tuple[int, ...] = ()
    """At most 64."""
    include_stop_string: bool = False
    """Keep the matched stop string at the end of the text."""
    ignore_eos: bool = False
    """Go on after an end-of-text token."""

    def violations(self) -> Iterator[Violation]:
        """Yield the fields outside their range."""
        if self.max_new_tokens is not None:
            yield from _refusals(_sequence, {"max_new_tokens": self.max_new_tokens})
        most = _NO_LIMIT if self.max_new_tokens is None else max(1, self.max_new_tokens)
        yield from _refusals(partial(_sequence, max_new_tokens=most), {"min_new_tokens": self.min_new_tokens})
        yield from _refusals(_sequence, {"stop_token_ids": frozenset(self.stop_token_ids)})
        yield from self._stop_string_violations()

    def _stop_string_violations(self) -> Iterator[Violation]:
        if len(self.stop_strings) > MAX_STOP_STRINGS:
            expected = f"at most {MAX_STOP_STRINGS} stop strings"
            yield violation("stopping.stop_strings", expected=expected, got=len(self.stop_strings))
        for index, stop in enumerate(self.stop_strings):
            if not 1 <= len(stop) <= MAX_STOP_STRING_CHARS:
                expected = f"1 to {MAX_STOP_STRING_CHARS} characters"
                yield violation(f"stopping.stop_strings[{index}]", expected=expected, got=len(stop))


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """What to give beside the text."""

    wants_token_ids: bool = False
    wants_logprobs: bool = False
    num_top_logprobs: int = 0
    """With logprobs, this many most probable tokens at each place. Range 0 to 20."""
    wants_prompt_token_ids: bool = False
    wants_prompt_logprobs: bool = False
    """The log-probability of each token of the prompt but the first."""

    def violations(self) -> Iterator[Violation]:
        """Yield the fields outside their range."""
        yield from _refusals(_sequence, {"num_top_logprobs": self.num_top_logprobs})


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One text to generate. Raises `InvalidFields` with every bad field, named as the wire names it."""

    prompt: Prompt | None
    request_id: str = ""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    stopping: StoppingOptions = field(default_factory=StoppingOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    priority: int = 0
    time_limit_s: float | None = None
    """Ends the text after this time, which counts from arrival at the engine."""
    deadline_s: float | None = None
    """On `time.monotonic`: past it the request fails with `DeadlineExceeded`."""
    num_sequences: int = 1
    """Continuations of the prompt, side by side. Range 1 to 16; above 1 only with a temperature above 0."""
    cache_salt: str = ""
    """Only prompts with the same salt share what was computed of them. At most 256 characters."""
    guidance: Guidance | None = None
    """What the whole text must satisfy. Not together with `ignore_eos` or `allowed_token_ids`."""
    beams: BeamOptions = field(default_factory=BeamOptions)
    """A search excludes draws, guidance, log-probabilities, further sequences and changes of the logits."""
    adapter: str = ""
    """Name of the adapter to compute with; empty for the base model alone. At most 128 characters."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        refused = tuple(self._violations())
        if refused:
            raise InvalidFields(refused)

    def _violations(self) -> Iterator[Violation]:
        yield from prompt_violations(self.prompt)
        yield from self.sampling.violations()
        yield from self.stopping.violations()
        yield from self.output.violations()
        yield from _refusals(_sequence, {"priority": self.priority, "cache_salt": self.cache_salt})
        yield from _refusals(_sampled_sequence, {"num_sequences": self.num_sequences})
        if self.time_limit_s is not None and not self.time_limit_s > 0:
            yield violation("time_limit", expected="more than 0 seconds", got=self.time_limit_s)
        if len(self.adapter) > MAX_ADAPTER_CHARS:
            expected = f"at most {MAX_ADAPTER_CHARS} characters"
            yield violation("adapter", expected=expected, got=len(self.adapter))
        yield from self._guidance_violations()
        yield from self.beams.violations()
        if self.beams.asks_search:
            yield from (
                violation(name, expected="none with beams", got=got) for name, got in self.unsearchable()
            )

    def unsearchable(self) -> Iterator[tuple[str, object]]:
        """Yield what is asked beside which no search with beams is possible: field and value."""
        if self.sampling.temperature:
            yield "sampling.temperature", self.sampling.temperature
        for name in _NOT_WITH_BEAMS:
            value = getattr(self.sampling, name)
            if value:
                yield f"sampling.{name}", value
        if self.num_sequences > 1:
            yield "num_sequences", self.num_sequences
        if self.output.wants_logprobs:
            yield "output.logprobs", True
        if self.output.wants_prompt_logprobs:
            yield "output.prompt_logprobs", True
        if self.guidance is not None:
            yield "guidance", self.guidance.kind.value

    def _guidance_violations(self) -> Iterator[Violation]:
        """Yield what is wrong with the constraint, and the options that could leave no token to choose."""
        if self.guidance is None:
            return
        yield from self.guidance.violations()
        if self.stopping.ignore_eos:
            yield violation("stopping.ignore_eos", expected="false with guidance, which ends texts", got=True)
        if self.sampling.allowed_token_ids:
            got = len(self.sampling.allowed_token_ids)
            yield violation("sampling.allowed_token_ids", expected="none with guidance", got=got)


def prompt_violations(prompt: Prompt | None) -> Iterator[Violation]:
    """Yield what is wrong with a prompt whatever the model; None is a prompt that was not given."""
    if prompt is None:
        yield violation("prompt", expected="one of text, token_ids and chat", got=None)
    else:
        yield from prompt.violations()


def _sequence(**fields: Any) -> SequenceRequest:
    return SequenceRequest("", _ANY_TOKEN, **({"max_new_tokens": _NO_LIMIT} | fields))


def _sampled_sequence(**fields: Any) -> SequenceRequest:
    """Whether several sequences are sampled is the model's default's to say, too: the resolver checks it."""
    return _sequence(sampling=SamplingParams(temperature=1.0), **fields)


def _refusals(build: Callable[..., object], fields: Mapping[str, object]) -> Iterator[Violation]:
    """Try each field alone, so that its range stays written once, in the decoding engine's request."""
    for name, value in fields.items():
        try:
            build(**{name: value})
        except InvalidFields as refused:
            yield from refused.violations
