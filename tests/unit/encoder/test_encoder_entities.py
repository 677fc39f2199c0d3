"""Labels of tokens to entities: schemes of marks, and the edges of what people see as one character."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from aimass_encoder.characters import whole_characters
from aimass_encoder.entities import Aggregation, LabelSet, entities_of, split_mark
from aimass_encoder.label_path import best_path, path_scores
from aimass_encoder.tokenization import TokenSpans
from hypothesis import given
from hypothesis import strategies as st

ACCENT, JOINER = "\u0301", "\u200d"


def found(text: str, *tags: str, names: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """Return the labels and texts of entities when each word of `text` has the tag in its place."""
    labels = names or tuple(dict.fromkeys(tags))
    ends = [i + len(word) for word, i in words_of(text)]
    spans = TokenSpans(
        np.array([(i, end) for (_, i), end in zip(words_of(text), ends, strict=True)]),
        np.arange(len(tags)),
        np.zeros(len(tags), np.int64),
    )
    scores = np.full((len(tags), len(labels)), 0.01)
    best = np.array([labels.index(tag) for tag in tags])
    scores[np.arange(len(tags)), best] = 0.9
    entities = entities_of(scores, best, spans, LabelSet(labels), aggregation=Aggregation.SIMPLE, text=text)
    return [(e.label, text[e.start : e.end]) for e in entities]


def words_of(text: str) -> list[tuple[str, int]]:
    words, place = [], 0
    for word in text.split(" "):
        words.append((word, place))
        place += len(word) + 1
    return words


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (("B-per", "I-per", "O", "B-loc"), [("per", "a b"), ("loc", "d")]),
        (("B-per", "B-per", "I-per", "O"), [("per", "a"), ("per", "b c")]),
        (("I-per", "I-per", "I-loc", "O"), [("per", "a b"), ("loc", "c")]),
        (("B-per", "E-per", "I-per", "O"), [("per", "a b"), ("per", "c")]),
        (("S-per", "I-per", "S-per", "O"), [("per", "a"), ("per", "b"), ("per", "c")]),
        (("B-per", "L-per", "U-per", "O"), [("per", "a b"), ("per", "c")]),
        (("per", "per", "O", "loc"), [("per", "a b"), ("loc", "d")]),
        (("noun", "noun", "verb", "noun"), [("noun", "a"), ("noun", "b"), ("verb", "c"), ("noun", "d")]),
        (("B-n", "I-v", "I-n", "B-v"), [("n", "a b c"), ("v", "d")]),
    ],
    ids=[
        *["BIO", "two begin", "inside only", "BIOES", "alone", "BILOU", "no marks", "parts of speech"],
        "words cut by B and I alone",
    ],
)
def test_marks_of_place_decide_what_belongs_together(
    tags: tuple[str, ...], expected: list[tuple[str, str]]
) -> None:
    assert found("a b c d", *tags) == expected


def test_only_known_marks_are_cut_off_a_label() -> None:
    assert [split_mark(name) for name in ("B-geo-loc", "geo-loc", "O", "B-")] == [
        ("B", "geo-loc"),
        ("", "geo-loc"),
        ("", "O"),
        ("", "B-"),
    ]
    assert list(LabelSet(["O", "B-geo-loc", "I-geo-loc", "S-per"]).tags) == ["O", "geo-loc", "per"]


@pytest.mark.parametrize(
    ("text", "piece", "expected"),
    [
        ("Jose" + ACCENT + " saw", (0, 4), "Jose" + ACCENT),
        ("ne" + ACCENT + "e", (2, 4), "e" + ACCENT + "e"),
        ("\U0001f469" + JOINER + "\U0001f680!", (0, 1), "\U0001f469" + JOINER + "\U0001f680"),
        ("\U0001f44d\U0001f3fd ok", (0, 1), "\U0001f44d\U0001f3fd"),
        ("❤️ it", (0, 1), "❤️"),
        (" the ", (0, 5), "the"),
        ("東京都", (0, 2), "東京"),
    ],
)
def test_a_piece_ends_where_visible_characters_end(text: str, piece: tuple[int, int], expected: str) -> None:
    start, end = whole_characters(text, *piece)
    assert text[start:end] == expected


@given(
    text=st.text(
        st.sampled_from(["a", " ", "ß", "東", ACCENT, JOINER, "\U0001f469", "\U0001f3fd", "️", "\n"]),
        min_size=1,
        max_size=12,
    ),
    data=st.data(),
)
def test_moving_the_ends_loses_no_visible_character_and_takes_no_space(
    text: str, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    moved_start, moved_end = whole_characters(text, start, end)
    assert 0 <= moved_start <= moved_end <= len(text)
    if kept := text[start:end].strip():
        assert kept in text[moved_start:moved_end]
        assert whole_characters(text, moved_start, moved_end) == (moved_start, moved_end)


def test_blanks_that_a_model_labels_are_no_entity() -> None:
    names = ("B-x", "I-x")
    scores = np.full((4, 2), 0.5)
    spans = TokenSpans(np.array([(i, i + 1) for i in range(4)]), np.arange(4), np.zeros(4, np.int64))
    entities = entities_of(
        scores, np.zeros(4, np.int64), spans, LabelSet(names), aggregation=Aggregation.SIMPLE, text="a  b"
    )
    assert [(e.start, e.end) for e in entities] == [(0, 1), (3, 4)]


def test_words_take_the_label_that_the_strategy_says() -> None:
    labels = LabelSet(["O", "B-x", "B-y"])
    scores = np.array([[0.2, 0.7, 0.1], [0.05, 0.05, 0.9], [0.1, 0.2, 0.7]])
    spans = TokenSpans(np.array([(0, 2), (2, 4), (4, 5)]), np.zeros(3, np.int64), np.zeros(3, np.int64))

    def word(aggregation: Aggregation) -> tuple[str, float]:
        (entity,) = entities_of(
            scores, scores.argmax(1), spans, labels, aggregation=aggregation, text="micro"
        )
        assert (entity.start, entity.end) == (0, 5)
        return entity.label, round(entity.score, 6)

    assert word(Aggregation.FIRST) == ("x", 0.7)
    assert word(Aggregation.MAX) == ("y", 0.9)
    assert word(Aggregation.AVERAGE) == ("y", round(1.7 / 3, 6))


@given(st.integers(1, 5), st.integers(0, 10_000))
def test_paths_are_the_best_and_scores_the_shares_over_all_paths(num_tokens: int, seed: int) -> None:
    """The oracle counts every path."""
    rng = np.random.default_rng(seed)
    emissions = rng.normal(size=(num_tokens, 3)).astype(np.float32)
    transitions = rng.normal(size=(3, 3)).astype(np.float32)
    paths = list(itertools.product(range(3), repeat=num_tokens))
    totals = np.array(
        [
            sum(emissions[t, label] for t, label in enumerate(path))
            + sum(transitions[a, b] for a, b in itertools.pairwise(path))
            for path in paths
        ]
    )
    weights = np.exp(totals - totals.max())
    shares = np.zeros((num_tokens, 3))
    for path, weight in zip(paths, weights, strict=True):
        shares[np.arange(num_tokens), list(path)] += weight
    assert tuple(best_path(emissions, transitions).tolist()) == paths[int(totals.argmax())]
    np.testing.assert_allclose(path_scores(emissions, transitions), shares / weights.sum(), atol=1e-6)
