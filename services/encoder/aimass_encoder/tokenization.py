"""Text to token ids, off the event loop, in a bounded pool. Must not know batches, vectors or the wire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Protocol, TypeAlias

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


TextInput: TypeAlias = str | tuple[str, str]
"""A text, or a pair of texts that the model reads together."""


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """A text, or a pair, as the model reads it."""

    token_ids: NDArray[np.int64]  # [num_tokens], special tokens included
    num_truncated_tokens: int = 0
    """Tokens that were cut off so that the rest fits."""
    type_ids: NDArray[np.int64] | None = None  # [num_tokens]
    """Which text of a pair each token belongs to, as the model counts; None for a text alone."""
    spans: TokenSpans | None = None
    """Where the tokens stand in the text; None when nobody asked."""


@dataclass(frozen=True, slots=True)
class TokenSpans:
    """Where each token stands, in characters (Unicode code points) of the text it came from."""

    offsets: NDArray[np.int64]  # [num_tokens, 2], start and end
    words: NDArray[np.int64]  # [num_tokens]
    """Number of the word within its text, as the tokeniser cuts words; -1 for special tokens."""
    parts: NDArray[np.int64]  # [num_tokens]
    """0 or 1: which text of the input; -1 for special tokens."""


class Tokenizer(Protocol):
    """Turns texts into token ids. Called from several threads at once."""

    @property
    def max_tokens(self) -> int:
        """Longest result, special tokens included."""

    def tokenize(
        self, texts: Sequence[TextInput], truncation: Truncation, *, needs_spans: bool = False
    ) -> Sequence[TokenizedText]:
        """Return each text's tokens, cut to `max_tokens` on the chosen side, special tokens kept.

        Of a pair the longer text is cut first. With `Truncation.NONE` the cut is made at the end and
        reported: refusing is the caller's part. With `Truncation.WINDOWS` nothing is cut.
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

    def words(self, size: int) -> Sequence[str]:
        """Return the first `size` words of the vocabulary as they are written, empty where none is."""
        return [self._tokenizer.id_to_token(index) or "" for index in range(size)]

    def token_of(self, word: str) -> int | None:
        """Return the token that a word is, as the vocabulary writes it or as it is read; None: no token."""
        ids: list[int] = self._tokenizer.encode(word, add_special_tokens=False).ids
        written: int | None = self._tokenizer.token_to_id(word)
        token = ids[0] if written is None and len(ids) == 1 else written
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        return None if token is None or self._tokenizer.id_to_token(token) == unknown else token

    def text_of(self, token_id: int) -> str:
        """Return what a token stands for in a text, without marks for parts of words."""
        decoded: str = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return decoded.strip().removeprefix("##")

    def tokenize(
        self, texts: Sequence[TextInput], truncation: Truncation, *, needs_spans: bool = False
    ) -> Sequence[TokenizedText]:
        # Both release the GIL. The fast one keeps no offsets, and loses which text of a pair a token is of
        # where the tokeniser puts no special tokens around them.
        if needs_spans or not all(isinstance(text, str) for text in texts):
            encodings: list[Encoding] = self._tokenizer.encode_batch(list(texts))
            return [self._cut_encoding(e, truncation, with_spans=needs_spans) for e in encodings]
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        return [self._cut(np.array(e.ids, np.int64), truncation) for e in encodings]

    def _cut(self, token_ids: NDArray[np.int64], truncation: Truncation) -> TokenizedText:
        excess = len(token_ids) - self._max_tokens
        if excess <= 0 or truncation is Truncation.WINDOWS:
            return TokenizedText(token_ids)
        end = len(token_ids) - self._num_trailing
        cut = (
            slice(self._num_leading, self._num_leading + excess)
            if truncation is Truncation.START
            else slice(end - excess, end)
        )
        return TokenizedText(np.delete(token_ids, cut), excess)

    def _cut_encoding(self, encoding: Encoding, truncation: Truncation, *, with_spans: bool) -> TokenizedText:
        """Cut a pair, or a text whose spans are wanted."""
        parts = np.array([-1 if p is None else p for p in encoding.sequence_ids], np.int64)
        kept = kept_tokens(parts, max_tokens=self._max_tokens, truncation=truncation)
        is_pair = bool((parts == 1).any())
        return TokenizedText(
            np.array(encoding.ids, np.int64)[kept],
            len(parts) - len(kept),
            type_ids=np.array(encoding.type_ids, np.int64)[kept] if is_pair else None,
            spans=_spans(encoding, parts, kept) if with_spans else None,
        )


