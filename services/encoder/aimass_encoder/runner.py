"""Runs an encoder graph on right-padded batches of token ids. Must not know texts, requests or queues."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from aimass_serving.session import Session
from numpy.typing import NDArray

TOKEN_IDS = "input_ids"  # noqa: S105 - not a secret
MASK = "attention_mask"
TYPE_IDS = "token_type_ids"
HIDDEN = "last_hidden_state"
LOGITS = "logits"

Outputs = Mapping[str, NDArray[Any]]
"""The graph's outputs by name, first axis = rows of the batch."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenRow:
    """The tokens of one text, or pair of texts."""

    token_ids: NDArray[np.int64]  # [num_tokens]
    type_ids: NDArray[np.int64] | None = None  # [num_tokens]
    """Which text of a pair each token belongs to; None for a text alone."""

    @property
    def num_tokens(self) -> int:
        """Tokens, special ones included."""
        return len(self.token_ids)

    @property
    def identity(self) -> Hashable:
        """Equal for rows of the same tokens."""
        return self.token_ids.tobytes(), None if self.type_ids is None else self.type_ids.tobytes()


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Rows of token ids, padded on the right to one length."""

    token_ids: NDArray[np.int64]  # [batch, seq]
    mask: NDArray[np.int64]  # [batch, seq], 1 for tokens, 0 for padding
    type_ids: NDArray[np.int64] | None = None  # [batch, seq]
    """Which text of a pair a token belongs to; None when no row is a pair."""

    @property
    def num_rows(self) -> int:
        """Texts in the batch."""
        return len(self.token_ids)

    @property
    def shown(self) -> Outputs:
        """What heads see beside the graph's outputs: the tokens."""
        return {TOKEN_IDS: self.token_ids}


def pad_right(
    rows: Sequence[NDArray[np.int64]],
    *,
    length: int,
    pad_token_id: int,
    type_ids: Sequence[NDArray[np.int64] | None] = (),
) -> PaddedBatch:
    """Lay rows of at most `length` tokens into one batch; `type_ids` has one place for each row, or none."""
    token_ids = np.full((len(rows), length), pad_token_id, np.int64)
    mask = np.zeros((len(rows), length), np.int64)
    for row, ids in enumerate(rows):
        token_ids[row, : len(ids)] = ids
        mask[row, : len(ids)] = 1
    return PaddedBatch(token_ids, mask, _padded_types(type_ids, mask))


def _padded_types(
    type_ids: Sequence[NDArray[np.int64] | None], mask: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    if all(types is None for types in type_ids):
        return None
    padded = np.zeros_like(mask)
    for row, types in enumerate(type_ids):
        if types is not None:
            padded[row, : len(types)] = types
    return padded


class EncoderRunner:
    """An encoder graph, ready to run. One run at a time."""

    def __init__(self, session: Session, *, pad_token_id: int) -> None:
        self._session = session
        self._pad_token_id = pad_token_id
        self._wants_type_ids = any(i.name == TYPE_IDS for i in session.inputs)

    @property
    def execution_provider(self) -> str:
        """ONNX Runtime execution provider that runs the graph."""
        return self._session.execution_provider

    @property
    def output_bytes_per_token(self) -> int:
        """Bytes that a run puts out for each token, padding included: much, where it is one number a word."""
        return sum(
            output.dtype.itemsize * output.shape[2]
            for output in self._session.outputs
            if len(output.shape) == 3 and isinstance(output.shape[2], int)
        )

    def pad(
        self,
        rows: Sequence[NDArray[np.int64]],
        *,
        length: int,
        type_ids: Sequence[NDArray[np.int64] | None] = (),
    ) -> PaddedBatch:
        """Lay rows of at most `length` tokens into one batch, with the model's padding token."""
        return pad_right(rows, length=length, pad_token_id=self._pad_token_id, type_ids=type_ids)

    def lay_out(self, rows: Sequence[TokenRow], *, length: int) -> PaddedBatch:
        """Lay rows of at most `length` tokens into one batch."""
        types = [row.type_ids for row in rows]
        return self.pad([row.token_ids for row in rows], length=length, type_ids=types)

    def run(self, batch: PaddedBatch) -> Outputs:
        """Run the graph once; the outputs depend on the task."""
        return self.run_each([batch])[0]

    def run_each(self, batches: Sequence[PaddedBatch]) -> Sequence[Outputs]:
        """Run the graph once for each batch, side by side where that is faster."""
        return self._session.run_each([self._feeds(batch) for batch in batches])

    def warm_up(self, batches: Sequence[Sequence[tuple[int, int]]]) -> None:
        """Run batches of `(rows, length)` pieces: memory is taken and kernels are chosen before traffic."""
        for pieces in batches:
            rows = [[np.full(length, self._pad_token_id, np.int64)] * num_rows for num_rows, length in pieces]
            self.run_each([self.pad(piece, length=len(piece[0])) for piece in rows])

    def _feeds(self, batch: PaddedBatch) -> dict[str, NDArray[Any]]:
        feeds = {TOKEN_IDS: batch.token_ids, MASK: batch.mask}
        if self._wants_type_ids:
            feeds[TYPE_IDS] = np.zeros_like(batch.token_ids) if batch.type_ids is None else batch.type_ids
        return feeds
