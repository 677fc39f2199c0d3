"""`aimass similarity`: how near texts are to one another, as a table or as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from aimass.cli.answers import error_object, report_item_errors
from aimass.cli.encoder_call import EncoderCall, with_encoder_call
from aimass.cli.options import ChunkOverlap, Dimensions, Texts, Truncate
from aimass.embedding_client import EmbeddingClient
from aimass.embedding_options import Truncation
from aimass.embeddings import ItemError
from aimass.rankings import Similarities, SimilarityMetric, SimilarityOptions, TextOutcome

With = Annotated[
    list[str] | None,
    typer.Option("--with", help="Compare with this text; may be repeated. Default: each TEXT with each."),
]
Metric = Annotated[SimilarityMetric, typer.Option(help="cosine or dot.")]
QueryPrompt = Annotated[str | None, typer.Option(help="The model's prompt for each TEXT, such as query.")]
DocumentPrompt = Annotated[str | None, typer.Option(help="The model's prompt for each --with text.")]


@with_encoder_call
def similarity(
    texts: Texts,
    *,
    documents: With = None,
    metric: Metric = SimilarityMetric.COSINE,
    dimensions: Dimensions = None,
    query_prompt_name: QueryPrompt = None,
    document_prompt_name: DocumentPrompt = None,
    truncation: Truncate = Truncation.END,
    chunk_overlap: ChunkOverlap = None,
    call: EncoderCall,
) -> None:
    """Tell how near texts are to one another."""
    options = SimilarityOptions(
        metric=metric,
        truncation=truncation,
        chunk_overlap=chunk_overlap,
        dimensions=dimensions,
        query_prompt_name=query_prompt_name,
        document_prompt_name=document_prompt_name,
    )
    with call.client(EmbeddingClient) as (client, model):
        found = client.similarity(
            texts, documents or (), model=model, options=options, deadline_s=call.deadline_s
        )
    if call.as_json:
        typer.echo(json.dumps(similarities_object(found), allow_nan=False))
    else:
        Console().print(similarities_table(texts, documents or texts, found))
    failed = {f"queries[{i}]": e for i, e in enumerate(found.queries) if isinstance(e, ItemError)}
    if documents:
        failed |= {f"documents[{i}]": e for i, e in enumerate(found.documents) if isinstance(e, ItemError)}
    report_item_errors(failed)


def similarities_object(found: Similarities) -> dict[str, object]:
    """Return the numbers as a JSON-ready object for scripts; null stands where a text failed."""
    return {
        "scores": [[None if math.isnan(x) else float(f"{x:.9g}") for x in row] for row in found.scores],
        "metric": found.metric.value,
        "queries": [_outcome(text) for text in found.queries],
        "documents": [_outcome(text) for text in found.documents],
        "model": found.model,
        "model_version": found.model_version,
        "usage": asdict(found.usage),
        "timings": asdict(found.timings),
    }


def _outcome(text: TextOutcome | ItemError) -> dict[str, object]:
    return {"error": error_object(text)} if isinstance(text, ItemError) else asdict(text)


def similarities_table(queries: Sequence[str], documents: Sequence[str], found: Similarities) -> Table:
    """Return a table for a terminal: a row for each document, a column for each query."""
    table = Table(title=f"{found.metric} similarity, {found.model}", title_justify="left")
    table.add_column("text", overflow="fold")
    for query in queries:
        table.add_column(query, justify="right", overflow="fold")
    for document, row in zip(documents, found.scores.T, strict=True):
        table.add_row(document, *("" if math.isnan(x) else f"{x:.3f}" for x in row))
    return table
