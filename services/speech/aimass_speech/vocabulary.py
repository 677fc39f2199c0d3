"""A caller's phrases in a model's tokens: those to favour, and those to answer with. May be shared."""

from __future__ import annotations

from dataclasses import dataclass

from aimass_speech.hot_phrases import HotPhrases
from aimass_speech.phrase_match import spellings
from aimass_speech.phrase_tree import PhraseTree
from aimass_speech.recognition import RecognitionOptions
from aimass_speech.transcript_tokenizer import TranscriptTokenizer


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """What a call adds to the model's own words."""

    hot_phrases: HotPhrases | None = None
    phrases: PhraseTree | None = None

    @classmethod
    def of(cls, options: RecognitionOptions, tokenizer: TranscriptTokenizer) -> Vocabulary:
        """Tokenise the phrases of a request, each as it stands and behind a space."""
        hot_phrases = HotPhrases(
            (tokenizer.encode(before + hot.phrase.strip()), hot.boost)
            for hot in options.hot_phrases
            for before in (" ", "")
        )
        tree = PhraseTree(
            (number, tokenizer.encode(spelling))
            for number, phrase in enumerate(options.phrases)
            for spelling in spellings(phrase)
        )
        return cls(hot_phrases if options.hot_phrases else None, tree if options.phrases else None)
