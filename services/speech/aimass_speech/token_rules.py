"""Which tokens may come next in a transcript: Whisper's rules for timestamps, and tokens never chosen.

Pure; logits in, logits out. Source: `ApplyTimestampRules`, `SuppressBlank` and `SuppressTokens` of OpenAI's
whisper/decoding.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from aimass_speech.hot_phrases import HotPhrases
from aimass_speech.whisper_spec import WhisperSpec

_MAX_FIRST_TIMESTAMP_S = 1.0
_NEVER = -np.inf
_BLOCK = 128


class TokenRules:
    """The rules of one output. Holds constants only."""

    def __init__(
        self, spec: WhisperSpec, *, has_timestamps: bool, hot_phrases: HotPhrases | None = None
    ) -> None:
        self._spec = spec
        self._has_timestamps = has_timestamps
        self._hot_phrases = hot_phrases
        special = range(spec.end_of_text + 1, spec.timestamp_begin)  # languages, tasks, markers
        self._never = np.array([*spec.suppressed, *special], np.int64)
        self._never_first = np.array(spec.suppressed_first, np.int64)
        step_s = spec.timestamp_step_samples / spec.mel.sample_rate_hz
        self._last_first = spec.timestamp_begin + round(_MAX_FIRST_TIMESTAMP_S / step_s)

    def apply(self, logits: NDArray[np.float32], output_ids: Sequence[int]) -> None:
        """Change logits [vocab] in place: what must not follow `output_ids` becomes impossible."""
        spec = self._spec
        logits[self._never] = _NEVER
        if not output_ids:
            logits[self._never_first] = _NEVER
        if self._hot_phrases is not None:
            text = [token for token in output_ids if token < spec.end_of_text]
            self._hot_phrases.apply(logits, text)
        if self._has_timestamps:
            self._apply_timestamps(logits, output_ids)
        else:
            logits[spec.timestamp_begin :] = _NEVER

    def _apply_timestamps(self, logits: NDArray[np.float32], output_ids: Sequence[int]) -> None:
        begin, end_of_text = self._spec.timestamp_begin, self._spec.end_of_text
        if not output_ids:
            logits[:begin] = _NEVER
            logits[self._last_first + 1 :] = _NEVER
            return
        if output_ids[-1] >= begin:
            if len(output_ids) < 2 or output_ids[-2] >= begin:
                logits[begin:] = _NEVER  # a pair is complete, or text must begin
            else:
                logits[:end_of_text] = _NEVER  # a second timestamp, or the end
        self._keep_in_order(logits, output_ids)
        if log_sum(logits[begin:]) > logits[:begin].max():
            logits[:begin] = _NEVER

    def _keep_in_order(self, logits: NDArray[np.float32], output_ids: Sequence[int]) -> None:
        """Forbid timestamps before the last one, and segments without length."""
        begin = self._spec.timestamp_begin
        last = next((token for token in reversed(output_ids) if token >= begin), None)
        if last is None:
            return
        is_open = output_ids[-1] >= begin and len(output_ids) > 1 and output_ids[-2] < begin
        logits[begin : last if is_open else last + 1] = _NEVER


def log_sum(logits: NDArray[np.float32]) -> float:
    """Return the logarithm of the sum of the exponentials."""
    highest = logits.max()
    if highest == _NEVER:
        return float(highest)
    shifted = logits - highest
    return float(highest) + float(np.log(np.exp(shifted, out=shifted).sum()))


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return natural log-probabilities [vocab]; impossible tokens stay impossible."""
    shifted: NDArray[np.float32] = logits - np.float32(log_sum(logits))
    return shifted


def best_tokens(logits: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return the tokens with the highest logits [vocab], in no order.

    Each of them is in one of the `count` blocks of tokens with the highest maxima: one pass finds these, and
    a partial sort of the whole vocabulary is spared.
    """
    num_blocks = len(logits) // _BLOCK
    if num_blocks <= count:
        return _highest(logits, count)
    tops = logits[: num_blocks * _BLOCK].reshape(num_blocks, _BLOCK).max(axis=1)
    starts = _highest(tops, count) * _BLOCK
    places = np.concatenate(
        [(starts[:, np.newaxis] + np.arange(_BLOCK)).ravel(), np.arange(num_blocks * _BLOCK, len(logits))]
    )
    found: NDArray[np.int64] = places[_highest(logits[places], count)]
    return found


def _highest(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    count = min(count, len(values))
    return np.argpartition(values, len(values) - count)[len(values) - count :]
