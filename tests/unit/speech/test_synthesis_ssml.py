"""SSML to a script: what is spoken, and by which byte a document is refused."""

from __future__ import annotations

from xml.sax.saxutils import escape

import pytest
from aimass_speech.synthesis.script import Mark, Pause, Phonemes, Spoken, Style
from aimass_speech.synthesis.ssml import InvalidSsml, parse_ssml
from hypothesis import given
from hypothesis import strategies as st

XML_TEXT = st.text(
    st.characters(min_codepoint=32, exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff")
)


def test_a_document_becomes_sentences_pauses_marks_and_phonemes() -> None:
    pieces = parse_ssml(
        '<speak>One. <break time="250ms"/>Two <mark name="here"/>'
        '<prosody rate="150%" volume="-6dB">three</prosody>'
        '<phoneme alphabet="ipa" ph="təmeto">tomato</phoneme> <sub alias="World Wide Web">WWW</sub>'
        "<p><s>In a paragraph</s></p></speak>"
    )
    assert pieces == [
        Spoken("One."),
        Pause(0.25),
        Spoken("Two"),
        Mark("here"),
        Spoken("three", Style(1.5, -6.0)),
        Phonemes("təmeto", "tomato"),
        Spoken("World Wide Web"),
        Spoken("In a paragraph"),
        Pause(0.2),
        Pause(0.5),
    ]


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("characters", "Ab1", "A, B, 1"),
        ("digits", "407", "four, zero, seven"),
        ("telephone", "+1 (555) 0", "one, five, five, five, zero"),
        ("cardinal", "12345", "12,345"),
        ("ordinal", "22", "22nd"),
        ("ordinal", "113", "113th"),
    ],
)
def test_a_text_is_said_as_it_is_asked_to_be(kind: str, text: str, said: str) -> None:
    assert parse_ssml(f'<speak><say-as interpret-as="{kind}">{text}</say-as></speak>') == [Spoken(said)]


@pytest.mark.parametrize(
    ("document", "offset", "problem"),
    [
        ("<speak>a", 8, "no element found"),
        ("<speak>é<b/></speak>", 9, "<b>"),  # bytes, not characters
        ("<speak>&never;</speak>", 7, "undefined entity"),
        ('<!DOCTYPE s [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><speak>&b;</speak>', None, "DOCTYPE"),
        ("hello", 0, "syntax error"),
        ("<p>a</p>", 0, "<speak> as the outermost"),
        ("<speak><speak/></speak>", 7, "<speak> as the outermost"),
        ('<speak><break time="11s"/></speak>', 7, "a time up to 10s"),
        ('<speak><break time="soon"/></speak>', 7, "a time up to 10s"),
        ("<speak><break>x</break></speak>", 15, "nothing in <break>"),
        ('<speak><prosody rate="900%">x</prosody></speak>', 7, "a rate from 25% to 400%"),
        ('<speak><prosody pitch="high">x</prosody></speak>', 7, "pitch"),
        ("<speak><mark/></speak>", 7, "the attribute name"),
        ('<speak><phoneme alphabet="x-sampa" ph="a">a</phoneme></speak>', 7, "the alphabet ipa"),
        ('<speak><say-as interpret-as="poem">x</say-as></speak>', 7, "interpret-as"),
        ('<speak><say-as interpret-as="ordinal">x</say-as></speak>', 39, "said as ordinal"),
        (f'<speak><phoneme ph="{"a" * 1001}">x</phoneme></speak>', 7, "at most 1000 characters"),
        ("<speak>" + "<p>" * 40 + "</p>" * 40 + "</speak>", 7 + 31 * 3, "at most 32 elements"),
    ],
)
def test_what_is_not_spoken_here_is_refused_by_its_byte(
    document: str, offset: int | None, problem: str
) -> None:
    with pytest.raises(InvalidSsml) as caught:
        parse_ssml(document)
    assert problem in str(caught.value)
    assert caught.value.violations[0].field == "ssml"
    if offset is not None:
        assert caught.value.offset == offset


@given(XML_TEXT)
def test_escaped_text_is_spoken_as_it_stands(text: str) -> None:
    pieces = parse_ssml(f"<speak>{escape(text)}</speak>")
    spoken = "".join(piece.text for piece in pieces if isinstance(piece, Spoken))
    assert "".join(spoken.split()) == "".join(text.split())


@given(st.text(alphabet=st.sampled_from("<>/&;\"' =abspekrmok\n")) | st.text())
def test_any_document_is_read_or_refused_by_a_byte_of_it(noise: str) -> None:
    document = f"<speak>{noise}</speak>".encode("utf-8", "replace").decode()
    try:
        parse_ssml(document)
        offset = 0
    except InvalidSsml as error:
        offset = error.offset
    assert 0 <= offset <= len(document.encode())
