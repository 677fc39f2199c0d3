"""Sentences of text that arrives piece by piece, and phrases of their words."""

from __future__ import annotations

import pytest
from aimass_speech.synthesis.phrasing import MAX_PHRASE_SYMBOLS, phrases_of
from aimass_speech.synthesis.reading import Word, joined
from aimass_speech.synthesis.sentences import MAX_SENTENCE_CHARS, SentenceCutter, sentences_of
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Hello there. How are you? Fine!", ["Hello there.", "How are you?", "Fine!"]),
        ("Dr. Smith paid 3.50 to J. K. Rowling.", ["Dr. Smith paid 3.50 to J. K. Rowling."]),
        ("It ended (really.) Then more.", ["It ended (really.)", "Then more."]),
        ("Wait... what? No.", ["Wait... what?", "No."]),
        ("A title\n\nA paragraph", ["A title", "A paragraph"]),
        ("你好。再见！", ["你好。", "再见！"]),  # noqa: RUF001 - full-width marks are the point
        ("   ", []),
    ],
)
def test_text_is_cut_where_sentences_end(text: str, sentences: list[str]) -> None:
    assert sentences_of(text) == sentences


def test_a_sentence_is_given_as_soon_as_a_space_follows_its_end() -> None:
    cutter = SentenceCutter()
    assert [cutter.feed(piece) for piece in ("Hel", "lo.", " How", " are")] == [[], [], ["Hello."], []]
    assert cutter.finish() == ["How are"]
    assert cutter.finish() == []


def test_a_sentence_without_an_end_is_cut_between_words() -> None:
    words = "word " * 600
    cut = sentences_of(words)
    assert [len(part) for part in cut[:-1]] == [MAX_SENTENCE_CHARS - 1] * (len(cut) - 1)
    assert " ".join(cut) == words.strip()
    assert [len(part) for part in sentences_of("x" * 2500)] == [1000, 1000, 500]


@given(st.lists(st.text(st.sampled_from("abA .!?\n\"'。…3")), max_size=12))
def test_no_character_is_lost_however_the_text_arrives(pieces: list[str]) -> None:
    cutter = SentenceCutter()
    sentences = [sentence for piece in pieces for sentence in cutter.feed(piece)] + cutter.finish()
    assert "".join("".join(sentences).split()) == "".join("".join(pieces).split())
    assert all(len(sentence) <= MAX_SENTENCE_CHARS for sentence in sentences)


WORDS = st.lists(
    st.builds(Word, st.just("w"), st.sampled_from(["a" * 5, "b" * 30, ",", ";", "c" * 90]), st.booleans()),
    max_size=60,
)


@given(WORDS, st.booleans())
def test_phrases_are_short_enough_and_hold_every_word(words: list[Word], is_first: bool) -> None:
    phrases = list(phrases_of(words, is_first=is_first))
    assert [word for phrase in phrases for word in phrase] == words
    assert all(len(joined(phrase)) <= MAX_PHRASE_SYMBOLS for phrase in phrases)


def test_a_long_first_sentence_begins_with_its_first_clause() -> None:
    words = [Word("w", "a" * 20), Word(",", ","), *[Word("w", "b" * 20)] * 8]
    assert len(next(phrases_of(words, is_first=True))) == 2
    assert len(next(phrases_of(words, is_first=False))) == len(words)
