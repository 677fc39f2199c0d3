"""Text to token ids, off the event loop, in a bounded pool. Must not know batches, vectors or the wire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Protocol

import numpy as np
from aimass_serving.errors import Overloaded
from numpy.typing import NDArray
from tokenizers import Encoding
from tokenizers import Tokenizer as LibraryTokenizer

from aimass_encoder.request import Truncation

CHUNK_CHARS = 65_536
"""Characters tokenised in one go: a long call lets others in, and stops when cancelled, after this many."""
_MIN_RETRY_S, _MAX_RETRY_S = 0.05, 30.0
_UNMEASURED_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """A text as the model reads it."""

    token_ids: NDArray[np.int64]  # [num_tokens], special tokens included
    num_truncated_tokens: int = 0
    """Tokens that were cut off so that the rest fits."""


class Tokenizer(Protocol):
    """Turns texts into token ids. Called from several threads at once."""

    @property
    def max_tokens(self) -> int:
        """Longest result, special tokens included."""

    def tokenize(self, texts: Sequence[str], truncation: Truncation) -> Sequence[TokenizedText]:
        """Return each text's tokens, cut to `max_tokens` on the chosen side, special tokens kept.

        With `Truncation.NONE` the cut is made at the end and reported: refusing is the caller's part.
        """


class TextTokenizer:
    """A tokeniser in the format of the `tokenizers` library."""

    def __init__(self, tokenizer: LibraryTokenizer, *, max_tokens: int) -> None:
        # Files of sentence-transformers carry their own padding and cut, which would hide what was cut.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._num_leading, self._num_trailing = _surrounding_special_tokens(tokenizer)

    @classmethod
    def from_file(cls, file: Path, *, max_tokens: int) -> TextTokenizer:
        """Read a `tokenizer.json`. Raises the library's own exception for a broken file."""
        return cls(LibraryTokenizer.from_file(str(file)), max_tokens=max_tokens)

    @property
    def max_tokens(self) -> int:
        return self._max_tokens

    def tokenize(self, texts: Sequence[str], truncation: Truncation) -> Sequence[TokenizedText]:
        encodings: list[Encoding] = self._tokenizer.encode_batch_fast(list(texts))  # releases the GIL
        return [self._cut(np.array(e.ids, np.int64), truncation) for e in encodings]

    def _cut(self, token_ids: NDArray[np.int64], truncation: Truncation) -> TokenizedText:
        excess = len(token_ids) - self._max_tokens
        if excess <= 0:
            return TokenizedText(token_ids)
        end = len(token_ids) - self._num_trailing
        cut = (
            slice(self._num_leading, self._num_leading + excess)
            if truncation is Truncation.START
            else slice(end - excess, end)
        )
        return TokenizedText(np.delete(token_ids, cut), excess)


def _surrounding_special_tokens(tokenizer: LibraryTokenizer) -> tuple[int, int]:
    """Return how many special tokens stand before and after every text."""
    mask = tokenizer.encode("a").special_tokens_mask
    leading = len(list(takewhile(bool, mask)))
    return leading, len(list(takewhile(bool, reversed(mask[leading:]))))


class TokenizerPool:
    """Tokenises in a few threads and refuses work when too much waits for them.

    The rule of admission is the batcher's: a call is admitted, whole, while fewer than `max_waiting_chars`
    wait, whatever its own size; else it is refused, whole. Lives on the event loop.
    """

    def __init__(self, tokenizer: Tokenizer, *, num_threads: int, max_waiting_chars: int) -> None:
        self._tokenizer = tokenizer
        self._max_waiting_chars = max_waiting_chars
        self._threads = ThreadPoolExecutor(max(1, num_threads), thread_name_prefix="tokenize")
        self._waiting_chars = 0
        self._chars_per_s = 0.0

    @property
    def waiting_chars(self) -> int:
        """Characters that wait or are being tokenised."""
        return self._waiting_chars

    async def tokenize(self, texts: Sequence[str], truncation: Truncation) -> Sequence[TokenizedText]:
        """Return each text's tokens. Raises `Overloaded`. Cancelling it drops what has not begun."""
        num_chars = sum(map(len, texts))
        loop = asyncio.get_running_loop()
        self._admit(num_chars)
        try:
            tokenized: list[TokenizedText] = []
            for chunk in _chunks(texts):
                tokenized += await loop.run_in_executor(self._threads, self._run, chunk, truncation)
            return tokenized
        finally:
            self._waiting_chars -= num_chars

    def close(self) -> None:
        """Stop the threads once they are done with their chunk."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _admit(self, num_chars: int) -> None:
        if self._waiting_chars >= self._max_waiting_chars:
            raise Overloaded(
                retry_after_s=self._retry_after_s(),
                detail=f"{self._waiting_chars} characters wait for a tokeniser, "
                f"it takes {self._max_waiting_chars}",
            )
        self._waiting_chars += num_chars

    def _run(self, texts: Sequence[str], truncation: Truncation) -> Sequence[TokenizedText]:
        start_s = time.perf_counter()
        tokenized = self._tokenizer.tokenize(texts, truncation)
        elapsed_s = time.perf_counter() - start_s
        if elapsed_s > 0:
            self._chars_per_s = sum(map(len, texts)) / elapsed_s
        return tokenized

    def _retry_after_s(self) -> float:
        if not self._chars_per_s:
            return _UNMEASURED_RETRY_S
        return min(max(self._waiting_chars / 2 / self._chars_per_s, _MIN_RETRY_S), _MAX_RETRY_S)


def _chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Split texts into runs of about `CHUNK_CHARS` characters, in order."""
    start = num_chars = 0
    for index, text in enumerate(texts):
        num_chars += len(text)
        if num_chars >= CHUNK_CHARS:
            yield texts[start : index + 1]
            start, num_chars = index + 1, 0
    if start < len(texts):
        yield texts[start:]
