"""American English to phonemes, by the library that the voices were trained with."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from aimass_serving.session import Device, SessionConfig, open_session
from aimass_speech.synthesis.alphabet import Alphabet, phonemes_of
from aimass_speech.synthesis.english import EnglishReader, word_network
from aimass_speech.synthesis.phrasing import MAX_PHRASE_SYMBOLS
from aimass_speech.synthesis.reading import joined
from hibari import Hibari
from hypothesis import given, settings
from hypothesis import strategies as st

SYMBOLS: Mapping[str, int] = Hibari().vocab
CONFIG = SessionConfig(device=Device.CPU, num_threads=1)


@pytest.fixture(scope="module")
def reader() -> EnglishReader:
    return EnglishReader(Alphabet(SYMBOLS), word_network(lambda graph: open_session(graph, CONFIG)))


@pytest.mark.parametrize(
    "text",
    [
        "Dr. Smith paid $5.20 for 3 apples on 12/3/2024 at 7:30 pm.",
        "The record shows that they record it live; I live here, and I have read what you read.",
        "Zyxqvon met Kthulhu-Ra near 42nd St. in the 1990s.",
    ],
)
def test_sentences_are_read_as_the_library_reads_them(reader: EnglishReader, text: str) -> None:
    assert joined(reader.read(text, {}).words) == Hibari().phonemize(text)[0]


def test_words_keep_what_is_spoken_for_them(reader: EnglishReader) -> None:
    words = reader.read("Call 2 friends!", {}).words
    assert [word.text for word in words if word.is_spoken] == ["Call", "2", "friends"]
    assert [word.symbols for word in words if word.is_spoken] == ["kˈɔl", "tˈu", "fɹˈɛndz"]


def test_what_cannot_be_spoken_is_reported(reader: EnglishReader) -> None:
    reading = reader.read("Hello 世界 ☃ wörld 🎉, don't \ue001 stop", {})
    assert set(reading.unpronounceable) == {"世", "界", "☃", "🎉", "\ue001"}
    assert joined(reading.words).startswith("həlˈO")


def test_a_request_says_its_words_its_own_way(reader: EnglishReader) -> None:
    words = reader.read("Tomato, tomato's TOMATO!", {"tomato": "XYZ", "stop": "Q"}).words
    assert [word.symbols for word in words if "Y" in word.symbols] == ["Y", "Y", "Y"]  # X and Z are unknown
    plain = reader.read("say [tomato](/hˈɛlO/)", {}).words
    assert "hˈɛlO" not in joined(plain)  # text is no command to the library


@pytest.mark.parametrize("text", ["9" * 60, "1" + ",234" * 30, "1" * 5000, "$" + "9" * 400, "X" * 900])
def test_endless_numbers_and_words_are_read_in_parts(reader: EnglishReader, text: str) -> None:
    words = reader.read(text, {}).words
    assert len(words) > 1
    assert max(len(word.symbols) for word in words) < MAX_PHRASE_SYMBOLS


@given(st.text(st.characters(codec="utf-8") | st.sampled_from("0123456789$/.:,-' aZ°%"), max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_text_is_read_and_its_symbols_are_the_voices(reader: EnglishReader, text: str) -> None:
    assert all(symbol in SYMBOLS for symbol in joined(reader.read(text, {}).words))


def test_a_word_that_the_library_fails_on_is_reported_and_the_others_are_spoken(
    reader: EnglishReader,
) -> None:
    reading = reader.read("one \u00b9A two", {})
    assert [word.text for word in reading.words if word.is_spoken] == ["one", "two"]
    assert reading.unpronounceable == ["\u00b9", "A"]


def test_phonemes_keep_their_marks() -> None:
    symbols = "t\u0259\u02c8m\u0251\u02d0to"
    spans = [symbols[begin:end] for begin, end in phonemes_of(symbols)]
    assert spans == ["t", "\u0259", "\u02c8m", "\u0251\u02d0", "t", "o"]
