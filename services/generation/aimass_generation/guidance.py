"""Makes of a constraint on the text the masks that hold a model to it, token by token.

The grammars are llguidance's: it knows how tokens spell text and which may follow. Compiling and masks let
other Python threads run. Knows no request beyond its constraint, and no engine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from threading import Lock

import numpy as np
from aimass_decoding.request import TokenMask
from aimass_serving.errors import InvalidField, InvalidFields, Violation
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray
from tokenizers import Tokenizer

from aimass_generation.json_schema import check_json_schema

MAX_SCHEMA_CHARS = 65_536
MAX_REGEX_CHARS = 8_192
MAX_GRAMMAR_CHARS = 65_536
MAX_CHOICES = 1_024
MAX_CHOICE_CHARS = 1_024
_MAX_DETAIL_CHARS = 200
_MAX_CHOICES_CHARS = 65_536
_BITS = 32
_NOTHING_FITS = "no text satisfies it"
_DEAD_END = "NoExtension"
"""How llguidance's message of a grammar that nothing can continue begins."""

_WHITESPACE = r"( |\n {0,16})"
"""What may stand between the parts of JSON. Bounded: a model must not fill its answer with blanks."""

Words = NDArray[np.uint32]  # [ceil(num_tokens / 32)]


class GuidanceKind(StrEnum):
    """What a constraint is written in. The values are the wire's field names."""

    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    REGEX = "regex"
    CHOICE = "choice"
    GRAMMAR = "grammar"


_MAX_CHARS = {
    GuidanceKind.JSON_SCHEMA: MAX_SCHEMA_CHARS,
    GuidanceKind.REGEX: MAX_REGEX_CHARS,
    GuidanceKind.GRAMMAR: MAX_GRAMMAR_CHARS,
}
_EXPECTED = {
    GuidanceKind.JSON_SCHEMA: "a JSON schema that some text satisfies, of supported keywords only",
    GuidanceKind.JSON_OBJECT: "a JSON object",
    GuidanceKind.REGEX: "a regular expression that some text matches, without look-around and references",
    GuidanceKind.CHOICE: "texts to choose from",
    GuidanceKind.GRAMMAR: "a Lark grammar that some text matches",
}


@dataclass(frozen=True, slots=True)
class Guidance:
    """A constraint that the whole text satisfies, unless it is cut short."""

    kind: GuidanceKind
    source: str = ""
    """The schema, regular expression or grammar."""
    choices: tuple[str, ...] = ()
    """For `CHOICE`: 1 to 1024 texts, each of 1 to 1024 characters, 65536 together."""

    @property
    def field(self) -> str:
        """The constraint's path in a request."""
        return f"guidance.{self.kind}"

    def violations(self) -> Iterator[Violation]:
        """Yield what is wrong whatever the model."""
        if self.kind is GuidanceKind.CHOICE:
            yield from self._choice_violations()
        elif self.kind is not GuidanceKind.JSON_OBJECT:
            most, got = _MAX_CHARS[self.kind], len(self.source)
            if not 1 <= got <= most:
                yield from InvalidField(self.field, expected=f"1 to {most} characters", got=got).violations

    def _choice_violations(self) -> Iterator[Violation]:
        path = f"{self.field}.texts"
        if not 1 <= len(self.choices) <= MAX_CHOICES:
            expected = f"1 to {MAX_CHOICES} texts"
            yield from InvalidField(path, expected=expected, got=len(self.choices)).violations
        for index, choice in enumerate(self.choices[:MAX_CHOICES]):
            if not 1 <= len(choice) <= MAX_CHOICE_CHARS:
                expected = f"1 to {MAX_CHOICE_CHARS} characters"
                yield from InvalidField(f"{path}[{index}]", expected=expected, got=len(choice)).violations
        total = sum(map(len, self.choices))
        if total > _MAX_CHOICES_CHARS:
            expected = f"at most {_MAX_CHOICES_CHARS} characters together"
            yield from InvalidField(path, expected=expected, got=total).violations

    def refused(self, detail: str) -> InvalidFields:
        """Return the error for a constraint that cannot be followed."""
        description = f"expected {_EXPECTED[self.kind]}, but {_short(detail)}"
        return InvalidFields([Violation(self.field, description)])


