"""Phrases mode and keywords: exact scores, shares, and each occurrence told once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from aimass_serving.errors import InvalidField
from aimass_speech.agreement import Interim
from aimass_speech.keyword_spotter import Keyword, KeywordSpotter, check_keywords
from aimass_speech.live_recognizer import FinalRead, InterimRead
from aimass_speech.phrase_match import matched, spellings
from aimass_speech.phrase_search import MARGIN, PhraseAttempt, PhraseSearch
from aimass_speech.phrase_tree import PhraseTree
from aimass_speech.recognition import PhaseTimes, RecognitionOptions, Segment, Transcript, Word
from aimass_speech.spoken_form import spoken_form
from aimass_speech.token_rules import log_softmax
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

VOCAB, END = 7, 6

spelled = st.lists(
    st.tuples(st.integers(0, 4), st.lists(st.integers(0, END - 1), min_size=1, max_size=4)),
    min_size=1,
    max_size=12,
)


class TableModel:
    """Logits that depend on the whole text so far, the same each time it is asked."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def logits(self, text: Sequence[int]) -> NDArray[np.float32]:
        rng = np.random.default_rng([self._seed, len(text), *text])
        return rng.normal(scale=2.0, size=VOCAB).astype(np.float32)

    def logprob(self, text: Sequence[int]) -> float:
        """Return the log-probability of a text and its end."""
        whole = [*text, END]
        return sum(float(log_softmax(self.logits(whole[:i]))[t]) for i, t in enumerate(whole))


def searched(tree: PhraseTree, model: TableModel, *, width: int, heard: float) -> dict[int, float]:
    """Run a search as the decoder does: one beginning after the other, each as far as it goes."""
    search = PhraseSearch(tree, end_of_text=END, heard_logprob=heard)
    while (beginning := search.next_beginning()) is not None:
        attempt = PhraseAttempt(search, beginning, width=width)
        texts: list[tuple[int, ...]] = [beginning.token_ids]
        while True:
            parents = attempt.advance(np.stack([model.logits(text) for text in texts]))
            if parents is None:
                break
            texts = [(*texts[parent], token) for parent, token in zip(parents, attempt.tokens, strict=True)]
            assert attempt.num_tokens == len(texts[0])
    return search.logprobs


@given(spelled, st.integers(0, 20), st.integers(1, 3))
def test_scores_are_those_of_every_spelling_summed(
    phrases: list[tuple[int, list[int]]], seed: int, width: int
) -> None:
    model = TableModel(seed)
    exact: dict[int, float] = {}
    for number, text in {(number, tuple(text)) for number, text in phrases}:
        exact[number] = float(np.logaddexp(exact.get(number, -np.inf), model.logprob(text)))
    found = searched(PhraseTree(phrases), model, width=width, heard=-np.inf)
    best = max(exact.values())
    assert max(found.values()) == pytest.approx(best, abs=1e-4)
    left_out = len(phrases) * float(np.exp(best - MARGIN))  # a spelling that is less probable is not followed
    for number, logprob in exact.items():
        score = float(np.exp(found.get(number, -np.inf)))
        assert score == pytest.approx(float(np.exp(logprob)), rel=1e-3, abs=left_out)


def test_phrases_far_below_what_was_heard_are_not_followed() -> None:
    """Else a list that does not fit would cost a step for every token of it."""
    tree = PhraseTree(enumerate(itertools.product(range(5), repeat=4)))
    assert searched(tree, TableModel(1), width=2, heard=100.0) == {}


def test_the_share_decides_and_what_was_heard_besides_takes_its_part() -> None:
    phrases = ["Open the door", "stop"]
    logprobs = {0: math.log(0.3), 1: math.log(0.1)}

    def answer(heard: str, threshold: float) -> str | None:
        found = matched(phrases, logprobs, heard=heard, heard_logprob=math.log(0.6), threshold=threshold)
        return found.phrase

    assert answer("open a door", 0.31) is None
    assert answer("open a door", 0.29) == "Open the door"
    assert answer("Open the door!", 0.74) == "Open the door"
    assert matched(phrases, {}, heard="so", heard_logprob=-1.0, threshold=0.0).phrase is None


def test_a_phrase_is_spelled_as_a_recogniser_may_write_it() -> None:
    assert {" open it", " Open it", " open it.", " Open it?", " Open it!"} <= set(spellings("open  it."))
    assert spoken_form("  Open-it, NOW! Don't.") == "open it now don't"


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"phrases": ["stop", "Stop!"]}, "phrases[1]"),
        ({"phrases": ["..."]}, "phrases[0]"),
        ({"phrases": ["stop"], "has_words": True}, "word_times"),
        ({"phrases": ["stop"], "is_translation": True}, "task"),
        ({"phrases": ["stop"], "phrase_threshold": 1.5}, "phrase_threshold"),
        ({"phrases": [f"word {i}" for i in range(1001)]}, "phrases"),
        ({"best_of": 9}, "best_of"),
    ],
)
def test_phrases_that_cannot_be_answered_are_refused_by_name(settings: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        RecognitionOptions(**settings)  # type: ignore[arg-type]  # wrong on purpose
    assert str(caught.value).startswith(f"options.{field}: expected")


def transcript(text: str, *, confidence: float = 0.9) -> Transcript:
    """A word every half second."""
    words = [Word(f" {word}", 8000 * i, 8000 * i + 6000, confidence) for i, word in enumerate(text.split())]
    segment = Segment(0, 8000 * len(words), text, -0.1, 0.0, 0.0, words)
    return Transcript([segment], "en", 1.0, 0, PhaseTimes())


def interim(text: str) -> InterimRead:
    return InterimRead(0, Interim("", text), 16_000, transcript(text))


def final(text: str, **settings: float) -> FinalRead:
    return FinalRead(0, 16_000, 160_000, transcript(text, **settings), 1.0)


def test_a_keyword_is_told_once_as_soon_as_two_readings_hold_it() -> None:
    spotter = KeywordSpotter([Keyword("Hello, world"), Keyword("stop")])
    assert spotter.take(interim("hello")) == []
    assert spotter.take(interim("Hello, world")) == []
    (found,) = spotter.take(interim("Hello world. and"))
    assert (found.phrase, found.start, found.end) == ("Hello, world", 16_000, 30_000)
    assert found.score == pytest.approx(0.9)
    assert spotter.take(interim("hello world and stop")) == []
    assert [one.phrase for one in spotter.take(final("hello world and stop"))] == ["stop"]
    assert [one.start for one in spotter.take(final("stop then stop"))] == [16_000, 32_000]


def test_a_keyword_below_its_threshold_or_inside_another_word_is_not_told() -> None:
    spotter = KeywordSpotter([Keyword("stop", threshold=0.8)])
    assert spotter.take(final("stop", confidence=0.7)) == []
    assert spotter.take(final("stopping unstop")) == []
    assert len(spotter.take(final("please stop!"))) == 1


def test_keywords_that_cannot_be_told_apart_are_refused_by_name() -> None:
    with pytest.raises(InvalidField, match=r"config\.keywords\[1\]\.phrase"):
        check_keywords([Keyword("stop"), Keyword("Stop.", field="config.keywords[1]")])
    with pytest.raises(InvalidField, match=r"config\.keywords: expected 1 to 100"):
        check_keywords([])
    with pytest.raises(InvalidField, match=r"threshold: expected 0 to 1"):
        Keyword("stop", threshold=2.0)
