"""Where a sequence's tokens come out: from the engine thread to the one coroutine that reads them."""

from __future__ import annotations

import asyncio

from aimass_serving.errors import AimassError

from aimass_decoding.request import TokenDelta

Event = TokenDelta | AimassError
"""What happened to a sequence. An error, or a delta with a finish, is the last."""


class Outlet:
    """A queue of one sequence's events. All but `loop` belongs to the thread of its event loop.

    A slow reader finds everything that happened meanwhile as one delta, so that it catches up. What waits is
    bounded by the sequence's `max_new_tokens`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._events: list[Event] = []
        self._arrival = asyncio.Event()
        self._has_ended = False

    @property
    def has_ended(self) -> bool:
        """Whether the last event has arrived, read or not."""
        return self._has_ended

    def deliver(self, event: Event) -> None:
        """Append an event and wake the reader."""
        self._events.append(event)
        self._has_ended = isinstance(event, AimassError) or event.finish is not None
        self._arrival.set()

    async def read(self) -> TokenDelta:
        """Wait for events; return all deltas as one, or raise the error that ended the sequence."""
        await self._arrival.wait()
        deltas = [event for event in self._events if isinstance(event, TokenDelta)]
        errors = [event for event in self._events if isinstance(event, AimassError)]
        if not deltas:
            raise errors[0]
        self._events = list(errors)
        if not errors:
            self._arrival.clear()
        return joined(deltas)


def joined(deltas: list[TokenDelta]) -> TokenDelta:
    """Return successive deltas of a sequence as one."""
    if len(deltas) == 1:
        return deltas[0]
    token_ids = tuple(token_id for delta in deltas for token_id in delta.token_ids)
    logprobs = tuple(logprob for delta in deltas for logprob in delta.logprobs)
    return TokenDelta(token_ids, logprobs, deltas[-1].finish)
