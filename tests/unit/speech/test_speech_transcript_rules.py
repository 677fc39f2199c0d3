"""What may follow what in a transcript, how it is cut into segments, and when each word was said."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from aimass_speech.attempt import BeamAttempt, DrawnAttempt, SingleAttempt
from aimass_speech.features import MelShape
from aimass_speech.hot_phrases import HotPhrases
from aimass_speech.segmenter import split_segments
from aimass_speech.token_rules import TokenRules, best_tokens, log_softmax
from aimass_speech.transcript_tokenizer import WordTokens
from aimass_speech.whisper_spec import WhisperSpec
from aimass_speech.word_alignment import aligned_words, shortest_path, token_starts
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import GenerationConfig, WhisperTimeStampLogitsProcessor

END, NO_TIMES, BEGIN = 20, 24, 25
VOCAB = BEGIN + 101
STEP = 320
SPEC = WhisperSpec(
    mel=MelShape(),
    window_samples=480_000,
    frame_samples=STEP,
    max_positions=448,
    start_of_transcript=END + 1,
    end_of_text=END,
    start_of_previous=END + 2,
    no_speech=END + 3,
    no_timestamps=NO_TIMES,
    timestamp_begin=BEGIN,
    timestamp_step_samples=STEP,
    languages={},
    suppressed=(3, 5),
    suppressed_first=(7, END),
)

Logits = NDArray[np.float32]


def at(seconds: float) -> int:
    """Return the token of a time."""
    return BEGIN + round(seconds / 0.02)


@st.composite
def outputs(draw: st.DrawFn) -> list[int]:
    """Outputs as the rules allow them: a time, text, then pairs of times around texts."""
    times = sorted(draw(st.lists(st.integers(0, 60), min_size=1, max_size=5)))
    output = [BEGIN + times[0]]
    for time in times[1:]:
        output += [*draw(st.lists(st.integers(8, END - 1), min_size=1, max_size=3)), BEGIN + time]
        output += [BEGIN + time] * draw(st.integers(0, 1))
    return output + draw(st.lists(st.integers(8, END - 1), max_size=2))


@settings(max_examples=60)
@given(outputs(), st.integers(0, 50))
def test_timestamps_may_follow_where_transformers_lets_them(output: list[int], seed: int) -> None:
    """Oracle: `WhisperTimeStampLogitsProcessor`, on the tokens that no list of ours suppresses."""
    logits = np.random.default_rng(seed).normal(scale=3.0, size=VOCAB).astype(np.float32)
    config = GenerationConfig(
        eos_token_id=END,
        bos_token_id=END + 1,
        no_timestamps_token_id=NO_TIMES,
        max_initial_timestamp_index=50,
    )
    processor = WhisperTimeStampLogitsProcessor(config, begin_index=1)
    plain = replace(SPEC, suppressed=(), suppressed_first=())
    masked = logits.copy()
    masked[list(range(END + 1, BEGIN))] = -np.inf  # both never choose these; the sums must agree on it
    scores = processor(torch.tensor([[END + 1, *output]]), torch.from_numpy(masked.copy())[None])[0].numpy()
    ours = logits.copy()
    TokenRules(plain, has_timestamps=True).apply(ours, output)
    assert np.isfinite(ours).tolist() == np.isfinite(scores).tolist()


def test_the_first_token_is_an_early_time_and_suppressed_ones_never_come() -> None:
    logits = np.zeros(VOCAB, np.float32)
    TokenRules(SPEC, has_timestamps=True).apply(logits, [])
    assert np.flatnonzero(np.isfinite(logits)).tolist() == list(range(BEGIN, at(1.0) + 1))
    text = np.zeros(VOCAB, np.float32)
    TokenRules(SPEC, has_timestamps=False).apply(text, [])
    assert np.flatnonzero(np.isfinite(text)).tolist() == [i for i in range(END) if i not in (3, 5, 7)]


def test_hot_phrases_favour_their_beginning_and_what_continues_them() -> None:
    phrases = HotPhrases([([8, 9, 10], 2.0), ([9, 11], 3.0)])

    def boosted(text: list[int]) -> dict[int, float]:
        logits = np.zeros(VOCAB, np.float32)
        phrases.apply(logits, text)
        return {int(i): float(logits[i]) for i in np.flatnonzero(logits)}

    assert boosted([]) == {8: 2.0, 9: 3.0}
    assert boosted([12, 8]) == {8: 2.0, 9: 3.0 + 2.0}
    assert boosted([8, 9]) == {8: 2.0, 9: 3.0, 10: 2.0, 11: 3.0}
    assert boosted([8, 9, 10]) == {8: 2.0, 9: 3.0}


@pytest.mark.parametrize(
    ("output", "segments", "advance"),
    [
        ([at(0), 8, 9, at(1.0)], [(0, 1.0)], 2.0),  # one segment that ends before the window does
        (
            [at(0), 8, at(0.5), at(0.6), 9],
            [(0, 0.5)],
            0.5,
        ),  # cut inside a sentence: go on from the end before it
        ([at(0), 8, at(0.5), at(0.5), 9, at(1.5)], [(0, 0.5), (0.5, 1.5)], 2.0),
        ([8, 9], [(0, 2.0)], 2.0),
    ],
)
def test_segments_end_where_their_times_say_and_the_next_window_begins_there(
    output: list[int], segments: list[tuple[float, float]], advance: float
) -> None:
    found, rest = split_segments(output, SPEC, num_samples=32_000)
    assert [(piece.start / 16_000, piece.end / 16_000) for piece in found] == segments
    assert rest == advance * 16_000


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 1000))
def test_the_path_through_the_audio_is_the_cheapest_of_all(rows: int, columns: int, seed: int) -> None:
    cost = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    path = list(zip(*(axis.tolist() for axis in shortest_path(cost)), strict=True))
    assert path[0] == (0, 0)
    assert path[-1] == (rows - 1, columns - 1)
    moves = {(c - a, d - b) for (a, b), (c, d) in itertools.pairwise(path)}
    assert moves <= {(0, 1), (1, 0), (1, 1)}
    reached = np.full((rows, columns), np.inf)
    for row, column in itertools.product(range(rows), range(columns)):
        before = [
            reached[r, c]
            for r, c in ((row - 1, column), (row, column - 1), (row - 1, column - 1))
            if r >= 0 and c >= 0
        ]
        reached[row, column] = cost[row, column] + (min(before) if before else 0.0)
    assert sum(float(cost[place]) for place in path) == pytest.approx(reached[-1, -1], abs=1e-4)


def test_words_are_where_the_decoder_looked() -> None:
    """Four tokens that each look at ten frames of their own, behind two that look nowhere."""
    scores = np.zeros((2, 7, 40), np.float32)
    for token in range(4):
        scores[:, 2 + token, 10 * token : 10 * token + 10] = 12.0
    starts = token_starts(scores, first=2)
    assert np.abs(starts[:4] - [0, 10, 20, 30]).max() <= 1
    words = [WordTokens(" so", (8,)), WordTokens(" it", (9, 10)), WordTokens(".", (11,))]
    found = aligned_words(words, np.array([0, 10, 20, 30, 39]), [0.9, 0.5, 0.7, 0.1])
    assert [(word.text, word.start, word.end) for word in found] == [(" so", 0, 10), (" it.", 10, 30)]
    assert found[1].confidence == pytest.approx(0.6)


class TableLogits:
    """Logits that depend on the text so far."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, text: tuple[int, ...]) -> Logits:
        rng = np.random.default_rng([self._seed, *text])
        logits = rng.normal(size=VOCAB).astype(np.float32)
        logits[END] += 2.0
        return logits


