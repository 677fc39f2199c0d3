"""The player of the live benchmark: what it sends, and when it knows each sample to have been sent."""

from itertools import pairwise

import numpy as np
from aimass import Flush

from bench.speech_audio import LIBRIVOX, RATE_HZ, Clip
from bench.speech_live import PAUSE_S, PIECE_S, Player


def clip(seconds: float, *, silence_s: float) -> Clip:
    sound, silence = np.full(int(seconds * RATE_HZ), 0.5), np.zeros(int(silence_s * RATE_HZ))
    return Clip(LIBRIVOX, "tone", np.concatenate([sound, silence]).astype(np.float32), "tone")


def test_a_flush_comes_right_behind_the_last_sound() -> None:
    pieces = list(Player([clip(0.1, silence_s=0.3)], is_flushed=True).pieces())
    place = next(index for index, piece in enumerate(pieces) if isinstance(piece, Flush))
    before = b"".join(piece for piece in pieces[:place] if isinstance(piece, bytes))
    assert len(before) // 2 == int(0.1 * RATE_HZ)


def test_times_of_samples_do_not_drift_where_clips_end_within_a_piece() -> None:
    player = Player([clip(0.05, silence_s=0)] * 3, is_flushed=False)
    num_bytes = sum(len(piece) for piece in player.pieces() if isinstance(piece, bytes))
    assert num_bytes // 2 == 3 * int((0.05 + PAUSE_S) * RATE_HZ)
    starts_s = [player.sent_at(index * (0.05 + PAUSE_S)) - player.started_s for index in range(3)]
    # A piece is sent when all before it has been played, and never earlier.
    assert all(later - earlier >= 0.05 + PAUSE_S - PIECE_S / 2 for earlier, later in pairwise(starts_s))
