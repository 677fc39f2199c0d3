"""`aimass classify-image`: what images show, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from aimass.classification_client import ClassificationClient
from aimass.cli.answers import answers_object, report_errors
from aimass.cli.options import ENCODER_ADDRESS, Address, AsJson, Deadline, ModelName
from aimass.cli.session import chosen_model, connected
from aimass.embeddings import ItemError
from aimass.image_labels import ImageOptions, LabelledImages

Files = Annotated[
    list[Path],
    typer.Argument(metavar="FILE...", exists=True, dir_okay=False, help="PNG, JPEG or WebP images."),
]
TopK = Annotated[int | None, typer.Option(help="At most this many labels for each image.")]
Threshold = Annotated[float | None, typer.Option(help="Least score of a label.")]
Labels = Annotated[list[str] | None, typer.Option("--label", help="Only this label; may be repeated.")]


def classify_image(
    ctx: typer.Context,
    files: Files,
    *,
    top_k: TopK = None,
    threshold: Threshold = None,
    labels: Labels = None,
    model: ModelName = None,
    address: Address = ENCODER_ADDRESS,
    deadline_s: Deadline = None,
    as_json: AsJson = False,
) -> None:
    """Tell what images show."""
    options = ImageOptions(top_k=top_k, threshold=threshold, labels=tuple(labels or ()))
    with connected(ctx, address) as connection:
        name = chosen_model(connection, model)
        images = ClassificationClient(connection).classify_images(
            [file.read_bytes() for file in files], model=name, options=options, deadline_s=deadline_s
        )
    if as_json:
        typer.echo(json.dumps(images_object(files, images)))
    else:
        Console().print(images_table(files, images))
    report_errors(images.results, "images")


def images_object(files: Sequence[Path], images: LabelledImages) -> dict[str, object]:
    """Return the labels as a JSON-ready object for scripts."""
    return {
        **answers_object(images, asdict),
        "files": [str(file) for file in files],
        "score_kind": images.score_kind.value,
    }


def images_table(files: Sequence[Path], images: LabelledImages) -> Table:
    """Return a table for a terminal: the labels of each image, best first."""
    table = Table("file", "size", "label", "score", title=images.model, title_justify="left")
    for file, result in zip(files, images.results, strict=True):
        if isinstance(result, ItemError):
            continue
        shown = [(s.label, f"{s.score:.3f}") for s in result.labels] or [("none", "")]
        for row, (label, score) in enumerate(shown):
            head = ("", "") if row else (file.name, f"{result.width} x {result.height}")
            table.add_row(*head, label, score)
    return table
