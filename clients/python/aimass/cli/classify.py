"""`aimass classify`: the labels of texts, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from aimass.classification_client import ClassificationClient, TextOrPair
from aimass.classification_options import ClassifyOptions
from aimass.classifications import TextClasses
from aimass.cli.answers import answers_object, report_errors
from aimass.cli.options import ENCODER_ADDRESS, Address, AsJson, Deadline, ModelName
from aimass.cli.session import chosen_model, connected
from aimass.embedding_options import Truncation
from aimass.embeddings import ItemError
from aimass.zero_shot_options import ZeroShotOptions

Texts = Annotated[list[str], typer.Argument(metavar="TEXT...", help="One text or more.")]
Pair = Annotated[
    str | None, typer.Option("--pair", help="Second text of a pair, for models that compare two texts.")
]
TopK = Annotated[int | None, typer.Option(help="At most this many labels for each text.")]
Threshold = Annotated[float | None, typer.Option(help="Least score of a label.")]
Labels = Annotated[list[str] | None, typer.Option("--label", help="Only this label; may be repeated.")]
ZeroShot = Annotated[
    list[str] | None,
    typer.Option(
        "--try-label",
        help="A label of your own to try, with a model that tells what a text entails; to be repeated.",
    ),
]
Template = Annotated[
    str | None, typer.Option(help="With --try-label: the sentence that is tried, {} stands for the label.")
]
MultiLabel = Annotated[
    bool, typer.Option("--multi-label", help="With --try-label: any number of labels can be right.")
]
MinPrecision = Annotated[
    float | None,
    typer.Option(help="Only labels that are right this often, for models that were calibrated."),
]
Truncate = Annotated[Truncation, typer.Option(help="Which end of a long text to keep, or none: refuse it.")]


def classify(
    ctx: typer.Context,
    texts: Texts,
    *,
    pair: Pair = None,
    top_k: TopK = None,
    threshold: Threshold = None,
    min_precision: MinPrecision = None,
    labels: Labels = None,
    own_labels: ZeroShot = None,
    template: Template = None,
    multi_label: MultiLabel = False,
    truncation: Truncate = Truncation.END,
    model: ModelName = None,
    address: Address = ENCODER_ADDRESS,
    deadline_s: Deadline = None,
    as_json: AsJson = False,
) -> None:
    """Tell what texts are: an intent, a sentiment, a topic."""
    options = ClassifyOptions(
        top_k=top_k,
        threshold=threshold,
        labels=tuple(labels or ()),
        truncation=truncation,
        min_precision=min_precision,
    )
    own = ZeroShotOptions(
        hypothesis_template=template,
        multi_label=multi_label,
        top_k=top_k,
        threshold=threshold,
        truncation=truncation,
    )
    if own_labels is None and (template is not None or multi_label):
        raise typer.BadParameter("--template and --multi-label go with --try-label")
    if own_labels and (pair is not None or labels or min_precision is not None):
        raise typer.BadParameter("--try-label goes without --pair, --label and --min-precision")
    inputs: Sequence[TextOrPair] = texts if pair is None else [(text, pair) for text in texts]
    with connected(ctx, address) as connection:
        name = chosen_model(connection, model)
        client = ClassificationClient(connection)
        if own_labels:
            classes = client.classify_zero_shot(
                texts, own_labels, model=name, options=own, deadline_s=deadline_s
            )
        else:
            classes = client.classify(inputs, model=name, options=options, deadline_s=deadline_s)
    if as_json:
        typer.echo(json.dumps(classes_object(classes)))
    else:
        Console().print(classes_table(texts, classes))
    report_errors(classes.results, "texts" if own_labels else "inputs")


def classes_object(classes: TextClasses) -> dict[str, object]:
    """Return the labels as a JSON-ready object for scripts."""
    return {**answers_object(classes, asdict), "score_kind": classes.score_kind.value}


def classes_table(texts: Sequence[str], classes: TextClasses) -> Table:
    """Return a table for a terminal: the labels of each text, best first."""
    table = Table("text", "label", "score")
    table.columns[0].overflow = "fold"
    for text, result in zip(texts, classes.results, strict=True):
        if isinstance(result, ItemError):
            continue
        shown = [(s.label, f"{s.score:.3f}") for s in result.labels] or [("none", "")]
        for row, (label, score) in enumerate(shown):
            table.add_row("" if row else text, label, score)
    return table
