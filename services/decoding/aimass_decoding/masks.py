"""Computes the mask of a sequence's next token on another thread, while the graph runs. Knows no grammar."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future

import numpy as np
from numpy.typing import NDArray

from aimass_decoding.request import TokenMask

Mask = NDArray[np.uint32]  # [ceil(vocab / 32)]


class MaskFeed:
    """The masks of one sequence, one ahead of its tokens. Owned by the engine thread."""

    def __init__(self, new_mask: Callable[[], TokenMask], executor: Executor) -> None:
        self._executor = executor
        self._mask: TokenMask | None = None  # of the executor's thread
        self._next: Future[Mask | None] = executor.submit(self._begin, new_mask)

    def take(self, timeout_s: float) -> Mask | None:
        """Return the mask of the next token; None allows all.

        Raises what computing it raised, or `TimeoutError` when it takes longer than `timeout_s`.
        """
        return self._next.result(timeout_s)

    def accept(self, token_id: int) -> None:
        """Begin to compute the mask after a token. The one before must have been taken."""
        self._next = self._executor.submit(self._advance, token_id)

    def close(self) -> None:
        """Compute no more than what is being computed now."""
        self._next.cancel()

    def _begin(self, new_mask: Callable[[], TokenMask]) -> Mask | None:
        self._mask = new_mask()
        return self._mask.allowed()

    def _advance(self, token_id: int) -> Mask | None:
        assert self._mask is not None, "a mask is taken before the next one is asked for"
        self._mask.accept(token_id)
        return self._mask.allowed()
