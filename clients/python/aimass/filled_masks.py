"""Words for the masked places of texts, as plain values. Knows no call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aimass.classification.v1 import fill_mask_pb2 as pb
from aimass.classifications import Answers
from aimass.embeddings import item_error_of
from aimass.usage import reply_fields
from aimass.wire import set_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class FillMaskOptions:
    """Which words to return. What is None takes the server's default."""

    top_k: int | None = None
    """At most this many words for each mask, best first."""
    targets: Sequence[str] = ()
    """Only these words; empty for all."""

    def message(self) -> pb.FillMaskOptions:
        """Return the options as a message; raise `InvalidRequest` when a value fits no field."""
        options_pb = pb.FillMaskOptions()
        set_fields(options_pb, self, ("top_k", "targets"), path="options.")
        return options_pb


@dataclass(frozen=True, slots=True)
class MaskWord:
    """One word for a mask."""

    text: str
    token: str
    """As the vocabulary writes it: `##` or similar marks stand for parts of words."""
    token_id: int
    score: float
    """Probability among the whole vocabulary."""


@dataclass(frozen=True, slots=True)
class FilledMask:
    """The words for one mask."""

    start: int
    """First character of the mask in the text, as Python counts."""
    end: int
    words: Sequence[MaskWord]
    """Best first."""


@dataclass(frozen=True, slots=True)
class FilledText:
    """The words for the masks of one text."""

    masks: Sequence[FilledMask]
    """In the order of the text."""
    tokens: int
    windows: int
    """Windows the text was read in; 1 when it fitted."""

    def filled(self, text: str) -> str:
        """Return the text that was sent with the best word in each mask."""
        for mask in reversed(self.masks):
            if mask.words:
                text = text[: mask.start] + mask.words[0].text + text[mask.end :]
        return text


@dataclass(frozen=True, slots=True)
class FilledTexts(Answers[FilledText]):
    """The words for the masks of the texts of one call, in their order."""

    mask_token: str
    """What stands for a mask with this model."""


def filled_texts_of(response_pb: pb.FillMaskResponse) -> FilledTexts:
    """Return the message as a value."""
    return FilledTexts(
        results=[
            item_error_of(r.error) if r.HasField("error") else _filled_text_of(r.filled)
            for r in response_pb.results
        ],
        **reply_fields(response_pb),
        mask_token=response_pb.mask_token,
    )


def _filled_text_of(filled_pb: pb.FilledText) -> FilledText:
    masks = [
        FilledMask(m.start, m.end, [MaskWord(w.text, w.token, w.token_id, w.score) for w in m.words])
        for m in filled_pb.masks
    ]
    return FilledText(masks, filled_pb.tokens, filled_pb.windows)
