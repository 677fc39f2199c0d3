"""What a caller asks of recognition and what comes back, in the recogniser's own words.

Construction is validation. Times are samples at 16 kHz from the start of the audio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aimass_serving.errors import InvalidField

from aimass_speech.phrase_match import PhraseMatch
from aimass_speech.spoken_form import spoken_form

MAX_BEAMS, MAX_HOT_PHRASES, MAX_PHRASES, MAX_PHRASE_CHARS, MAX_PROMPT_CHARS = 8, 500, 1000, 100, 1000
MAX_BOOST = 20.0
MAX_DRAWS = 8


@dataclass(frozen=True, slots=True)
class HotPhrase:
    """A phrase the search favours."""

    phrase: str
    boost: float = 2.0


@dataclass(frozen=True, slots=True)
class RecognitionOptions:
    """How to recognise."""

    language: str = ""
    """Empty lets the model find out."""
    is_translation: bool = False
    num_beams: int = 1
    has_words: bool = False
    num_alternatives: int = 1
    """Transcripts of each segment, the first included."""
    hot_phrases: Sequence[HotPhrase] = ()
    phrases: Sequence[str] = ()
    """Answer one of these, or none."""
    phrase_threshold: float = 0.2
    best_of: int | None = None
    """Outputs drawn at each temperature above 0; None leaves it to the kind of call."""
    initial_prompt: str = ""
    skips_silence: bool | None = None
    """Whether what is not speech is left out before recognition; None does so where a detector is served."""
    field: str = "options"
    """How the wire names it, for error messages."""

    def __post_init__(self) -> None:
        """Refuse values outside their range, naming the field as the wire names it."""
        self._require(1 <= self.num_beams <= MAX_BEAMS, "beam_size", f"1 to {MAX_BEAMS}", self.num_beams)
        self._require(
            1 <= self.num_alternatives <= self.num_beams,
            "max_alternatives",
            f"1 to the number of beams ({self.num_beams})",
            self.num_alternatives,
        )
        self._require(
            len(self.initial_prompt) <= MAX_PROMPT_CHARS,
            "initial_prompt",
            f"at most {MAX_PROMPT_CHARS} characters",
            len(self.initial_prompt),
        )
        self._require(0 <= self.phrase_threshold <= 1, "phrase_threshold", "0 to 1", self.phrase_threshold)
        if self.best_of is not None:
            self._require(1 <= self.best_of <= MAX_DRAWS, "best_of", f"1 to {MAX_DRAWS}", self.best_of)
        self._check_phrases()
        if self.phrases:
            self._check_phrases_mode()

    def _check_phrases(self) -> None:
        counts = (("hot_phrases", self.hot_phrases, MAX_HOT_PHRASES), ("phrases", self.phrases, MAX_PHRASES))
        for name, given, limit in counts:
            self._require(len(given) <= limit, name, f"at most {limit} phrases", len(given))
        texts = [
            *((f"hot_phrases[{i}].phrase", hot.phrase) for i, hot in enumerate(self.hot_phrases)),
            *((f"phrases[{i}]", phrase) for i, phrase in enumerate(self.phrases)),
        ]
        for name, text in texts:
            self._require(
                bool(text.strip()) and len(text) <= MAX_PHRASE_CHARS,
                name,
                f"1 to {MAX_PHRASE_CHARS} characters",
                text,
            )
        for index, hot in enumerate(self.hot_phrases):
            self._require(
                -MAX_BOOST <= hot.boost <= MAX_BOOST,
                f"hot_phrases[{index}].boost",
                f"-{MAX_BOOST:g} to {MAX_BOOST:g}",
                hot.boost,
            )

    def _check_phrases_mode(self) -> None:
        """Refuse what has no meaning where one of a list is answered, and phrases that sound the same."""
        for name, is_given in (
            ("hot_phrases", bool(self.hot_phrases)),
            ("initial_prompt", bool(self.initial_prompt)),
            ("word_times", self.has_words),
            ("max_alternatives", self.num_alternatives > 1),
            ("task", self.is_translation),
        ):
            self._require(not is_given, name, "the default together with phrases", "another value")
        seen: set[str] = set()
        for index, phrase in enumerate(self.phrases):
            form, name = spoken_form(phrase), f"phrases[{index}]"
            self._require(bool(form), name, "a letter or a digit", phrase)
            self._require(form not in seen, name, "phrases that differ in words", phrase)
            seen.add(form)

    def _require(self, condition: bool, name: str, expected: str, got: object) -> None:
        if not condition:
            raise InvalidField(f"{self.field}.{name}", expected=expected, got=got)


@dataclass(frozen=True, slots=True)
class Word:
    """One word and when it was said."""

    text: str
    start: int
    end: int
    confidence: float


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another reading of a segment."""

    text: str
    avg_logprob: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech and its text."""

    start: int
    end: int
    text: str
    avg_logprob: float
    no_speech: float
    temperature: float
    words: Sequence[Word] = ()
    alternatives: Sequence[Alternative] = ()


@dataclass(frozen=True, slots=True)
class PhaseTimes:
    """Milliseconds of wall time, summed over windows where several were in work."""

    queue_ms: float = 0.0
    encode_ms: float = 0.0
    decode_ms: float = 0.0

    def __add__(self, other: PhaseTimes) -> PhaseTimes:
        return PhaseTimes(
            self.queue_ms + other.queue_ms,
            self.encode_ms + other.encode_ms,
            self.decode_ms + other.decode_ms,
        )


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said in a recording."""

    segments: Sequence[Segment]
    language: str
    language_probability: float
    num_speech_samples: int
    times: PhaseTimes
    match: PhraseMatch | None = None
    """The answer of phrases mode."""
    token_ids: tuple[int, ...] = ()
    """Of the first window, times included: a draft for another reading of the same speech."""

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(segment.text for segment in self.segments).strip()
