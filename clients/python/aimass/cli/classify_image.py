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
from aimass.cli.encoder_call import EncoderCall, with_encoder_call
from aimass.cli.options import Labels, LabelThreshold
from aimass.embeddings import ItemError
from aimass.image_labels import ImageOptions, LabelledImages

Files = Annotated[
    list[Path],
    typer.Argument(metavar="FILE...", exists=True, dir_okay=False, help="PNG, JPEG or WebP images."),
]
TopK = Annotated[int | None, typer.Option(help="At most this many labels for each image.")]


@with_encoder_call
def classify_image(
    files: Files,
    *,
    top_k: TopK = None,
    threshold: LabelThreshold = None,
    labels: Labels = None,
    call: EncoderCall,
) -> None:
    """Tell what images show."""
    options = ImageOptions(top_k=top_k, threshold=threshold, labels=tuple(labels or ()))
    with call.client(ClassificationClient) as (client, model):
        images = client.classify_images(
            [file.read_bytes() for file in files], model=model, options=options, deadline_s=call.deadline_s
        )
    if call.as_json:
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