class GuidanceCompiler:
    """Masks for one model's tokens. Safe to use from several threads.

    Reads the tokenizer when it is first asked: most of a second for a large vocabulary, which models that are
    never guided need not spend.
    """

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = sorted(eos_token_ids)
        self._lock = Lock()
        self._tokens: LLTokenizer | None = None

    def compile(self, guidance: Guidance) -> Callable[[], TokenMask]:
        """Return what makes the mask of one sequence; blocking.

        Raises `InvalidFields` for a constraint that is malformed, beyond the limits or satisfied by no text,
        and for a model that cannot be guided.
        """
        if guidance.kind is GuidanceKind.JSON_SCHEMA:
            check_json_schema(guidance.source, field=guidance.field)
        tokens = self._known_tokens(guidance)
        matcher = LLMatcher(tokens, _grammar(guidance), log_level=0, limits=_limits())
        spoken, ending = self._bits(tokens)
        GrammarMask(matcher, guidance, spoken=spoken, ending=ending).allowed()
        return lambda: GrammarMask(matcher.deep_copy(), guidance, spoken=spoken, ending=ending)

    def _bits(self, tokens: LLTokenizer) -> tuple[Words, Words]:
        """Return one bit a token that is text, and one a token that ends it."""
        added = self._tokenizer.get_added_tokens_decoder()
        special = {*self._eos_token_ids, *(token_id for token_id, token in added.items() if token.special)}
        spoken, ending = np.ones(tokens.vocab_size, np.bool_), np.zeros(tokens.vocab_size, np.bool_)
        spoken[sorted(special)] = False
        ending[self._eos_token_ids] = True
        return _packed(spoken), _packed(ending)

    def _known_tokens(self, guidance: Guidance) -> LLTokenizer:
        with self._lock:
            if self._tokens is None:
                self._tokens = self._read_tokens(guidance)
            return self._tokens

    def _read_tokens(self, guidance: Guidance) -> LLTokenizer:
        if not self._eos_token_ids:
            raise guidance.refused("the model has no token that ends a text")
        num_tokens = max(self._vocab_size, self._tokenizer.get_vocab_size())
        try:
            return LLTokenizer(self._tokenizer.to_str(), n_vocab=num_tokens, eos_token=self._eos_token_ids)
        except (ValueError, RuntimeError) as error:
            raise guidance.refused(f"the model's tokenizer cannot be guided: {error}") from error


class GrammarMask:
    """The tokens that a grammar allows next in one sequence: a `TokenMask`. Owned by that sequence.

    Tokens that end the text are allowed where the grammar is complete, and only there.
    """

    def __init__(self, matcher: LLMatcher, guidance: Guidance, *, spoken: Words, ending: Words) -> None:
        self._matcher = matcher
        self._guidance = guidance
        self._spoken = spoken
        self._ending = ending
        self._words: Words = np.zeros_like(spoken)

    def allowed(self) -> Words:
        """Return one bit a token that may come next. Raises `InvalidFields` where none may."""
        matcher, words = self._matcher, self._words
        if not matcher.is_error():
            matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if matcher.is_error():
            error = matcher.get_error()
            raise self._guidance.refused(_NOTHING_FITS if error.startswith(_DEAD_END) else error)
        # Where only one text can follow, llguidance takes the tokens of its usual spelling. Is that the
        # spelling of a special token, the text would end too early or lose its name.
        words &= self._spoken | self._ending if matcher.is_accepting() else self._spoken
        if not words.any():
            raise self._guidance.refused("no text satisfies it, or one that spells a special token")
        return words

    def accept(self, token_id: int) -> None:
        """Take a token into account; what goes wrong is told by the next `allowed`."""
        self._matcher.consume_token(token_id)


def _packed(bits: NDArray[np.bool_]) -> Words:
    words: Words = np.zeros(-(-len(bits) // _BITS), np.uint32)
    packed = np.packbits(bits, bitorder="little")
    words.view(np.uint8)[: len(packed)] = packed
    return words


def _limits() -> LLParserLimits:
    """Return bounds that keep compiling near a second at worst, and a mask near a decode step."""
    return LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=50_000,
        step_max_items=20_000,
        max_lexer_states=50_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )


def _grammar(guidance: Guidance) -> str:
    match guidance.kind:
        case GuidanceKind.JSON_SCHEMA:
            # A boolean is a schema, but the compiler wants an object.
            is_object = guidance.source.lstrip().startswith("{")
            return _json_grammar(guidance.source if is_object else f'{{"allOf": [{guidance.source}]}}')
        case GuidanceKind.JSON_OBJECT:
            return _json_grammar('{"type": "object"}')
        case GuidanceKind.REGEX:
            return LLMatcher.grammar_from_regex(guidance.source)
        case GuidanceKind.CHOICE:
            return LLMatcher.grammar_from_lark(_choice_grammar(guidance.choices))
        case GuidanceKind.GRAMMAR:
            return LLMatcher.grammar_from_lark(guidance.source)


def _json_grammar(schema: str) -> str:
    return LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": _WHITESPACE})


def _choice_grammar(choices: Sequence[str]) -> str:
    # JSON leaves the one control character as it is that Lark refuses.
    literals = (json.dumps(choice).replace("\x7f", "\\u007f") for choice in choices)
    return "start: " + " | ".join(literals)


def _short(detail: str) -> str:
    """Return the line of an error that says what is wrong."""
    lines = [line.strip() for line in detail.splitlines() if line.strip()] or ["it cannot be followed"]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    line = told[-1] if told else lines[0]
    return line if len(line) <= _MAX_DETAIL_CHARS else line[: _MAX_DETAIL_CHARS - 1] + "…"
