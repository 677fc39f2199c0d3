"""`aimass chat`: a conversation in the terminal, or the answers to given messages for scripts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from aimass.cli.failure import failure_line
from aimass.cli.generate import write_live
from aimass.cli.generation_flags import with_text_options
from aimass.cli.options import GENERATION_ADDRESS, Address, Deadline, ModelName
from aimass.cli.session import chosen_model, connected
from aimass.errors import RpcError
from aimass.generation_client import GenerationClient
from aimass.generation_options import GenerationOptions
from aimass.prompt import ChatMessage, ChatPrompt

LEAVE_WORDS = ("/exit", "/quit")
FORGET_WORD = "/reset"

Messages = Annotated[
    list[str] | None,
    typer.Option("--message", help="Answer this and leave; may be repeated for several turns."),
]
Tools = Annotated[
    list[Path] | None,
    typer.Option(
        "--tool",
        metavar="FILE",
        help="JSON of a function the model may call, or a list of them; may be repeated.",
    ),
]
System = Annotated[str | None, typer.Option(help="System message that opens the conversation.")]


class Conversation:
    """The turns so far, and the model that answers them. Owned by one command."""

    def __init__(
        self,
        client: GenerationClient,
        *,
        model: str,
        options: GenerationOptions,
        system: str | None,
        tools: list[dict[str, Any]],
        deadline_s: float | None,
    ) -> None:
        self._client = client
        self._model = model
        self._options = options
        self._tools = tools
        self._deadline_s = deadline_s
        self._opening = [] if system is None else [ChatMessage("system", system)]
        self.turns: list[ChatMessage] = list(self._opening)

    def forget(self) -> None:
        """Start anew, with the system message alone."""
        self.turns = list(self._opening)

    def say(self, text: str) -> None:
        """Write the model's answer as it comes. What was answered before an error or Ctrl-C is remembered."""
        self.turns.append(ChatMessage("user", text))
        answer = ""
        stream = self._client.generate(
            ChatPrompt(self.turns, self._tools),
            model=self._model,
            options=self._options,
            deadline_s=self._deadline_s,
        )
        try:
            with stream:
                write_live(stream)
        finally:
            answer = stream.text
            if answer:
                self.turns.append(ChatMessage("assistant", answer))
            else:
                self.turns.pop()


@with_text_options
def chat(
    ctx: typer.Context,
    *,
    options: GenerationOptions,
    model: ModelName = None,
    address: Address = GENERATION_ADDRESS,
    system: System = None,
    message: Messages = None,
    tool: Tools = None,
    deadline_s: Deadline = None,
) -> None:
    """Talk with a model. /reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer."""
    tools = [function for file in tool or () for function in _functions(file)]
    with connected(ctx, address) as connection:
        conversation = Conversation(
            GenerationClient(connection),
            model=chosen_model(connection, model),
            options=options,
            system=system,
            tools=tools,
            deadline_s=deadline_s,
        )
        if message:
            for text in message:
                conversation.say(text)
        else:
            _converse(conversation)


def _functions(file: Path) -> list[dict[str, Any]]:
    """Return the functions that a file describes."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{file}: {error}", param_hint="--tool") from error
    functions = content if isinstance(content, list) else [content]
    if not all(isinstance(function, dict) for function in functions):
        raise typer.BadParameter(f"{file}: expected a JSON object or a list of them", param_hint="--tool")
    return functions


def _converse(conversation: Conversation) -> None:
    for line in _lines():
        if line == FORGET_WORD:
            conversation.forget()
            continue
        try:
            conversation.say(line)
        except RpcError as error:
            typer.echo(failure_line(error, command="chat"), err=True)
        except KeyboardInterrupt:
            typer.echo("[stopped]", err=True)


def _lines() -> Iterator[str]:
    """Yield what the user says, until they leave."""
    while True:
        typer.echo("> ", nl=False, err=True)
        try:
            line = input().strip()
        except EOFError:
            typer.echo(err=True)
            return
        if line in LEAVE_WORDS:
            return
        if line:
            yield line
