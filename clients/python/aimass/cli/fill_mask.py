"""`aimass fill-mask`: words for the masked places of texts, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from aimass.classification_client import ClassificationClient
from aimass.cli.answers import answers_object, report_errors
from aimass.cli.encoder_call import EncoderCall, with_encoder_call
from aimass.embeddings import ItemError
from aimass.filled_masks import FilledTexts, FillMaskOptions

Texts = Annotated[
    list[str],
    typer.Argument(metavar="TEXT...", help="One text or more, each with the model's mask, such as [MASK]."),
]
TopK = Annotated[int | None, typer.Option(help="At most this many words for each mask.")]
Targets = Annotated[list[str] | None, typer.Option("--target", help="Only this word; may be repeated.")]


@with_encoder_call
def fill_mask(
    texts: Texts,
    *,
    top_k: TopK = None,
    targets: Targets = None,
    call: EncoderCall,
) -> None:
    """Guess the words that are masked in texts."""
    options = FillMaskOptions(top_k=top_k, targets=tuple(targets or ()))
    with call.client(ClassificationClient) as (client, model):
        filled = client.fill_mask(texts, model=model, options=options, deadline_s=call.deadline_s)
    if call.as_json:
        typer.echo(json.dumps({**answers_object(filled, asdict), "mask_token": filled.mask_token}))
    else:
        Console().print(_table(texts, filled))
    report_errors(filled.results, "texts")


def _table(texts: Sequence[str], filled: FilledTexts) -> Table:
    table = Table("text", "mask", "word", "score")
    table.columns[0].overflow = "fold"
    for text, result in zip(texts, filled.results, strict=True):
        if isinstance(result, ItemError):
            continue
        for number, mask in enumerate(result.masks):
            for row, word in enumerate(mask.words):
                is_first = not row and not number
                shown = (text if is_first else "", "" if row else str(number + 1))
                table.add_row(*shown, word.text, f"{word.score:.3f}")
    return table
