"""How a batch is cut into pieces that run side by side, each padded to its own longest text only.

Pure. Must not know what the texts are for.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

PIECE_COST = 8
"""What a run of the graph costs by itself, in tokens: so much padding is better than another piece."""
_ATTENTION_LENGTH = 1150
"""Texts of this many tokens cost twice as much a token as short ones: attention's share is half."""
_PIECES_A_LANE = (1, 2, 3)


def cut(lengths: Sequence[int], *, num_lanes: int) -> list[int]:
    """Return how many texts each piece takes, so that `num_lanes` runs at a time are soon through.

    `lengths` are padded lengths in ascending order; pieces are neighbours, in that order.
    """
    share = sum(lengths) / num_lanes
    cuts = [_cut_at(lengths, least_tokens=share / pieces) for pieces in _PIECES_A_LANE]
    return min(cuts, key=lambda sizes: _duration(lengths, sizes, num_lanes))


def _cut_at(lengths: Sequence[int], *, least_tokens: float) -> list[int]:
    """Cut from the longest down: where a piece has this many tokens, or its padding costs another run."""
    sizes: list[int] = []
    size = longest = padding = 0
    for length in reversed(lengths):
        if size == 0 or size * longest >= least_tokens or padding + longest - length > PIECE_COST:
            sizes.append(size)
            size, longest, padding = 0, length, 0
        size, padding = size + 1, padding + longest - length
    return [size, *reversed(sizes[1:])]


def _duration(lengths: Sequence[int], sizes: Sequence[int], num_lanes: int) -> float:
    """Return when the last lane is done, in tokens: lanes that are free take the largest piece left."""
    ends, costs = [0.0] * num_lanes, []
    last = 0
    for size in sizes:
        last += size
        longest = lengths[last - 1]
        costs.append(PIECE_COST + size * longest * (1 + longest / _ATTENTION_LENGTH))
    for cost in sorted(costs, reverse=True):
        heapq.heapreplace(ends, ends[0] + cost)
    return max(ends)
