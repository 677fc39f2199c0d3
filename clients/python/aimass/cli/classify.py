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
from aimass.cli.encoder_call import EncoderCall, with_encoder_call
from aimass.cli.options import Labels, LabelThreshold, Texts, Truncate
from aimass.embedding_options import Truncation
from aimass.embeddings import ItemError
from aimass.zero_shot_options import ZeroShotOptions

Pair = Annotated[
    str | None, typer.Option("--pair", help="Second text of a pair, for models that compare two texts.")
]
TopK = Annotated[int | None, typer.Option(help="At most this many labels for each text.")]
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


@with_encoder_call
def classify(
    texts: Texts,
    *,
    pair: Pair = None,
    top_k: TopK = None,
    threshold: LabelThreshold = None,
    min_precision: MinPrecision = None,
    labels: Labels = None,
    own_labels: ZeroShot = None,
    template: Template = None,
    multi_label: MultiLabel = False,
    truncation: Truncate = Truncation.END,
    call: EncoderCall,
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
    with call.client(ClassificationClient) as (client, model):
        if own_labels:
            classes = client.classify_zero_shot(
                texts, own_labels, model=model, options=own, deadline_s=call.deadline_s
            )
        else:
            classes = client.classify(inputs, model=model, options=options, deadline_s=call.deadline_s)
    if call.as_json:
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
