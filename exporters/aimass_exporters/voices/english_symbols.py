"""How American phonemes are rewritten between the misaki lexicon, espeak's IPA and what people write."""

from __future__ import annotations

from aimass.model.v1.synthesis_spec_pb2 import SymbolReplacement

_MISAKI_TO_ESPEAK = (
    ("ɜɹ", "ɜː"),
    ("əɹ", "ɚ"),
    ("A", "eɪ"),
    ("I", "aɪ"),
    ("O", "oʊ"),
    ("Q", "əʊ"),
    ("W", "aʊ"),
    ("Y", "ɔɪ"),
    ("ʤ", "dʒ"),
    ("ʧ", "tʃ"),
    ("T", "ɾ"),
    ("ᵊ", "ə"),
    ("—", ","),
    ("…", "."),
)
_IPA_TO_MISAKI = (
    ("eɪ", "A"),
    ("aɪ", "I"),
    ("oʊ", "O"),
    ("əʊ", "Q"),
    ("aʊ", "W"),
    ("ɔɪ", "Y"),
    ("dʒ", "ʤ"),
    ("tʃ", "ʧ"),
    ("ɜː", "ɜɹ"),
    ("ɝ", "ɜɹ"),
    ("ɚ", "əɹ"),
    ("ɾ", "T"),
    ("ː", ""),
)
_BARE = (("g", "ɡ"), ("r", "ɹ"))
"""Letters that people write for IPA symbols which look like them."""


def misaki_to_espeak() -> list[SymbolReplacement]:
    """Return the rewriting for voices that were trained on espeak's phonemes."""
    return _messages(_MISAKI_TO_ESPEAK)


def ipa_to_misaki() -> list[SymbolReplacement]:
    """Return the rewriting of callers' IPA for voices that were trained on misaki's phonemes."""
    return _messages((*_IPA_TO_MISAKI, *_BARE))


def ipa_to_espeak() -> list[SymbolReplacement]:
    """Return the rewriting of callers' IPA for voices that were trained on espeak's phonemes."""
    return _messages(_BARE)


def _messages(pairs: tuple[tuple[str, str], ...]) -> list[SymbolReplacement]:
    return [SymbolReplacement(to_replace=before, replacement=after) for before, after in pairs]
