"""Scores each of a list of phrases as the text of a window, over a tree of their tokens.

Exact: a phrase's probability is the product of its tokens' and of the end's, summed over its spellings. The
beginning of a phrase is at least as probable as the whole, so beginnings far below the best whole text are
left out without changing any score that counts. Owned by the decoding thread; knows logits, not graphs.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from aimass_speech.phrase_tree import Node, PhraseTree
from aimass_speech.token_rules import log_softmax
from aimass_speech.window import Reading

MARGIN = 12.0
"""Beginnings whose log-probability is so much below the best phrase, or below what was heard, are left out:
each has at most 1 in 160 000 of its probability."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """The first tokens of some phrases."""

    node: Node = field(repr=False)
    token_ids: tuple[int, ...]
    logprob: float


class PhraseSearch:
    """The scores of one window, and the beginnings that are still to be followed."""

    def __init__(self, tree: PhraseTree, *, end_of_text: int, heard_logprob: float) -> None:
        """Begin a search. Beside what was heard without phrases, improbable ones are not followed either."""
        self._end_of_text = end_of_text
        self._order = itertools.count()
        self._open: list[tuple[float, int, Beginning]] = []
        self._best = heard_logprob
        self.logprobs: dict[int, float] = {}
        """Natural log-probability of each phrase that was followed to its end."""
        self.defer([Beginning(tree.root, (), 0.0)])

    def defer(self, beginnings: Iterable[Beginning]) -> None:
        """Follow these later."""
        for beginning in beginnings:
            heapq.heappush(self._open, (-beginning.logprob, next(self._order), beginning))

    def next_beginning(self) -> Beginning | None:
        """Take the most probable beginning that waits; None when none can matter any more."""
        if not self._open or -self._open[0][0] < self._best - MARGIN:
            return None
        return heapq.heappop(self._open)[2]

    def grow(
        self, beginnings: Sequence[Beginning], logits: NDArray[np.float32]
    ) -> list[tuple[int, Beginning]]:
        """Score what is complete, and return `(parent, beginning)` one token longer, most probable first.

        `logits` are [beginnings, vocab].
        """
        logprobs = [log_softmax(row.copy()) for row in logits]
        for beginning, row in zip(beginnings, logprobs, strict=True):
            for phrase in beginning.node.phrases:
                self._score(phrase, beginning.logprob + float(row[self._end_of_text]))
        longer = [
            (parent, Beginning(node, (*one.token_ids, token), one.logprob + float(row[token])))
            for parent, (one, row) in enumerate(zip(beginnings, logprobs, strict=True))
            for token, node in one.node.children.items()
        ]
        kept = [item for item in longer if item[1].logprob >= self._best - MARGIN]
        return sorted(kept, key=lambda item: -item[1].logprob)

    def _score(self, phrase: int, logprob: float) -> None:
        total = float(np.logaddexp(self.logprobs.get(phrase, -np.inf), logprob))
        self.logprobs[phrase] = total
        self._best = max(self._best, total)


class PhraseAttempt:
    """Follows one beginning, `width` continuations at a time; the rest are deferred. An `Attempt`."""

    def __init__(self, search: PhraseSearch, beginning: Beginning, *, width: int) -> None:
        self._search = search
        self._rows = [beginning]
        self._width = width

    @property
    def tokens(self) -> Sequence[int]:
        return [row.token_ids[-1] for row in self._rows]

    @property
    def num_tokens(self) -> int:
        return len(self._rows[0].token_ids)

    def advance(self, logits: NDArray[np.float32]) -> Sequence[int] | None:
        grown = self._search.grow(self._rows, logits[: len(self._rows)])
        kept = grown[: self._width]
        self._search.defer(beginning for _, beginning in grown[self._width :])
        self._rows = [beginning for _, beginning in kept] or self._rows
        return [parent for parent, _ in kept] or None

    def readings(self) -> list[Reading]:
        """Return none: the scores are in the search."""
        return []
