"""An output with timestamps to segments, and how far the window was understood. Pure.

Source: the loop of `transcribe` in OpenAI's whisper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aimass_speech.whisper_spec import WhisperSpec


@dataclass(frozen=True, slots=True)
class TimedTokens:
    """Tokens of one segment, and its place in samples from the start of the window."""

    token_ids: tuple[int, ...]
    start: int
    end: int


def split_segments(
    token_ids: Sequence[int], spec: WhisperSpec, *, num_samples: int
) -> tuple[list[TimedTokens], int]:
    """Return the segments of a window of `num_samples`, and the sample from which the next window begins.

    An output that ends inside a sentence is not trusted behind its last timestamp: the next window begins
    there.
    """
    begin, step = spec.timestamp_begin, spec.timestamp_step_samples
    is_time = [token >= begin for token in token_ids]

    def at(token: int) -> int:
        return min((token - begin) * step, num_samples)

    ends_alone = len(is_time) >= 1 and is_time[-1] and (len(is_time) < 2 or not is_time[-2])
    cuts = [i for i in range(1, len(is_time)) if is_time[i] and is_time[i - 1]]
    if not cuts:
        times = [token for token in token_ids if token >= begin]
        end = at(times[-1]) if times and times[-1] != begin else num_samples
        return [TimedTokens(tuple(token_ids), 0, end)], num_samples
    if ends_alone:
        cuts.append(len(token_ids))
    segments = [
        TimedTokens(tuple(token_ids[start:end]), at(token_ids[start]), at(token_ids[end - 1]))
        for start, end in zip([0, *cuts], cuts, strict=False)
    ]
    return segments, num_samples if ends_alone else at(token_ids[cuts[-1] - 1])
