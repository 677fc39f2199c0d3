"""Joins detokenizer and stop strings: tokens in, final text out with the tokens that are wholly behind it.

Knows nothing of the engine that makes the tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from aimass_decoding.request import TokenLogprob

from aimass_generation.detokenizer import Detokenizer
from aimass_generation.result import TextDelta
from aimass_generation.stopping import StopMatcher


@dataclass(slots=True)
class _WaitingToken:
    """A token whose text is not all released. Positions count characters of the whole text."""

    token_id: int
    logprob: TokenLogprob | None
    start: int
    end: int | None = None
    """None while the detokenizer holds back part of its text."""


class TextAssembler:
    """Text of one generation as it becomes final. Owned by that generation.

    A token is given out once all its text is. When a stop string ends the text, tokens wholly behind the end
    are dropped, and one that the end cuts in two is given out.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        matcher: StopMatcher,
        *,
        index: int = 0,
        wants_token_ids: bool = True,
    ) -> None:
        self._detokenizer = detokenizer
        self._matcher = matcher
        self._index = index
        self._wants_token_ids = wants_token_ids
        self._waiting: deque[_WaitingToken] = deque()
        self._num_decoded_chars = 0
        self._num_released_chars = 0
        self.num_tokens = 0
        """Tokens taken in, the one that completed a stop string included, none after it."""
        self.stop_string: str | None = None
        """The stop string that ended the text."""

    def push(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob] = ()) -> TextDelta:
        """Take the next tokens and return what became final. After a stop string, tokens are ignored."""
        text = []
        for index, token_id in enumerate(token_ids):
            if self.stop_string is not None:
                break
            text.append(self._take(token_id, logprobs[index] if logprobs else None))
        return self._delta("".join(text))

    def finish(self) -> TextDelta:
        """Return all that was held back, because no more tokens will come."""
        flushed = self._detokenizer.flush()
        self._num_decoded_chars += len(flushed)
        self._settle()
        text = self._scan(flushed)
        if self.stop_string is None:
            rest = self._matcher.flush()
            self._num_released_chars += len(rest)
            text += rest
        return self._delta(text)

    def _take(self, token_id: int, logprob: TokenLogprob | None) -> str:
        self.num_tokens += 1
        token = _WaitingToken(token_id, logprob, start=self._num_decoded_chars)
        text = self._detokenizer.push(token_id)
        self._num_decoded_chars += len(text)
        if text:
            self._settle()  # New text begins with what earlier tokens held back.
        self._waiting.append(token)
        if not self._detokenizer.is_holding:
            self._settle()
        return self._scan(text)

    def _settle(self) -> None:
        for token in reversed(self._waiting):
            if token.end is not None:
                break
            token.end = self._num_decoded_chars

    def _scan(self, text: str) -> str:
        scan = self._matcher.push(text)
        self.stop_string = scan.stop_string
        self._num_released_chars += len(scan.text)
        return scan.text

    def _delta(self, text: str) -> TextDelta:
        tokens = self._released_tokens()
        token_ids = tuple([token.token_id for token in tokens]) if self._wants_token_ids else ()
        logprobs = tuple([token.logprob for token in tokens if token.logprob is not None])
        return TextDelta(text, token_ids, logprobs, self._index)

    def _released_tokens(self) -> list[_WaitingToken]:
        tokens = []
        while self._waiting and self._is_released(self._waiting[0]):
            tokens.append(self._waiting.popleft())
        return tokens

    def _is_released(self, token: _WaitingToken) -> bool:
        if self.stop_string is not None:
            return token.start < self._num_released_chars
        return token.end is not None and token.end <= self._num_released_chars
