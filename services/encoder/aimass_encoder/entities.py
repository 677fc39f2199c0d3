"""Scores of tokens to entities of a text. Pure; knows no model and no request.

Labels may carry a mark of place: B- (begins), I- (inside), E- or L- (ends), S- or U- (alone); O is none. The
rules of grouping are those of transformers' token-classification pipeline for B- and I-. Two kinds of labels
are without O. Those without marks label every word, such as parts of speech: words are then never put
together. Those with a mark each cut a text into words: I- then says that no word begins here, whatever its
own tag, and the word has the tag that it began with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from aimass_encoder.characters import whole_characters
from aimass_encoder.tokenization import TokenSpans

OUTSIDE = "O"
_BEGINS, _CONTINUES, _ENDS, _ALONE = frozenset("B"), frozenset("I"), frozenset("EL"), frozenset("SU")
_MARKS = _BEGINS | _CONTINUES | _ENDS | _ALONE


class Aggregation(StrEnum):
    """How labels of tokens become entities."""

    NONE = "none"
    """Each token by itself, with its label as the model writes it."""
    SIMPLE = "simple"
    """Neighbouring tokens that agree."""
    FIRST = "first"
    """Words that agree; a word has the label of its first token."""
    AVERAGE = "average"
    """The same, with the best mean score."""
    MAX = "max"
    """The same, with the token of the highest score."""


@dataclass(frozen=True, slots=True)
class Entity:
    """A labelled piece of a text."""

    label: str
    score: float
    """Mean over what was put together."""
    start: int
    """First character, in Unicode code points of the text."""
    end: int
    """Character after the last one."""


@dataclass(frozen=True)
class LabelSet:
    """The labels of a model, in the order of its logits."""

    names: Sequence[str]

    @cached_property
    def marked(self) -> Sequence[tuple[str, str]]:
        """Each label's mark of place and tag, in the same order."""
        return [split_mark(name) for name in self.names]

    @cached_property
    def tags(self) -> Sequence[str]:
        """What entities are called: the labels without marks, each once."""
        return list(dict.fromkeys(tag for _, tag in self.marked))

    @cached_property
    def labels_words(self) -> bool:
        """Whether every word has a label of its own, as with parts of speech."""
        return OUTSIDE not in self.names and not any(mark for mark, _ in self.marked)

    @cached_property
    def cuts_words(self) -> bool:
        """Whether labels say where words begin, and every token belongs to one."""
        return all(mark for mark, _ in self.marked)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A token or a word with its label."""

    label: int
    score: float
    start: int
    end: int
    word: int


def split_mark(label: str) -> tuple[str, str]:
    """Return the mark of place, empty where there is none, and the rest."""
    mark, dash, tag = label.partition("-")
    return (mark, tag) if dash and mark in _MARKS and tag else ("", label)


def entities_of(
    scores: NDArray[np.float64],
    best: NDArray[np.int64],
    spans: TokenSpans,
    labels: LabelSet,
    *,
    aggregation: Aggregation,
    text: str,
) -> list[Entity]:
    """Return the entities of a text, in its order.

    `scores` is [tokens, labels], `best` [tokens] the label of each token; `spans` are the same tokens', which
    are none of the special ones.
    """
    if aggregation in (Aggregation.NONE, Aggregation.SIMPLE):
        pieces = _tokens(scores, best, spans)
    else:
        pieces = _words(scores, spans, aggregation)
    if aggregation is Aggregation.NONE:
        found = [Entity(labels.names[p.label], p.score, p.start, p.end) for p in pieces]
    else:
        found = [_entity(group, labels) for group in _groups(pieces, labels)]
    return list(_apart(_on_characters(entity, text) for entity in found if entity.label != OUTSIDE))


def _on_characters(entity: Entity, text: str) -> Entity:
    start, end = whole_characters(text, entity.start, entity.end)
    return replace(entity, start=start, end=end)


def _apart(entities: Iterable[Entity]) -> Iterator[Entity]:
    """Leave a visible character that two entities share to the first; drop what has none left, or only had
    blanks.
    """
    end = 0
    for entity in entities:
        start = max(entity.start, end)
        if entity.end > start:
            yield replace(entity, start=start)
            end = entity.end


def _tokens(scores: NDArray[np.float64], best: NDArray[np.int64], spans: TokenSpans) -> list[_Piece]:
    own = scores[np.arange(len(best)), best].tolist()
    return [
        _Piece(label, score, start, end, word)
        for label, score, (start, end), word in zip(
            best.tolist(), own, spans.offsets.tolist(), spans.words.tolist(), strict=True
        )
    ]


def _words(scores: NDArray[np.float64], spans: TokenSpans, aggregation: Aggregation) -> list[_Piece]:
    """Return the words, cut as the tokeniser cuts words."""
    edges = np.flatnonzero(np.diff(spans.words)) + 1
    pieces = []
    for start, end in zip([0, *edges.tolist()], [*edges.tolist(), len(spans.words)], strict=True):
        if start == end:
            continue
        word = _word_scores(scores[start:end], aggregation)
        label = int(word.argmax())
        first, last = int(spans.offsets[start, 0]), int(spans.offsets[end - 1, 1])
        pieces.append(_Piece(label, float(word[label]), first, last, int(spans.words[start])))
    return pieces


def _word_scores(scores: NDArray[np.float64], aggregation: Aggregation) -> NDArray[np.float64]:
    """Return the scores [labels] that stand for a word of tokens [tokens, labels]."""
    chosen: NDArray[np.float64]
    if aggregation is Aggregation.FIRST:
        chosen = scores[0]
    elif aggregation is Aggregation.MAX:
        chosen = scores[scores.max(axis=1).argmax()]
    else:
        chosen = scores.mean(axis=0)
    return chosen


def _groups(pieces: Sequence[_Piece], labels: LabelSet) -> list[list[_Piece]]:
    groups: list[list[_Piece]] = []
    for piece in pieces:
        if groups and _belongs(piece, groups[-1][-1], labels):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups


def _belongs(piece: _Piece, before: _Piece, labels: LabelSet) -> bool:
    (mark, tag), (mark_before, tag_before) = (labels.marked[p.label] for p in (piece, before))
    if mark in _BEGINS | _ALONE or mark_before in _ENDS | _ALONE:
        return False
    if labels.cuts_words:
        return True
    if tag != tag_before:
        return False
    return piece.word == before.word or not labels.labels_words


def _entity(group: Sequence[_Piece], labels: LabelSet) -> Entity:
    _, tag = labels.marked[group[0].label]
    return Entity(tag, float(np.mean([p.score for p in group])), group[0].start, group[-1].end)