def kept_tokens(parts: NDArray[np.int64], *, max_tokens: int, truncation: Truncation) -> NDArray[np.int64]:
    """Return the places that stay when at most `max_tokens` may.

    `parts` is [num_tokens]: the text each token came from (0 or 1), -1 for special tokens, which all stay.
    The longer text loses tokens first, at its end or, with `Truncation.START`, at its start.
    """
    if len(parts) <= max_tokens or truncation is Truncation.WINDOWS:
        return np.arange(len(parts))
    lengths = [int((parts == part).sum()) for part in (0, 1)]
    room = max(0, max_tokens - int((parts < 0).sum()))
    keeps = parts < 0
    for part, kept in enumerate(shared_room(lengths[0], lengths[1], room)):
        places = np.flatnonzero(parts == part)
        keeps[places[len(places) - kept :] if truncation is Truncation.START else places[:kept]] = True
    return np.flatnonzero(keeps)


def shared_room(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of two texts stay when the longer one is always cut first."""
    if first + second <= room:
        return first, second
    if min(first, second) > room // 2:
        return room - room // 2, room // 2
    return (first, room - first) if first <= second else (room - second, second)


def _spans(encoding: Encoding, parts: NDArray[np.int64], kept: NDArray[np.int64]) -> TokenSpans:
    words = np.array([-1 if w is None else w for w in encoding.word_ids], np.int64)
    offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    return TokenSpans(offsets[kept], words[kept], parts[kept])


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

    async def tokenize(
        self, texts: Sequence[TextInput], truncation: Truncation, *, needs_spans: bool = False
    ) -> Sequence[TokenizedText]:
        """Return each text's tokens. Raises `Overloaded`. Cancelling it drops what has not begun."""
        num_chars = sum(map(count_chars, texts))
        loop = asyncio.get_running_loop()
        self._admit(num_chars)
        try:
            tokenized: list[TokenizedText] = []
            for chunk in _chunks(texts):
                run = partial(self._run, chunk, truncation, needs_spans=needs_spans)
                tokenized += await loop.run_in_executor(self._threads, run)
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

    def _run(
        self, texts: Sequence[TextInput], truncation: Truncation, *, needs_spans: bool
    ) -> Sequence[TokenizedText]:
        start_s = time.perf_counter()
        tokenized = self._tokenizer.tokenize(texts, truncation, needs_spans=needs_spans)
        elapsed_s = time.perf_counter() - start_s
        if elapsed_s > 0:
            self._chars_per_s = sum(map(count_chars, texts)) / elapsed_s
        return tokenized

    def _retry_after_s(self) -> float:
        if not self._chars_per_s:
            return _UNMEASURED_RETRY_S
        return min(max(self._waiting_chars / 2 / self._chars_per_s, _MIN_RETRY_S), _MAX_RETRY_S)


def count_chars(text: TextInput) -> int:
    """Return the characters of a text, or of a pair together."""
    return len(text) if isinstance(text, str) else sum(map(len, text))


def _chunks(texts: Sequence[TextInput]) -> Iterator[Sequence[TextInput]]:
    """Split texts into runs of about `CHUNK_CHARS` characters, in order."""
    start = num_chars = 0
    for index, text in enumerate(texts):
        num_chars += count_chars(text)
        if num_chars >= CHUNK_CHARS:
            yield texts[start : index + 1]
            start, num_chars = index + 1, 0
    if start < len(texts):
        yield texts[start:]
