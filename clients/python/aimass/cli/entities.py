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
from aimass.cli.options import ENCODER_ADDRESS, Address, AsJson, Deadline, ModelName
from aimass.cli.session import chosen_model, connected
from aimass.embeddings import ItemError
from aimass.entities import Aggregation, Entities, Entity, EntityOptions

_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "red")

Texts = Annotated[list[str], typer.Argument(metavar="TEXT...", help="One text or more.")]
Aggregate = Annotated[Aggregation, typer.Option(help="How the labels of tokens become entities.")]
Labels = Annotated[list[str] | None, typer.Option("--label", help="Only this label; may be repeated.")]
Threshold = Annotated[float | None, typer.Option(help="Least score of an entity.")]
Overlap = Annotated[
    int | None, typer.Option("--overlap", help="Tokens that two windows of a long text share.")
]


def entities(
    ctx: typer.Context,
    texts: Texts,
    *,
    aggregation: Aggregate = Aggregation.SIMPLE,
    labels: Labels = None,
    threshold: Threshold = None,
    overlap: Overlap = None,
    model: ModelName = None,
    address: Address = ENCODER_ADDRESS,
    deadline_s: Deadline = None,
    as_json: AsJson = False,
) -> None:
    """Find names, parts of speech or segments in texts."""
    options = EntityOptions(
        aggregation=aggregation, labels=tuple(labels or ()), threshold=threshold, overlap_tokens=overlap
    )
    with connected(ctx, address) as connection:
        name = chosen_model(connection, model)
        found = ClassificationClient(connection).entities(
            texts, model=name, options=options, deadline_s=deadline_s
        )
    if as_json:
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
