"""SSML 1.1, the part that is spoken here, to a script. Knows no voice.

Anything else is refused by its place in the document. There is no document type, so no entity can be
declared, and a document cannot grow while it is read. Source: W3C, Speech Synthesis Markup Language 1.1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from xml.parsers import expat

from aimass_serving.errors import InvalidField

from aimass_speech.synthesis.script import (
    MAX_RATE,
    MAX_VOLUME_DB,
    MIN_RATE,
    MIN_VOLUME_DB,
    Mark,
    Pause,
    Phonemes,
    Piece,
    Spoken,
    Style,
)
from aimass_speech.synthesis.sentences import MAX_SENTENCE_CHARS, sentences_of

MAX_PAUSE_S = 10.0
_MAX_DEPTH = 32
_PARAGRAPH_PAUSE, _SENTENCE_PAUSE = Pause(0.5), Pause(0.2)
_RATES = {"x-slow": 0.5, "slow": 0.75, "medium": 1.0, "default": 1.0, "fast": 1.25, "x-fast": 1.75}
_VOLUMES = {
    "silent": MIN_VOLUME_DB,
    "x-soft": -12.0,
    "soft": -6.0,
    "medium": 0.0,
    "default": 0.0,
    "loud": 6.0,
    "x-loud": 12.0,
}
_STRENGTHS = {"none": 0.0, "x-weak": 0.1, "weak": 0.2, "medium": 0.4, "strong": 0.7, "x-strong": 1.0}
_TIME = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)(ms|s)")
_PERCENTAGE = re.compile(r"([+-]?)(\d{1,4}(?:\.\d{1,4})?)%")
_DECIBELS = re.compile(r"([+-]?\d{1,3}(?:\.\d{1,3})?)dB")
_DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_ORDINAL_ENDS = {1: "st", 2: "nd", 3: "rd"}


class InvalidSsml(InvalidField):
    """The document is not well-formed, or holds what is not spoken here."""

    def __init__(self, field: str, *, offset: int, expected: str, got: object) -> None:
        super().__init__(field, expected=f"{expected} at byte {offset}", got=got)
        self.offset = offset


@dataclass(frozen=True, slots=True)
class _Open:
    """An element that has not ended."""

    name: str
    style: Style
    says: Callable[[str], Piece | None] | None = None
    """What becomes of its text; None cuts it into sentences."""


def parse_ssml(document: str, *, field: str = "ssml") -> list[Piece]:
    """Return the script of a document. Raises `InvalidSsml`, which names the byte of its UTF-8 form."""
    return _Parser(field).parse(document.encode())


class _Parser:
    """Reads one document."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._pieces: list[Piece] = []
        self._open: list[_Open] = []
        self._text: list[str] = []
        self._expat = expat.ParserCreate("utf-8")
        self._expat.buffer_text = True
        self._expat.StartElementHandler = self._start
        self._expat.EndElementHandler = self._end
        self._expat.CharacterDataHandler = self._text.append
        self._expat.StartDoctypeDeclHandler = self._refuse_doctype
        self._starts: Mapping[str, Callable[[dict[str, str]], _Open]] = {
            "speak": self._speak,
            "p": lambda attributes: self._plain("p", attributes),
            "s": lambda attributes: self._plain("s", attributes),
            "prosody": self._prosody,
            "phoneme": self._phoneme,
            "sub": self._sub,
            "say-as": self._say_as,
            "break": self._break,
            "mark": self._mark,
        }

    def parse(self, document: bytes) -> list[Piece]:
        try:
            self._expat.Parse(document, True)
        except expat.ExpatError as error:
            reason = expat.ErrorString(error.code)
            raise self._invalid("well-formed XML", reason, offset=self._expat.ErrorByteIndex) from error
        return self._pieces

    # Events.

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._flush()
        if name not in self._starts:
            raise self._invalid(f"one of the elements {', '.join(self._starts)}", f"<{name}>")
        if bool(self._open) == (name == "speak"):
            raise self._invalid("<speak> as the outermost element, once", f"<{name}>")
        if self._open and (self._open[-1].says or self._open[-1].name in ("break", "mark")):
            raise self._invalid(f"text in <{self._open[-1].name}>", f"<{name}>")
        if len(self._open) == _MAX_DEPTH:
            raise self._invalid(f"at most {_MAX_DEPTH} elements in one another", "more")
        self._open.append(self._starts[name](attributes))

    def _end(self, name: str) -> None:
        self._flush()
        self._open.pop()
        if name == "p":
            self._pieces.append(_PARAGRAPH_PAUSE)
        elif name == "s":
            self._pieces.append(_SENTENCE_PAUSE)

    def _refuse_doctype(self, *_: object) -> None:
        raise self._invalid("no document type", "<!DOCTYPE>")

    def _flush(self) -> None:
        """Make pieces of the text since the last tag."""
        text, element = "".join(self._text), self._open[-1] if self._open else None
        self._text.clear()
        if element is None or not text.strip():
            return
        if element.name in ("break", "mark"):
            raise self._invalid(f"nothing in <{element.name}>", text)
        if element.says is None:
            self._pieces += [Spoken(sentence, element.style) for sentence in sentences_of(text)]
        elif piece := element.says(text):
            self._pieces.append(piece)

    # Elements.

    def _style(self) -> Style:
        return self._open[-1].style if self._open else Style()

    def _speak(self, attributes: dict[str, str]) -> _Open:
        allowed = ("version", "xml:lang", "xmlns", "xmlns:xsi", "xsi:schemaLocation")
        self._only(attributes, *allowed)
        return _Open("speak", Style())

    def _plain(self, name: str, attributes: dict[str, str]) -> _Open:
        self._only(attributes, "xml:lang")
        return _Open(name, self._style())

    def _prosody(self, attributes: dict[str, str]) -> _Open:
        self._only(attributes, "rate", "volume")
        style = self._style()
        if "rate" in attributes:
            style = replace(style, rate=self._rate(attributes["rate"], style.rate))
        if "volume" in attributes:
            style = replace(style, volume_db=self._volume(attributes["volume"], style.volume_db))
        return _Open("prosody", style)

    def _rate(self, text: str, before: float) -> float:
        rate = _RATES.get(text)
        if rate is None and (match := _PERCENTAGE.fullmatch(text)):
            number = float(match[2]) / 100
            rate = number if not match[1] else 1 + float(f"{match[1]}{number}")
        if rate is None or not MIN_RATE <= before * rate <= MAX_RATE:
            expected = f"a rate from {MIN_RATE:.0%} to {MAX_RATE:.0%}, or one of {', '.join(_RATES)}"
            raise self._invalid(expected, text)
        return before * rate

    def _volume(self, text: str, before: float) -> float:
        volume = _VOLUMES.get(text)
        if volume is None and (match := _DECIBELS.fullmatch(text)):
            volume = before + float(match[1])
        if volume is None or not MIN_VOLUME_DB <= volume <= MAX_VOLUME_DB:
            span = f"{MIN_VOLUME_DB:g}dB to {MAX_VOLUME_DB:g}dB"
            expected = f"a volume from {span}, or one of {', '.join(_VOLUMES)}"
            raise self._invalid(expected, text)
        return volume

    def _phoneme(self, attributes: dict[str, str]) -> _Open:
        self._only(attributes, "alphabet", "ph")
        if attributes.get("alphabet", "ipa") != "ipa":
            raise self._invalid("the alphabet ipa", attributes["alphabet"])
        ipa, style = self._needed(attributes, "phoneme", "ph"), self._style()
        return _Open("phoneme", style, lambda text: Phonemes(ipa, text.strip(), style))

    def _sub(self, attributes: dict[str, str]) -> _Open:
        self._only(attributes, "alias")
        alias, style = self._needed(attributes, "sub", "alias"), self._style()
        return _Open("sub", style, lambda _: Spoken(alias, style))

    def _say_as(self, attributes: dict[str, str]) -> _Open:
        self._only(attributes, "interpret-as", "format", "detail")
        kind, style = self._needed(attributes, "say-as", "interpret-as"), self._style()
        if kind not in _SAYINGS:
            raise self._invalid(f"interpret-as as one of {', '.join(_SAYINGS)}", kind)

        def say(text: str) -> Piece:
            said = _SAYINGS[kind](self._short(text.strip()))
            if said is None:
                raise self._invalid(f"a text that can be said as {kind}", text)
            return Spoken(said, style)

        return _Open("say-as", style, say)

    def _break(self, attributes: dict[str, str]) -> _Open:
        self._only(attributes, "time", "strength")
        seconds = self._strength(attributes.get("strength", "medium"))
        if "time" in attributes:
            seconds = self._seconds(attributes["time"])
        self._pieces.append(Pause(seconds))
        return _Open("break", self._style())

    def _strength(self, text: str) -> float:
        if text not in _STRENGTHS:
            raise self._invalid(f"a strength as one of {', '.join(_STRENGTHS)}", text)
        return _STRENGTHS[text]

    def _seconds(self, text: str) -> float:
        match = _TIME.fullmatch(text)
        seconds = float(match[1]) / (1000 if match[2] == "ms" else 1) if match else None
        if seconds is None or seconds > MAX_PAUSE_S:
            raise self._invalid(f"a time up to {MAX_PAUSE_S:g}s, such as 500ms", text)
        return seconds

    def _mark(self, attributes: dict[str, str]) -> _Open:
        self._only(attributes, "name")
        self._pieces.append(Mark(self._needed(attributes, "mark", "name")))
        return _Open("mark", self._style())

    # Refusals.

    def _only(self, attributes: dict[str, str], *names: str) -> None:
        if wrong := [name for name in attributes if name not in names]:
            raise self._invalid(f"no attributes but {', '.join(names)}", wrong[0])

    def _needed(self, attributes: dict[str, str], element: str, name: str) -> str:
        if not (value := attributes.get(name, "").strip()):
            raise self._invalid(f"<{element}> with the attribute {name}", "none")
        return self._short(value)

    def _short(self, text: str) -> str:
        if len(text) > MAX_SENTENCE_CHARS:
            expected = f"at most {MAX_SENTENCE_CHARS} characters that are spoken at once"
            raise self._invalid(expected, f"{len(text)} characters")
        return text

    def _invalid(self, expected: str, got: object, *, offset: int | None = None) -> InvalidSsml:
        place = self._expat.CurrentByteIndex if offset is None else offset
        return InvalidSsml(self._field, offset=max(0, place), expected=expected, got=got)


