"""The forms a prompt can have in Python, and how each is laid into a request. Knows no sampling."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from aimass.errors import InvalidRequest
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.generation.v1 import prompt_pb2
from aimass.wire import refusing

JsonObject: TypeAlias = Mapping[str, Any] | str
"""A JSON object, or its text."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str
    """Who speaks: commonly `system`, `user` or `assistant`."""
    content: str
    tool_calls: Sequence[JsonObject] = ()
    """Calls the model made in this turn, as its template lays them out."""
    name: str = ""
    """Name of the tool whose result this is, for a turn of role `tool`."""


ChatTurn: TypeAlias = ChatMessage | tuple[str, str]
"""A message, or its `(role, content)`."""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation in which the model may call functions."""

    messages: Sequence[ChatTurn]
    """Oldest first."""
    tools: Sequence[JsonObject] = ()
    """Functions the model may call, as its template lays them out, commonly `{"type": "function", ...}`."""


Prompt: TypeAlias = str | Sequence[int] | Sequence[ChatTurn] | ChatPrompt
"""Plain text, token ids, or a conversation, oldest turn first."""

PromptRequest: TypeAlias = pb.GenerateRequest | pb.CompleteRequest


def set_prompt(request: PromptRequest, prompt: Prompt) -> None:
    """Lay the prompt into the request, in the form its type says."""
    if isinstance(prompt, str):
        with refusing("text"):
            request.text = prompt
    elif isinstance(prompt, ChatPrompt):
        request.chat.CopyFrom(chat_prompt_pb(prompt))
    elif not prompt:
        raise InvalidRequest.of_field("prompt", "expected text, token ids or messages, got an empty sequence")
    elif isinstance(prompt[0], int):
        with refusing("token_ids.ids"):
            request.token_ids.ids.extend(prompt)  # type: ignore[arg-type]  # the first tells the kind of all
    else:
        request.chat.CopyFrom(chat_prompt_pb(prompt))  # type: ignore[arg-type]  # the first tells the kind of all


def chat_prompt_pb(prompt: Sequence[ChatTurn] | ChatPrompt) -> prompt_pb2.ChatPrompt:
    """Return the conversation as a message."""
    chat = prompt if isinstance(prompt, ChatPrompt) else ChatPrompt(prompt)
    chat_pb = prompt_pb2.ChatPrompt()
    for index, turn in enumerate(chat.messages):
        with refusing(f"chat.messages[{index}]"):
            message = turn if isinstance(turn, ChatMessage) else ChatMessage(*turn)
            calls = [_json_text(call) for call in message.tool_calls]
            chat_pb.messages.add(
                role=message.role, content=message.content, tool_calls=calls, name=message.name
            )
    for index, tool in enumerate(chat.tools):
        with refusing(f"chat.tools[{index}]"):
            chat_pb.tools.append(_json_text(tool))
    return chat_pb


def _json_text(value: JsonObject) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
