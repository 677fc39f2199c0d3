"""Turns prompts into token ids: text, a conversation, or ids that are already there. Knows no generation.

Blocking and at times slow (about half a second a megabyte): the engine calls it in its own threads. The batch
calls of the tokenizer are used even for one text, because only they let other Python threads run meanwhile.
"""

from __future__ import annotations

import numpy as np
from aimass_serving.errors import InvalidField
from numpy.typing import NDArray
from tokenizers import Tokenizer

from aimass_generation.chat_template import ChatTemplate
from aimass_generation.request import ChatPrompt, Prompt, TextPrompt, TokenPrompt
from aimass_generation.resolver import check_token_ids


class PromptEncoder:
    """Token ids of prompts, each within the model's vocabulary. Safe to use from several threads."""

    def __init__(
        self, tokenizer: Tokenizer, *, vocab_size: int, chat_template: ChatTemplate | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._chat_template = chat_template

    def encode(self, prompt: Prompt) -> NDArray[np.int64]:
        """Return the ids [num_tokens] of a prompt, at least one, special tokens included.

        Raises `InvalidField` for a prompt without tokens, an id the model does not know, a conversation the
        chat template refuses, and a conversation for a model that has no template.
        """
        if isinstance(prompt, TokenPrompt):
            return self._known(prompt.token_ids)
        ids = np.asarray(self._ids_of_text(prompt), np.int64)
        if not len(ids):
            raise InvalidField(prompt.FIELD, expected="text with at least one token", got=prompt)
        if ids.max() >= self._vocab_size:
            expected = f"text made of the model's {self._vocab_size} tokens"
            raise InvalidField(prompt.FIELD, expected=expected, got=f"token {ids.max()}")
        return ids

    def _known(self, token_ids: tuple[int, ...]) -> NDArray[np.int64]:
        check_token_ids(token_ids, vocab_size=self._vocab_size, field=TokenPrompt.FIELD)
        return np.asarray(token_ids, np.int64)

    def _ids_of_text(self, prompt: TextPrompt | ChatPrompt) -> list[int]:
        # A template writes the special tokens itself.
        is_chat = isinstance(prompt, ChatPrompt)
        text = self._laid_out(prompt) if isinstance(prompt, ChatPrompt) else prompt.text
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidField(prompt.FIELD, expected="valid Unicode text", got=error.reason) from error
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=not is_chat)
        return list(encoding.ids)

    def _laid_out(self, prompt: ChatPrompt) -> str:
        if self._chat_template is None:
            raise InvalidField(
                prompt.FIELD, expected="text or token_ids: the model has no chat template", got="chat"
            )
        return self._chat_template.render(prompt.messages, prompt.tools)
