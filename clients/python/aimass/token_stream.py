"""A continuation while it is being written. Knows the order of its events."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from aimass.completion import Delta, Finish, PromptInfo, delta_of, finish_of, prompt_info_of
from aimass.errors import incomplete_stream
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.response_stream import CallStream, ResponseStream


class TokenStream(CallStream[pb.GenerateResponse]):
    """The deltas of one continuation, as they become final. Use it in a `with` block.

        with client.generate("Once upon a time", model="smollm2-135m-instruct") as stream:
            for delta in stream:
                print(delta.text, end="", flush=True)
        print(stream.finish.reason)

    Leaving it early, however that happens, cancels the call, and the server stops working on it.
    """

    def __init__(self, responses: ResponseStream[pb.GenerateResponse]) -> None:
        super().__init__(responses)
        self._pieces: defaultdict[int, list[str]] = defaultdict(list)
        self._prompt_info: PromptInfo | None = None
        self._finishes: dict[int, Finish] = {}

    def __iter__(self) -> Iterator[Delta]:
        return self

    def __next__(self) -> Delta:
        """Return the next piece of text; raise `RpcError` when the call fails."""
        for event in self._responses:
            delta = self._take(event)
            if delta is not None:
                return delta
        if not self._finishes:
            raise incomplete_stream(address=self._responses.address)
        raise StopIteration

    @property
    def prompt_info(self) -> PromptInfo:
        """What the server understood. Waits for the first message."""
        if self._prompt_info is None:
            for event in self._responses:
                self._take(event)
                break
        if self._prompt_info is None:
            raise incomplete_stream(address=self._responses.address)
        return self._prompt_info

    @property
    def finish(self) -> Finish:
        """Why the text ended, and what it cost. Raises `RuntimeError` before the last delta was read."""
        return self.finish_of(0)

    @property
    def text(self) -> str:
        """The text so far; of the first sequence when several were asked for."""
        return self.text_of(0)

    def finish_of(self, sequence_index: int) -> Finish:
        """Return why one of several sequences ended. Raises `RuntimeError` before it has."""
        if sequence_index not in self._finishes:
            raise RuntimeError("the text has not ended: read all deltas first")
        return self._finishes[sequence_index]

    def text_of(self, sequence_index: int) -> str:
        """Return the text so far of one of several sequences."""
        return "".join(self._pieces[sequence_index])

    def _take(self, event: pb.GenerateResponse) -> Delta | None:
        match event.WhichOneof("event"):
            case "delta":
                self._pieces[event.delta.sequence_index].append(event.delta.text)
                return delta_of(event.delta)
            case "prompt_info":
                self._prompt_info = prompt_info_of(event.prompt_info)
            case "finish":
                self._finishes[event.finish.sequence_index] = finish_of(event.finish)
        return None  # also for events newer than this client
