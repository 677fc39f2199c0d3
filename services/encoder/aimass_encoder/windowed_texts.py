"""Long texts through the graph in overlapping windows, for the tasks that may lose nothing.

Must not know what a reading is nor what is made of it. One bad text fails its own result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from aimass_serving.errors import AimassError

from aimass_encoder.head import Head
from aimass_encoder.pipeline import EncodeTimes
from aimass_encoder.request import PhaseTimings, Truncation
from aimass_encoder.runner import TokenRow
from aimass_encoder.text_encoder import TextCall, TextEncoder, good, phase_timings
from aimass_encoder.tokenization import TokenizedText
from aimass_encoder.windows import Window

A = TypeVar("A")
Reading = TypeVar("Reading")

Cut: TypeAlias = Callable[[int, TokenizedText], Sequence[Window] | AimassError]
"""Cuts text number `index` of a call, or says why it cannot be read."""


@dataclass(frozen=True, slots=True)
class WindowedText(Generic[A]):
    """What was read off the windows of one text."""

    text: TokenizedText
    """The whole text."""
    windows: Sequence[Window]
    readings: Sequence[A]
    """One for each window."""

    @property
    def num_tokens(self) -> int:
        """Tokens the model saw, over all windows, special tokens included."""
        return sum(len(window.places) for window in self.windows)


@dataclass(frozen=True, slots=True)
class WindowedTexts(Generic[A]):
    """One result for each text of a call, in order."""

    results: Sequence[WindowedText[A] | AimassError]
    timings: PhaseTimings

    @property
    def num_tokens(self) -> int:
        """Tokens the model saw, over all windows of all texts."""
        return sum(r.num_tokens for r in self.results if isinstance(r, WindowedText))


def whole_texts(texts: Sequence[str], *, deadline_s: float | None) -> TextCall:
    """Return a call on the field `texts`, none of which is cut."""
    return TextCall(
        texts,
        lambda index: f"texts[{index}]",
        "texts",
        truncation=Truncation.WINDOWS,
        deadline_s=deadline_s,
        needs_spans=True,
    )


async def encode_windows(
    encoder: TextEncoder, call: TextCall, cut: Cut, head: Head[Reading]
) -> WindowedTexts[Reading]:
    """Return what `head` reads off the windows of each text, in order; a bad text has an error in its place.

    `call` asks for spans and for `Truncation.WINDOWS`. Raises `InvalidField` for too many texts,
    `Overloaded`, `DeadlineExceeded`, `Draining`.
    """
    arrived_ns = time.time_ns()
    tokenized = await encoder.tokenize(call)
    pairs = [
        t if isinstance(t, AimassError) else _with_windows(t, cut(i, t)) for i, t in enumerate(tokenized)
    ]
    rows = [TokenRow(w.text.token_ids, w.text.type_ids) for _, windows in good(pairs) for w in windows]
    readings: Sequence[Reading | AimassError] = []
    times = EncodeTimes.none()
    if rows:
        readings, times = await encoder.pipeline.run(rows, head, deadline_s=call.deadline_s)
    remaining = iter(readings)
    results = [
        pair if isinstance(pair, AimassError) else _windowed(*pair, [next(remaining) for _ in pair[1]])
        for pair in pairs
    ]
    return WindowedTexts(results, phase_timings(arrived_ns, times, time.time_ns()))


def _with_windows(
    text: TokenizedText, windows: Sequence[Window] | AimassError
) -> tuple[TokenizedText, Sequence[Window]] | AimassError:
    return windows if isinstance(windows, AimassError) else (text, windows)


def _windowed(
    text: TokenizedText, windows: Sequence[Window], readings: Sequence[A | AimassError]
) -> WindowedText[A] | AimassError:
    failed = [reading for reading in readings if isinstance(reading, AimassError)]
    return failed[0] if failed else WindowedText(text, windows, good(readings))
