"""Stop strings: which one wins, what is held back, and that no part of one ever leaks."""

from __future__ import annotations

import itertools

import pytest
from aimass_generation.stopping import StopMatcher
from hypothesis import example, given
from hypothesis import strategies as st

# Few characters, so that stop strings overlap with the text and with one another.
ALPHABET = "ab é你😀👍🏽\n"
texts = st.text(ALPHABET, max_size=40)
stops = st.lists(st.text(ALPHABET, min_size=1, max_size=5), min_size=1, max_size=5, unique=True)


def run(pieces: list[str], stop_strings: list[str], *, include: bool = False) -> tuple[list[str], str | None]:
    matcher = StopMatcher(stop_strings, include_stop_string=include)
    out = []
    for piece in pieces:
        scan = matcher.push(piece)
        out.append(scan.text)
        if scan.stop_string is not None:
            return out, scan.stop_string
    return [*out, matcher.flush()], None


def expected(text: str, stop_strings: list[str], *, include: bool = False) -> tuple[str, str | None]:
    """The rule, written naively: first to be complete, then longest."""
    for end in range(1, len(text) + 1):
        matches = [stop for stop in stop_strings if text[:end].endswith(stop)]
        if matches:
            stop = max(matches, key=len)
            return (text[:end] if include else text[: end - len(stop)]), stop
    return text, None


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@given(texts, stops, st.lists(st.integers(0, 100)), st.booleans())
@example("ab😀b", ["b😀", "ab😀b"], [1, 2, 3], False)
def test_stream_cut_anywhere_gives_the_text_of_the_rule(
    text: str, stop_strings: list[str], cuts: list[int], include: bool
) -> None:
    out, stop = run(pieces_of(text, cuts), stop_strings, include=include)
    assert ("".join(out), stop) == expected(text, stop_strings, include=include)


@given(texts, stops)
def test_released_text_is_never_taken_back(text: str, stop_strings: list[str]) -> None:
    final, _ = expected(text, stop_strings)
    released = ""
    matcher = StopMatcher(stop_strings)
    for char in text:
        scan = matcher.push(char)
        released += scan.text
        assert final.startswith(released)
        if scan.stop_string is not None:
            break


@given(texts, stops)
def test_only_a_possible_stop_string_is_held_back(text: str, stop_strings: list[str]) -> None:
    matcher = StopMatcher(stop_strings)
    scan = matcher.push(text)
    if scan.stop_string is None:
        held = matcher.flush()
        assert scan.text + held == text
        assert held == "" or any(stop.startswith(held) for stop in stop_strings)


@pytest.mark.parametrize("stop", ["😀", "東京", "END", "👩‍👩‍👧‍👦", "\n\n", "é"])
def test_stop_string_at_every_position_ends_the_text_before_it(stop: str) -> None:
    text = "Tōkyō は 東 と 京, smile 🙂 EN\tD e\u0301!"
    for place in range(len(text) + 1):
        whole = text[:place] + stop + text[place:]
        for include in (False, True):
            out, matched = run(list(whole), [stop], include=include)
            assert matched == stop
            assert "".join(out) == text[:place] + (stop if include else "")


def test_stop_string_that_is_complete_first_wins() -> None:
    assert run(["xabcd"], ["abcd", "bc"]) == (["xa"], "bc")


def test_longest_wins_among_stops_complete_at_once() -> None:
    assert run(["xabc"], ["c", "bc", "abc"]) == (["x"], "abc")


def test_start_of_a_stop_string_is_released_when_it_comes_to_nothing() -> None:
    assert run(["a", "ST", "O", "X"], ["STOP"]) == (["a", "", "", "STOX", ""], None)


def test_held_text_is_released_at_the_end() -> None:
    assert run(["a", "ST"], ["STOP"]) == (["a", "", "ST"], None)


def test_without_stop_strings_text_passes_at_once() -> None:
    assert run(["a", "b"], []) == (["a", "b", ""], None)


def test_worst_case_takes_one_look_a_character() -> None:
    """Sixteen stop strings that nearly match everywhere: the work is counted, not timed."""
    stop_strings = ["a" * (240 + n) + "b" for n in range(16)]
    matcher = StopMatcher(stop_strings)
    released = "".join(matcher.push("a" * 100).text for _ in range(100))
    assert len(released) == 100 * 100 - 255
    assert matcher.push("b").stop_string == stop_strings[-1]
