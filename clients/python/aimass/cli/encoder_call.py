"""What every command that asks the encoder service has: which model, where, how long, and how to print."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import typer

from aimass.channel import Connection
from aimass.cli.flags import flags_of, with_flags
from aimass.cli.options import ENCODER_ADDRESS, Address, AsJson, Deadline, ModelName
from aimass.cli.session import chosen_model, connected

Client = TypeVar("Client")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderCall:
    """The flags of a call to the encoder service."""

    ctx: typer.Context
    model: ModelName = None
    address: Address = ENCODER_ADDRESS
    deadline_s: Deadline = None
    as_json: AsJson = False

    @contextmanager
    def client(self, kind: Callable[[Connection], Client]) -> Iterator[tuple[Client, str]]:
        """Give a connected client, and the name of the model to ask."""
        with connected(self.ctx, self.address) as connection:
            yield kind(connection), chosen_model(connection, self.model)


def with_encoder_call(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of `EncoderCall`; it takes what they say as its argument `call`."""
    return with_flags(command, "call", flags_of(EncoderCall), lambda said: EncoderCall(**said))