def test_drawn_outputs_do_not_depend_on_their_company_and_the_most_probable_is_first() -> None:
    rules, model = TokenRules(SPEC, has_timestamps=False), TableLogits(3)

    def single(seed: int) -> SingleAttempt:
        return SingleAttempt(rules, end_of_text=END, max_new_tokens=12, temperature=1.0, seed=seed)

    def run(seeds: list[int]) -> list[tuple[int, ...]]:
        draws = [single(seed) for seed in seeds]
        attempt = DrawnAttempt(draws)
        texts: list[tuple[int, ...]] = [()] * len(seeds)
        while attempt.advance(np.stack([model(text) for text in texts])) is not None:
            texts = [tuple(draw.readings()[0].token_ids) for draw in draws]
        readings = attempt.readings()
        assert [r.avg_logprob for r in readings] == sorted((r.avg_logprob for r in readings), reverse=True)
        return [tuple(draw.readings()[0].token_ids) for draw in draws]

    together = run([1, 2, 3, 4, 5])
    assert [run([seed])[0] for seed in (1, 2, 3, 4, 5)] == together
    assert len(set(together)) > 1


def test_readings_that_say_the_same_count_once() -> None:
    """Tokens 8 and 9 sound the same and are likely: the search must not fill up with their spellings."""
    rules, model = TokenRules(SPEC, has_timestamps=False), TableLogits(5)

    def sound(output: Sequence[int]) -> str:
        return " ".join(str(8 if token == 9 else token) for token in output)

    def readings(same: Callable[[Sequence[int]], str] | None = None) -> list[tuple[int, ...]]:
        attempt = BeamAttempt(rules, end_of_text=END, max_new_tokens=6, num_beams=4, same=same)
        texts: list[tuple[int, ...]] = [()]
        while True:
            rows = []
            for text in texts:
                logits = model(tuple(8 if token == 9 else token for token in text))
                logits[8] = logits[9] = 6.0
                rows.append(logits)
            parents = attempt.advance(np.stack(rows))
            if parents is None:
                return [reading.token_ids for reading in attempt.readings()]
            texts = [(*texts[parent], token) for parent, token in zip(parents, attempt.tokens, strict=True)]

    plain, distinct = readings(), readings(same=sound)
    assert len({sound(output) for output in plain}) < len(plain)
    assert len({sound(output) for output in distinct}) == len(distinct) >= 2


@given(st.integers(1, 3000), st.integers(1, 8), st.integers(0, 1000))
def test_the_best_tokens_are_those_of_a_whole_sort(vocab: int, count: int, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(size=vocab).astype(np.float32)
    logits[np.random.default_rng(seed).random(vocab) < 0.3] = -np.inf
    found = sorted(logits[best_tokens(logits, count)].tolist(), reverse=True)
    assert found == sorted(logits.tolist(), reverse=True)[:count]


def test_log_softmax_keeps_the_impossible_impossible() -> None:
    logits = np.array([1.0, -np.inf, 2.0], np.float32)
    found = log_softmax(logits)
    assert found[1] == -np.inf
    assert float(np.exp(found).sum()) == pytest.approx(1.0)
