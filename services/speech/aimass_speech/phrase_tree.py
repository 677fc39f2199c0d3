"""Phrases as a tree of their tokens, in all their spellings. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Node:
    """A place in the tree: what may follow, and the phrases that are complete here."""

    children: dict[int, Node] = field(default_factory=dict)
    phrases: set[int] = field(default_factory=set)


class PhraseTree:
    """The tokens of phrases in all their spellings. Never changes: may be shared."""

    def __init__(self, spellings: Iterable[tuple[int, Sequence[int]]]) -> None:
        """Take `(number of the phrase, token ids)` of each spelling."""
        self.root = Node()
        for phrase, token_ids in spellings:
            node = self.root
            for token in token_ids:
                node = node.children.setdefault(token, Node())
            node.phrases.add(phrase)
