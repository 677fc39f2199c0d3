"""Turns token ids into text one at a time, exactly. Knows no requests and no stop strings.

The texts of all pushes and of the flush, joined, are what the tokenizer's own `decode` gives for all ids at
once. Two ways lead there:

- byte-level vocabularies (GPT-2, Llama 3, Qwen, SmolLM): a token is a fixed string of bytes, so an
  incremental UTF-8 decoder does it;
- all others (sentencepiece-style with byte fallback, Metaspace, WordPiece): a token's text depends on whether
  it is the first, and on the run of byte tokens it stands in. A window that begins with one earlier token is
  decoded before and after, and the difference is the new text.

No prompt token is ever decoded, so a prompt that ends inside a character cannot leak into the text.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

from tokenizers import Tokenizer

_REPLACEMENT = "\ufffd"
_BYTE_TOKEN_CHARS = len("<0x00>")
_FEW_TOKENS = 256


class Detokenizer(Protocol):
    """Text of one sequence of tokens, as it grows. Owned by one generation."""

    @property
    def is_holding(self) -> bool:
        """Whether some token so far has text that is not out yet."""

    def push(self, token_id: int) -> str:
        """Return the text that became final with this token; it never ends inside a character."""

    def flush(self) -> str:
        """Return what is still held back, because no more tokens will come: broken bytes become U+FFFD."""


class TextDecoder:
    """What a tokenizer's decoder does with token ids; opens detokenizers. One per model, for all requests."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(
            added.content for added in tokenizer.get_added_tokens_decoder().values() if added.special
        )
        self._visible: dict[int, str | None] = {}
        # Now and not at the first request: it reads the whole vocabulary, tens of milliseconds.
        self._is_byte_level = _has_byte_level_decoder(tokenizer)

    def decode(self, token_ids: Sequence[int], *, keep_special_tokens: bool = False) -> str:
        """Return the text of all ids at once."""
        ids, skips = list(token_ids), not keep_special_tokens
        if len(ids) <= _FEW_TOKENS:
            return str(self._tokenizer.decode(ids, skip_special_tokens=skips))
        # Unlike `decode`, `decode_batch` lets other Python threads run.
        return str(self._tokenizer.decode_batch([ids], skip_special_tokens=skips)[0])

    def visible_token(self, token_id: int) -> str | None:
        """Return the spelling of a token that adds to the text; None for special and unknown ones."""
        if token_id not in self._visible:
            token = self._tokenizer.id_to_token(token_id)
            self._visible[token_id] = None if token in self._special else token
        return self._visible[token_id]

    def detokenizer(self, *, continues_text: bool = False) -> Detokenizer:
        """Return a detokenizer for one generation, which leaves special tokens out.

        `continues_text`: the generation goes on from a text, so a leading space that the decoder would strip
        at the beginning of a text is kept. It makes no difference to byte-level vocabularies.
        """
        if self._is_byte_level:
            return ByteLevelDetokenizer(self._token_bytes)
        return WindowDetokenizer(self, context=self._context_ids if continues_text else ())

    @cached_property
    def _context_ids(self) -> Sequence[int]:
        """An ordinary token to stand before a continuation. Which one does not matter, only that one does."""
        ids = self._tokenizer.encode("a", add_special_tokens=False).ids[-1:]
        token = self.visible_token(ids[0]) if ids else None
        return () if token is None or is_byte_token(token) else tuple(ids)

    @cached_property
    def _token_bytes(self) -> Callable[[int], bytes]:
        known: dict[int, bytes] = {}

        def token_bytes(token_id: int) -> bytes:
            if token_id not in known:
                token = self.visible_token(token_id)
                known[token_id] = b"" if token is None else bytes_of_byte_level(token)
            return known[token_id]

        return token_bytes


class ByteLevelDetokenizer:
    """Joins the bytes of tokens and releases every complete character."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def is_holding(self) -> bool:
        return bool(self._utf8.getstate()[0])

    def push(self, token_id: int) -> str:
        return self._utf8.decode(self._token_bytes(token_id))

    def flush(self) -> str:
        return self._utf8.decode(b"", True)


class WindowDetokenizer:
    """Decodes a short window of tokens before and after each push and releases the difference.

    The window opens with one token of the past. A run of byte tokens is decoded when it ends: until then one
    more byte may turn characters of the run into U+FFFD, because decoders judge a run as a whole.
    """

    def __init__(self, decoder: TextDecoder, *, context: Sequence[int] = ()) -> None:
        self._decoder = decoder
        self._window: list[int] = list(context)
        self._past = decoder.decode(context)
        self._is_holding = False

    @property
    def is_holding(self) -> bool:
        return self._is_holding

    def push(self, token_id: int) -> str:
        token = self._decoder.visible_token(token_id)
        if token is None:
            return ""
        self._window.append(token_id)
        self._is_holding = True
        if is_byte_token(token):
            return ""
        text = self._decoder.decode(self._window)
        return "" if text.endswith(_REPLACEMENT) else self._release(text)

    def flush(self) -> str:
        return self._release(self._decoder.decode(self._window)) if self._is_holding else ""

    def _release(self, text: str) -> str:
        new = text[len(self._past) :]
        self._window = self._window[-1:]
        self._past = self._decoder.decode(self._window)
        self._is_holding = False
        return new


def _has_byte_level_decoder(tokenizer: Tokenizer) -> bool:
    decoder: Mapping[str, Any] = json.loads(tokenizer.to_str())["decoder"] or {}
    while decoder.get("type") == "Sequence" and len(decoder["decoders"]) == 1:
        decoder = decoder["decoders"][0]
    return decoder.get("type") == "ByteLevel"


def is_byte_token(token: str) -> bool:
    """Return whether a token spells one byte in hexadecimal, such as `<0xE4>`."""
    return len(token) == _BYTE_TOKEN_CHARS and token.startswith("<0x") and token.endswith(">")


def bytes_of_byte_level(token: str) -> bytes:
    """Return the bytes of a byte-level token; one with other characters (an added one) stands for itself."""
    try:
        return bytes(_BYTE_OF_CHAR[char] for char in token)
    except KeyError:
        return token.encode()


def _byte_level_alphabet() -> dict[str, int]:
    """Return the byte of each character of the byte-level alphabet.

    Printable bytes stand for themselves, the others are counted up from U+0100.
    Source: `bytes_to_unicode` in the code published with GPT-2.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + place): byte for place, byte in enumerate(others)
    }


_BYTE_OF_CHAR = _byte_level_alphabet()
