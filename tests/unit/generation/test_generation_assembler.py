"""Tokens and text leave together: a token goes out when all its text does."""

from __future__ import annotations

from aimass_decoding.request import TokenLogprob
from aimass_generation.assembler import TextAssembler
from aimass_generation.detokenizer import ByteLevelDetokenizer
from aimass_generation.result import TextDelta
from aimass_generation.stopping import StopMatcher
from hypothesis import given
from hypothesis import strategies as st

TEXT = "naïve 東京 😀👍🏽 STOP no END é"


def assembler(*stop_strings: str, include: bool = False) -> TextAssembler:
    """Over a vocabulary of one token a byte."""
    detokenizer = ByteLevelDetokenizer(lambda token_id: bytes([token_id]) if token_id < 256 else b"")
    return TextAssembler(detokenizer, StopMatcher(stop_strings, include_stop_string=include))


def run(
    text: str | bytes, *stop_strings: str, include: bool = False
) -> tuple[list[TextDelta], TextAssembler]:
    made = assembler(*stop_strings, include=include)
    deltas = []
    for token_id in text.encode() if isinstance(text, str) else text:
        deltas.append(made.push([token_id]))
        if made.stop_string is not None:
            return deltas, made
    return [*deltas, made.finish()], made


def joined(deltas: list[TextDelta]) -> tuple[str, bytes]:
    return "".join(d.text for d in deltas), bytes(token_id for d in deltas for token_id in d.token_ids)


def test_tokens_of_a_character_wait_until_it_is_whole() -> None:
    deltas, _ = run("a😀")
    assert [(d.text, len(d.token_ids)) for d in deltas] == [
        ("a", 1),
        ("", 0),
        ("", 0),
        ("", 0),
        ("😀", 4),
        ("", 0),
    ]


def test_tokens_of_a_possible_stop_string_wait_with_its_text() -> None:
    deltas, _ = run("aSTx", "STOP")
    assert [(d.text, bytes(d.token_ids)) for d in deltas] == [
        ("a", b"a"),
        ("", b""),
        ("", b""),
        ("STx", b"STx"),
        ("", b""),
    ]


def test_tokens_of_the_stop_string_are_dropped_but_counted() -> None:
    deltas, made = run("a é STOP more", "STOP")
    assert joined(deltas) == ("a é ", "a é ".encode())
    assert made.stop_string == "STOP"
    assert made.num_tokens == len("a é STOP".encode())


def test_included_stop_string_keeps_its_tokens() -> None:
    deltas, made = run("ab STOP more", "STOP", include=True)
    assert joined(deltas) == ("ab STOP", b"ab STOP")
    assert made.num_tokens == len("ab STOP")


def test_tokens_after_the_stop_string_in_the_same_batch_are_ignored() -> None:
    made = assembler("END")
    delta = made.push(list(b"ok END and more"))
    assert (delta.text, bytes(delta.token_ids)) == ("ok ", b"ok ")
    assert made.num_tokens == len("ok END")
    assert made.push([65]) == TextDelta("")


def test_token_that_the_stop_string_cuts_in_two_is_given_out() -> None:
    tokens = [b"on", b"e ST", b"OP"]
    made = TextAssembler(ByteLevelDetokenizer(lambda token_id: tokens[token_id]), StopMatcher(["STOP"]))
    deltas = [made.push([token_id]) for token_id in range(3)]
    assert "".join(d.text for d in deltas) == "one "
    assert [d.token_ids for d in deltas] == [(0,), (), (1,)]


def test_stop_string_at_the_very_start_leaves_no_text_and_no_tokens() -> None:
    deltas, made = run("END", "END")
    assert joined(deltas) == ("", b"")
    assert made.num_tokens == 3


def test_tokens_without_text_go_out_in_order() -> None:
    made = assembler()
    assert made.push([300, 65, 301]) == TextDelta("A", (300, 65, 301))


def test_broken_bytes_at_the_end_go_out_as_a_replacement_character() -> None:
    deltas, made = run(b"a" + "😀".encode()[:2])
    assert "".join(d.text for d in deltas) == "a\ufffd"
    assert made.num_tokens == sum(len(d.token_ids) for d in deltas) == 3


def test_stop_string_that_only_the_end_completes_still_stops() -> None:
    deltas, made = run(b"a\xf0", "\ufffd")
    assert "".join(d.text for d in deltas) == "a"
    assert made.stop_string == "\ufffd"


def test_logprobs_stay_with_their_tokens() -> None:
    made = assembler("STOP")
    logprobs = [TokenLogprob(token_id, -1.0) for token_id in b"aST"]
    first = made.push(list(b"aST"), logprobs)
    assert [entry.token_id for entry in first.logprobs] == list(first.token_ids) == [97]
    last = made.finish()
    assert [entry.token_id for entry in last.logprobs] == list(last.token_ids) == list(b"ST")


@given(st.lists(st.integers(1, 7)), st.integers(0, len(TEXT)), st.sampled_from(["", "STOP", "京 😀", "é"]))
def test_tokens_and_text_agree_however_the_tokens_arrive(sizes: list[int], start: int, stop: str) -> None:
    raw = TEXT[start:].encode()
    made = assembler(*filter(None, [stop]))
    deltas, place = [], 0
    for size in [*sizes, len(raw)]:
        deltas.append(made.push(list(raw[place : place + size])))
        place += size
    if made.stop_string is None:
        deltas.append(made.finish())
    expected = TEXT[start:].partition(stop)[0] if stop else TEXT[start:]
    assert joined(deltas) == (expected, expected.encode())
    so_far = b""
    for delta in deltas:
        so_far += bytes(delta.token_ids)
        assert delta.text == "" or so_far.decode()
