"""The forms a prompt can have in Python, and how each is laid into a request. Knows no sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from aimass.errors import InvalidRequest
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.generation.v1 import prompt_pb2
from aimass.wire import refusing


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str
    """Who speaks: commonly `system`, `user` or `assistant`."""
    content: str


ChatTurn: TypeAlias = ChatMessage | tuple[str, str]
"""A message, or its `(role, content)`."""

Prompt: TypeAlias = str | Sequence[int] | Sequence[ChatTurn]
"""Plain text, token ids, or a conversation, oldest turn first."""

PromptRequest: TypeAlias = pb.GenerateRequest | pb.CompleteRequest


def set_prompt(request: PromptRequest, prompt: Prompt) -> None:
    """Lay the prompt into the request, in the form its type says."""
    if isinstance(prompt, str):
        with refusing("text"):
            request.text = prompt
    elif not prompt:
        raise InvalidRequest.of_field("prompt", "expected text, token ids or messages, got an empty sequence")
    elif isinstance(prompt[0], int):
        with refusing("token_ids.ids"):
            request.token_ids.ids.extend(prompt)  # type: ignore[arg-type]  # the first tells the kind of all
    else:
        request.chat.CopyFrom(chat_prompt_pb(prompt))  # type: ignore[arg-type]  # the first tells the kind of all


def chat_prompt_pb(turns: Sequence[ChatTurn]) -> prompt_pb2.ChatPrompt:
    """Return the conversation as a message."""
    chat_pb = prompt_pb2.ChatPrompt()
    for index, turn in enumerate(turns):
        with refusing(f"chat.messages[{index}]"):
            role, content = (turn.role, turn.content) if isinstance(turn, ChatMessage) else turn
            chat_pb.messages.add(role=role, content=content)
    return chat_pb
