"""Favours phrases while text is written: adds to the logits of tokens that begin or continue one.

Pure. A phrase is matched on tokens, with and without a space before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class _Node:
    """A place in the tree of phrases: what may follow, and what that is worth."""

    children: dict[int, _Node] = field(default_factory=dict)
    boosts: dict[int, float] = field(default_factory=dict)


class HotPhrases:
    """A tree of phrases' tokens."""

    def __init__(self, phrases: Iterable[tuple[Sequence[int], float]]) -> None:
        """Take `(token ids, boost)` of each phrase, in each of its spellings."""
        self._root = _Node()
        self._depth = 0
        for token_ids, boost in phrases:
            self._add(token_ids, boost)

    def apply(self, logits: NDArray[np.float32], text_ids: Sequence[int]) -> None:
        """Add the boosts of what may come next to logits [vocab], given the text so far."""
        for node in self._matching(text_ids):
            for token, boost in node.boosts.items():
                logits[token] += boost

    def _add(self, token_ids: Sequence[int], boost: float) -> None:
        node = self._root
        self._depth = max(self._depth, len(token_ids))
        for token in token_ids:
            known = node.boosts.get(token)
            node.boosts[token] = boost if known is None else max(known, boost)
            node = node.children.setdefault(token, _Node())

    def _matching(self, text_ids: Sequence[int]) -> list[_Node]:
        """Return the places in the tree that the end of the text has reached; always the root."""
        places = []
        for length in range(min(self._depth, len(text_ids)) + 1):
            node: _Node | None = self._root
            for token in text_ids[len(text_ids) - length :]:
                node = node.children.get(token) if node else None
            if node is not None:
                places.append(node)
        return places
