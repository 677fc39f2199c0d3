"""`aimass entities`: names, parts of speech or segments of texts, highlighted or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from aimass.classification_client import ClassificationClient
from aimass.cli.answers import answers_object, report_errors
from aimass.cli.encoder_call import EncoderCall, with_encoder_call
from aimass.cli.options import Labels, Texts
from aimass.embeddings import ItemError
from aimass.entities import Aggregation, Entities, Entity, EntityOptions

_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "red")

Aggregate = Annotated[Aggregation, typer.Option(help="How the labels of tokens become entities.")]
Threshold = Annotated[float | None, typer.Option(help="Least score of an entity.")]
Overlap = Annotated[
    int | None, typer.Option("--overlap", help="Tokens that two windows of a long text share.")
]


@with_encoder_call
def entities(
    texts: Texts,
    *,
    aggregation: Aggregate = Aggregation.SIMPLE,
    labels: Labels = None,
    threshold: Threshold = None,
    overlap: Overlap = None,
    call: EncoderCall,
) -> None:
    """Find names, parts of speech or segments in texts."""
    options = EntityOptions(
        aggregation=aggregation, labels=tuple(labels or ()), threshold=threshold, overlap_tokens=overlap
    )
    with call.client(ClassificationClient) as (client, model):
        found = client.entities(texts, model=model, options=options, deadline_s=call.deadline_s)
    if call.as_json:
        typer.echo(json.dumps(answers_object(found, asdict)))
    else:
        _print(texts, found)
    report_errors(found.results, "texts")


def _print(texts: Sequence[str], found: Entities) -> None:
    console = Console()
    colours: dict[str, str] = {}
    for text, result in zip(texts, found.results, strict=True):
        if not isinstance(result, ItemError):
            console.print(highlighted(text, result.entities, colours), soft_wrap=True)


def highlighted(text: str, entities: Sequence[Entity], colours: dict[str, str]) -> Text:
    """Return the text for a terminal, each entity in the colour of its label, the label behind it.

    `colours` keeps the colour of each label from text to text.
    """
    shown, place = Text(), 0
    for entity in entities:
        colour = colours.setdefault(entity.label, _COLOURS[len(colours) % len(_COLOURS)])
        shown.append(text[place : entity.start])
        shown.append(text[entity.start : entity.end], style=f"bold {colour}")
        shown.append(f"[{entity.label} {entity.score:.2f}]", style=f"dim {colour}")
        place = entity.end
    return shown.append(text[place:])
