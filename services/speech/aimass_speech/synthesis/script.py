"""What is to be spoken, piece by piece, whatever it was written as. Knows no voice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aimass_serving.errors import InvalidField

MAX_TEXT_CHARS = 50_000
MIN_RATE, MAX_RATE = 0.25, 4.0
MIN_VOLUME_DB, MAX_VOLUME_DB = -96.0, 16.0
MIN_SAMPLE_RATE_HZ, MAX_SAMPLE_RATE_HZ = 8_000, 48_000
MAX_PRONUNCIATIONS = 200
_MAX_WORD_CHARS, _MAX_IPA_CHARS = 100, 200


@dataclass(frozen=True, slots=True)
class Style:
    """How a piece is spoken."""

    rate: float = 1.0
    volume_db: float = 0.0


@dataclass(frozen=True, slots=True)
class Spoken:
    """Text: a sentence, or a part of one."""

    text: str
    style: Style = Style()


@dataclass(frozen=True, slots=True)
class Phonemes:
    """IPA, with the text it stands for; without one it is its own."""

    ipa: str
    text: str = ""
    style: Style = Style()


@dataclass(frozen=True, slots=True)
class Pause:
    """Silence."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Mark:
    """A place whose time the caller wants to know."""

    name: str


Piece = Spoken | Phonemes | Pause | Mark
Script = Sequence[Piece]


@dataclass(frozen=True, slots=True)
class SynthesisOptions:
    """How a request is spoken. Construction checks the ranges."""

    rate: float = 1.0
    volume_db: float = 0.0
    sample_rate_hz: int = 0
    """Samples a second; 0 takes the voice's own."""
    seed: int | None = None
    """None lets the server choose."""
    pronunciations: Mapping[str, str] = field(default_factory=dict)
    """IPA of words in lower case."""
    has_words: bool = False
    has_phonemes: bool = False
    field_name: str = "options"
    """How the wire names it, for error messages."""

    def __post_init__(self) -> None:
        """Refuse values outside their range, naming the field as the wire names it."""
        self._check("rate", MIN_RATE <= self.rate <= MAX_RATE, f"{MIN_RATE:g} to {MAX_RATE:g}", self.rate)
        is_loud_enough = MIN_VOLUME_DB <= self.volume_db <= MAX_VOLUME_DB
        self._check("volume_db", is_loud_enough, f"{MIN_VOLUME_DB:g} to {MAX_VOLUME_DB:g}", self.volume_db)
        is_known = not self.sample_rate_hz or MIN_SAMPLE_RATE_HZ <= self.sample_rate_hz <= MAX_SAMPLE_RATE_HZ
        expected = f"{MIN_SAMPLE_RATE_HZ} to {MAX_SAMPLE_RATE_HZ}"
        self._check("sample_rate_hz", is_known, expected, self.sample_rate_hz)
        self._check_pronunciations()

    def _check_pronunciations(self) -> None:
        number = len(self.pronunciations)
        expected = f"at most {MAX_PRONUNCIATIONS}"
        self._check("pronunciations", number <= MAX_PRONUNCIATIONS, expected, number)
        for place, (word, ipa) in enumerate(self.pronunciations.items()):
            is_word = 0 < len(word) <= _MAX_WORD_CHARS and not any(c.isspace() for c in word)
            expected = f"1 to {_MAX_WORD_CHARS} characters without spaces"
            self._check(f"pronunciations[{place}].word", is_word, expected, word)
            is_ipa = len(ipa.strip()) > 0 and len(ipa) <= _MAX_IPA_CHARS
            self._check(f"pronunciations[{place}].ipa", is_ipa, f"1 to {_MAX_IPA_CHARS} characters", ipa)

    def _check(self, name: str, is_right: bool, expected: str, got: object) -> None:
        if not is_right:
            raise InvalidField(f"{self.field_name}.{name}", expected=expected, got=got)


def checked_text(text: str, *, field: str) -> str:
    """Return a text that is not empty and not too long. Raises `InvalidField`."""
    if len(text) > MAX_TEXT_CHARS:
        raise InvalidField(
            field, expected=f"at most {MAX_TEXT_CHARS} characters", got=f"{len(text)} characters"
        )
    if not text.strip():
        raise InvalidField(field, expected="a text that is not empty", got=text)
    return text