def _digits(text: str) -> str | None:
    plain = [character for character in text if character not in "+-()./ "]
    if not plain or not all(character.isascii() and character.isdigit() for character in plain):
        return None
    return ", ".join(_DIGIT_NAMES[int(character)] for character in plain)


def _characters(text: str) -> str | None:
    plain = [character for character in text if not character.isspace()]
    return ", ".join(c.upper() if c.isascii() else c for c in plain) or None


def _whole(text: str) -> int | None:
    plain = text.replace(",", "").replace(" ", "")
    return int(plain) if re.fullmatch(r"-?[0-9]{1,30}", plain) else None


def _cardinal(text: str) -> str | None:
    number = _whole(text)
    return None if number is None else f"{number:,}"


def _ordinal(text: str) -> str | None:
    number = _whole(re.sub(r"(?:st|nd|rd|th)$", "", text))
    if number is None or number < 0:
        return None
    end = "th" if number % 100 in (11, 12, 13) else _ORDINAL_ENDS.get(number % 10, "th")
    return f"{number}{end}"


_SAYINGS: Mapping[str, Callable[[str], str | None]] = {
    "characters": _characters,
    "spell-out": _characters,
    "digits": _digits,
    "telephone": _digits,
    "cardinal": _cardinal,
    "number": _cardinal,
    "ordinal": _ordinal,
}
