"""Lays a conversation out with a model's own Jinja template, as transformers does. Knows no tokens.

The template comes with the bundle and runs in Jinja's immutable sandbox; a caller controls text only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from aimass_serving.errors import InvalidFields, Violation
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from aimass_generation.request import ChatMessage, ChatPrompt

_MAX_REASON_CHARS = 300
# What an expression of a template may raise beside Jinja's own errors.
_EVALUATION_ERRORS = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)


class ChatTemplate:
    """A compiled chat template. Safe to use from several threads.

    Raises `jinja2.TemplateError` when the source does not compile.
    """

    def __init__(
        self, source: str, *, special_tokens: Mapping[str, str], now: Callable[[], datetime] = datetime.now
    ) -> None:
        self._template = _environment(now).from_string(source)
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[ChatMessage], tools: Sequence[str] = ()) -> str:
        """Return the text of a conversation up to where the model is to speak; `tools` are JSON objects.

        Raises `InvalidFields` on `chat` when the template refuses the conversation, with its reason.
        """
        functions = [json.loads(tool) for tool in tools] or None
        try:
            return self._template.render(
                messages=[_turn(message) for message in messages],
                tools=functions,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except jinja2.TemplateError as error:
            raise _refused(error.message or type(error).__name__) from error
        except _EVALUATION_ERRORS as error:
            raise _refused(type(error).__name__) from error


def _turn(message: ChatMessage) -> dict[str, Any]:
    """Return a turn as templates know it: what was not said is not there."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [json.loads(call) for call in message.tool_calls]
    if message.name:
        turn["name"] = message.name
    return turn


def _refused(reason: str) -> InvalidFields:
    detail = f"the model's chat template refuses this conversation: {reason[:_MAX_REASON_CHARS]}"
    return InvalidFields([Violation(ChatPrompt.FIELD, detail)])


def _environment(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    """Return the environment templates are written for.

    Source: `transformers.utils.chat_template_utils._compile_jinja_template`, release 4.57.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlocks, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: now().strftime(form)
    return environment


class GenerationBlocks(Extension):
    """`{% generation %}` marks the model's own words for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012 - declared so by Jinja

    def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
        """Return the block's content."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON without escaping HTML, as the templates expect; Jinja's own filter escapes it."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
