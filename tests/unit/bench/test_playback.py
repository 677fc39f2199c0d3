"""The player of the synthesis benchmark: when it runs dry, and by how much it did not."""

import math

import pytest

from bench.playback import Playback


def test_a_player_whose_chunks_come_in_time_knows_the_least_margin() -> None:
    player = Playback()
    for audio_s, now_s in ((0.5, 10.0), (1.0, 10.2), (1.0, 11.4)):
        player.take(audio_s, now_s=now_s)
    assert player.num_underruns == 0
    assert player.least_margin_s == pytest.approx(0.1)


def test_a_late_chunk_is_an_underrun_and_the_player_goes_on_from_there() -> None:
    player = Playback()
    for audio_s, now_s in ((0.5, 0.0), (0.5, 0.8), (0.5, 1.2)):
        player.take(audio_s, now_s=now_s)
    assert player.num_underruns == 1
    assert player.least_margin_s == pytest.approx(-0.3)


def test_one_chunk_has_no_margin() -> None:
    player = Playback()
    player.take(0.5, now_s=3.0)
    assert player.num_underruns == 0
    assert math.isinf(player.least_margin_s)
