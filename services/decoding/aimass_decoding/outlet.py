"""Where a sequence's tokens come out: from the engine thread to the one coroutine that reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aimass_serving.errors import AimassError

from aimass_decoding.request import TokenDelta

Event = TokenDelta | AimassError
"""What happened to a sequence. An error, or a delta with a finish, is the last."""


class Interest:
    """Which sequences of a request its reader still wants. Belongs to the reader's event loop."""

    def __init__(self) -> None:
        self._lost: set[int] = set()
        self._on_loss: Callable[[int], None] = _ignore

    def __contains__(self, index: int) -> bool:
        """Whether a sequence is still wanted."""
        return index not in self._lost

    def lose(self, index: int) -> None:
        """Give up one sequence of the request: its slot is free by the next step, and no more comes."""
        if index in self:
            self._lost.add(index)
            self._on_loss(index)

    def on_loss(self, callback: Callable[[int], None]) -> None:
        """Call this with the index of each sequence that is given up from now on."""
        self._on_loss = callback


def _ignore(index: int) -> None:
    return


class Outlet:
    """A queue of the events of one request's sequences. All but `loop` belongs to the thread of that loop.

    A slow reader finds everything that happened to a sequence meanwhile as one delta, so that it catches up.
    What waits is bounded by the sequences' `max_new_tokens`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, num_sequences: int = 1) -> None:
        self.loop = loop
        self._num_running = num_sequences
        self._events: list[Event] = []
        self._arrival = asyncio.Event()
        self._has_ended = False

    @property
    def has_ended(self) -> bool:
        """Whether the last event of the last sequence has arrived, read or not."""
        return self._has_ended

    def deliver(self, event: Event) -> None:
        """Append an event and wake the reader."""
        self._events.append(event)
        if isinstance(event, AimassError):
            self._has_ended = True
        elif event.finish is not None:
            self._num_running -= 1
            self._has_ended = self._has_ended or self._num_running == 0
        self._arrival.set()

    async def read(self) -> TokenDelta:
        """Wait for events; return all deltas of a sequence as one, or raise the error that ended the request.

        What came first is read first, and an error last.
        """
        await self._arrival.wait()
        first = self._events[0]
        if len(self._events) == 1 and isinstance(first, TokenDelta):
            self._events = []
            self._arrival.clear()
            return first
        deltas = [event for event in self._events if isinstance(event, TokenDelta)]
        if not deltas:
            raise next(event for event in self._events if isinstance(event, AimassError))
        taken = [delta for delta in deltas if delta.index == deltas[0].index]
        self._events = [e for e in self._events if isinstance(e, AimassError) or e.index != taken[0].index]
        if not self._events:
            self._arrival.clear()
        return joined(taken)


def joined(deltas: list[TokenDelta]) -> TokenDelta:
    """Return successive deltas of a sequence as one."""
    if len(deltas) == 1:
        return deltas[0]
    token_ids = tuple(token_id for delta in deltas for token_id in delta.token_ids)
    logprobs = tuple(logprob for delta in deltas for logprob in delta.logprobs)
    return TokenDelta(token_ids, logprobs, deltas[-1].finish, index=deltas[-1].index)
