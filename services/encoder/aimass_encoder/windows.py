"""Long texts in overlapping windows: cut, and put together again. Pure; knows no model and no task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aimass_encoder.tokenization import TokenizedText, TokenSpans


@dataclass(frozen=True, slots=True)
class Window:
    """One window of a text."""

    text: TokenizedText
    """Its tokens as the model reads them, with spans: special tokens stand around every window."""
    places: NDArray[np.int64]  # [num_tokens]
    """Place of each of its tokens in the whole text."""
    is_first: bool
    is_last: bool


def window_room(text: TokenizedText, *, max_tokens: int, part: int = 0) -> int:
    """Return how many tokens of text number `part` fit in one window; 0 or less when none does."""
    return max_tokens - int((_spans(text).parts != part).sum())


def cut_windows(text: TokenizedText, *, max_tokens: int, overlap: int, part: int = 0) -> Sequence[Window]:
    """Return windows of at most `max_tokens` that cover all tokens.

    Tokens of text number `part` move through the windows, neighbours share `overlap` of them; all other
    tokens (special ones, the other text of a pair) stand in every window. `text` is whole and has spans.
    Needs 0 <= overlap < `window_room`. Windows are those of `tokenizers`' truncation with a stride.
    """
    room = window_room(text, max_tokens=max_tokens, part=part)
    assert 0 <= overlap < room, "the caller checks the overlap"
    is_moving = _spans(text).parts == part
    moving, windows = np.flatnonzero(is_moving), list[Window]()
    for start in range(0, max(1, len(moving) - overlap), room - overlap):
        keeps = ~is_moving
        keeps[moving[start : start + room]] = True
        is_last = start + room >= len(moving)
        windows.append(_window(text, np.flatnonzero(keeps), is_first=start == 0, is_last=is_last))
    return windows


def margins(window: Window, *, num_tokens: int) -> NDArray[np.int64]:
    """Return how much text each of a window's tokens has on its nearer side: [window's tokens].

    The ends of the whole text, of `num_tokens`, are no edges: nothing is missing there.
    """
    order = np.arange(len(window.places))
    before, after = order, order[::-1]
    if window.is_first:
        before = np.full_like(order, num_tokens)
    if window.is_last:
        after = np.full_like(order, num_tokens)
    return np.minimum(before, after)


def most_central(windows: Sequence[Window], *, num_tokens: int) -> NDArray[np.int64]:
    """Return, for each token of the whole text, the window where its `margins` is largest.

    [num_tokens]; the earlier of equals, -1 for a token that no window has.
    """
    chosen = np.full(num_tokens, -1, np.int64)
    largest = np.full(num_tokens, -1, np.int64)
    for number, window in enumerate(windows):
        margin = margins(window, num_tokens=num_tokens)
        is_better = margin > largest[window.places]
        places = window.places[is_better]
        chosen[places], largest[places] = number, margin[is_better]
    return chosen


def joined(
    windows: Sequence[Window], values: Sequence[NDArray[np.float32]], *, num_tokens: int
) -> NDArray[np.float32]:
    """Return one row for each token of the whole text, from the window where it is most central.

    `values` has an array [window's tokens, n] for each window; the result is [num_tokens, n].
    """
    chosen = most_central(windows, num_tokens=num_tokens)
    whole = np.zeros((num_tokens, *values[0].shape[1:]), np.float32)
    for number, (window, own) in enumerate(zip(windows, values, strict=True)):
        is_own = chosen[window.places] == number
        whole[window.places[is_own]] = own[is_own]
    return whole


def _window(text: TokenizedText, places: NDArray[np.int64], *, is_first: bool, is_last: bool) -> Window:
    spans = _spans(text)
    own = TokenSpans(spans.offsets[places], spans.words[places], spans.parts[places])
    types = None if text.type_ids is None else text.type_ids[places]
    own_text = TokenizedText(text.token_ids[places], type_ids=types, spans=own)
    return Window(own_text, places, is_first, is_last)


def _spans(text: TokenizedText) -> TokenSpans:
    assert text.spans is not None, "windows are cut of texts with spans"
    return text.spans
