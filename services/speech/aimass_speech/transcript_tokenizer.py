"""Token ids to text and words, and text to token ids. Knows which ids are text, and nothing of audio."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from aimass_speech.spoken_form import spoken_form

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_WITHOUT_SPACES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
"""Languages written without spaces between words: every character is a word of its own."""


@dataclass(frozen=True, slots=True)
class WordTokens:
    """A word and the tokens it is made of."""

    text: str
    token_ids: tuple[int, ...]


class TextCodec(Protocol):
    """What a tokeniser must be able to do."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, all of which are text."""


class FileCodec:
    """A tokeniser in the format of the `tokenizers` library."""

    def __init__(self, file: Path) -> None:
        self._tokenizer: Any = Tokenizer.from_file(str(file))

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=False)
        return text


class TranscriptTokenizer:
    """Reads outputs of a recogniser: text tokens among special ones and timestamps."""

    def __init__(self, codec: TextCodec, *, num_text_tokens: int) -> None:
        self._codec = codec
        self._num_text_tokens = num_text_tokens

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; special tokens written in it do not count as such."""
        return [token for token in self._codec.encode(text) if token < self._num_text_tokens]

    def text_ids(self, token_ids: Sequence[int]) -> list[int]:
        """Return only the ids that are text."""
        return [token for token in token_ids if token < self._num_text_tokens]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text; special tokens and timestamps leave nothing."""
        return self._codec.decode(self.text_ids(token_ids))

    def spoken(self, token_ids: Sequence[int]) -> str:
        """Return the words as they sound: no capitals, marks or times. Cut-off characters stay as ids."""
        text = self.decode(token_ids)
        cut = str(self.text_ids(token_ids)[-4:]) if text.endswith(_REPLACEMENT) else ""
        return spoken_form(text) + cut

    def split_words(self, token_ids: Sequence[int], *, language: str) -> list[WordTokens]:
        """Return the words, each with the space before it; characters are never split.

        Source: `split_to_word_tokens` of OpenAI's whisper.
        """
        characters = self._split_characters(self.text_ids(token_ids))
        return characters if language in _WITHOUT_SPACES else _joined(characters)

    def _split_characters(self, token_ids: Sequence[int]) -> list[WordTokens]:
        """Join tokens until their bytes are whole characters."""
        whole = self._codec.decode(token_ids)
        pieces: list[WordTokens] = []
        pending: list[int] = []
        place = 0
        for token in token_ids:
            pending.append(token)
            text = self._codec.decode(pending)
            at = place + text.find(_REPLACEMENT)
            if _REPLACEMENT not in text or (at < len(whole) and whole[at] == _REPLACEMENT):
                pieces.append(WordTokens(text, tuple(pending)))
                pending, place = [], place + len(text)
        return [*pieces, WordTokens(self._codec.decode(pending), tuple(pending))] if pending else pieces


def _joined(pieces: Sequence[WordTokens]) -> list[WordTokens]:
    """Join pieces into words: one begins with a space, or is a mark of punctuation."""
    words: list[WordTokens] = []
    for piece in pieces:
        begins = not words or piece.text.startswith(" ") or piece.text.strip() in string.punctuation
        if begins:
            words.append(piece)
        else:
            last = words.pop()
            words.append(WordTokens(last.text + piece.text, last.token_ids + piece.token_ids))
    return words
