"""The messages of one streaming call, and the promise that the call ends with its reader.

Knows no service. A server works for a call until it hears that nobody reads any more, so a call that is left
early is cancelled, whatever the way of leaving: `close`, the end of a `with` block, an exception, Ctrl-C, or
the last reference gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

import grpc

from aimass.closing import Closing
from aimass.errors import error_of

MessageT = TypeVar("MessageT")
MessageT_co = TypeVar("MessageT_co", covariant=True)


class StreamingCall(Protocol[MessageT_co]):
    """What a gRPC call with streamed responses offers here."""

    def __next__(self) -> MessageT_co: ...
    def cancel(self) -> object: ...


class ResponseStream(Closing, Generic[MessageT]):
    """Messages of one call, in order. Not for use by two threads, but `close` may come from any."""

    def __init__(self, call: StreamingCall[MessageT], *, address: str) -> None:
        self._call = call
        self.address = address

    def __iter__(self) -> Iterator[MessageT]:
        return self

    def __next__(self) -> MessageT:
        """Return the next message; raise `StopIteration` after the last, `RpcError` when the call fails."""
        try:
            return next(self._call)
        except StopIteration:
            raise
        except grpc.RpcError as error:
            raise error_of(error, address=self.address) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Cancel the call if it still runs. Safe to repeat."""
        self._call.cancel()

    def __del__(self) -> None:
        self.close()


class CallStream(Closing, Generic[MessageT]):
    """What makes something of the messages of one call. Leaving it early, however that happens, cancels the
    call.
    """

    def __init__(self, responses: ResponseStream[MessageT]) -> None:
        self._responses = responses

    def close(self) -> None:
        """Cancel the call if it still runs. Safe to repeat."""
        self._responses.close()
