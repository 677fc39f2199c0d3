"""Entities of texts: which are wanted, and what a call returns, as plain values. Knows no call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from aimass.classification.v1 import token_classification_pb2 as pb
from aimass.classifications import Answers
from aimass.embeddings import item_error_of
from aimass.usage import reply_fields
from aimass.wire import set_fields


class Aggregation(StrEnum):
    """How the labels of tokens become entities."""

    NONE = "none"
    """No entities: each token by itself, with its label as the model writes it."""
    SIMPLE = "simple"
    """Neighbouring tokens that agree are one entity. A word may be cut."""
    FIRST = "first"
    """As simple, of words: a word has the label of its first token."""
    AVERAGE = "average"
    """As simple, of words: a word has the label with the best mean score."""
    MAX = "max"
    """As simple, of words: a word has the label of its token with the highest score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityOptions:
    """Which entities to return. What is None takes the server's default."""

    aggregation: Aggregation = Aggregation.SIMPLE
    labels: Sequence[str] = ()
    """Only entities of these; empty for all."""
    threshold: float | None = None
    """Least score of an entity."""
    overlap_tokens: int | None = None
    """Tokens that two windows of a long text share."""

    def message(self) -> pb.TokenOptions:
        """Return the options as a message; raise `InvalidRequest` when a value fits no field."""
        options_pb = pb.TokenOptions(aggregation=pb.Aggregation.Value(f"AGGREGATION_{self.aggregation.name}"))
        set_fields(options_pb, self, ("labels", "threshold", "overlap_tokens"), path="options.")
        return options_pb


@dataclass(frozen=True, slots=True)
class Entity:
    """A labelled piece of a text: `text == sent[start:end]`."""

    label: str
    score: float
    start: int
    """First character, as Python counts."""
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class TextEntities:
    """The entities of one text."""

    entities: Sequence[Entity]
    """In the order of the text; they do not overlap."""
    tokens: int
    windows: int
    """Windows the text was read in; 1 when it fitted."""


@dataclass(frozen=True, slots=True)
class Entities(Answers[TextEntities]):
    """The entities of the texts of one call, in their order."""


def entities_of(response_pb: pb.ClassifyTokensResponse) -> Entities:
    """Return the message as a value."""
    return Entities(
        results=[
            item_error_of(r.error) if r.HasField("error") else _text_entities_of(r.classification)
            for r in response_pb.results
        ],
        **reply_fields(response_pb),
    )


def _text_entities_of(classification_pb: pb.TokenClassification) -> TextEntities:
    entities = [Entity(e.label, e.score, e.start, e.end, e.text) for e in classification_pb.entities]
    return TextEntities(entities, classification_pb.tokens, classification_pb.windows)
