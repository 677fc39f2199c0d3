"""Long texts in pieces, and the pieces' vectors as one. Pure; knows no model and no request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from aimass_serving.errors import AimassError, InputTooLong, InvalidField
from numpy.typing import NDArray

from aimass_encoder.tokenization import TokenizedText
from aimass_encoder.windows import Window, cut_windows, window_room


def in_pieces(
    text: TokenizedText, *, max_tokens: int, overlap: int, field: str, part: int = 0
) -> Sequence[Window] | AimassError:
    """Return text number `part` in pieces, each with all other tokens of the input around it.

    Raises `InvalidField` for an overlap of more than half a piece. An input whose other tokens leave no room
    gives `InputTooLong`, which names `field`.
    """
    room = window_room(text, max_tokens=max_tokens, part=part)
    if room < 1:
        return InputTooLong(field, num_tokens=len(text.token_ids), max_tokens=max_tokens)
    if overlap > room // 2:
        expected = f"a number from 0 to {room // 2}, half of what a piece holds"
        raise InvalidField("options.chunking.overlap_tokens", expected=expected, got=overlap)
    return cut_windows(text, max_tokens=max_tokens, overlap=overlap, part=part)


def apart_from_prompt(text: TokenizedText, prompt: str) -> TokenizedText:
    """Return a text whose prompt counts as special tokens and stands in every piece. Needs spans."""
    if not prompt:
        return text
    assert text.spans is not None, "pieces are cut of texts with spans"
    is_prompt = text.spans.offsets[:, 1] <= len(prompt)
    parts = np.where(is_prompt, -1, text.spans.parts)
    return replace(text, spans=replace(text.spans, parts=parts))


def mean_of_pieces(pieces: Sequence[Window], vectors: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the mean of the pieces' vectors [hidden_size], each weighted by its tokens."""
    weights = np.array([len(piece.places) for piece in pieces], np.float32)  # [pieces]
    mean: NDArray[np.float32] = (weights @ np.stack(vectors)) / weights.sum()
    return mean
