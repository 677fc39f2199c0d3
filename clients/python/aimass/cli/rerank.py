"""`aimass rerank`: documents by how well they answer a query, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from aimass.cli.answers import error_object, report_item_errors
from aimass.cli.encoder_call import EncoderCall, with_encoder_call
from aimass.cli.options import ChunkOverlap, Truncate
from aimass.embedding_client import EmbeddingClient
from aimass.embedding_options import Truncation
from aimass.rankings import Ranking, RelevanceScore, RerankOptions

Query = Annotated[str, typer.Argument(help="What is asked.")]
Documents = Annotated[list[str], typer.Argument(metavar="DOCUMENT...", help="One text or more.")]
TopN = Annotated[int | None, typer.Option(help="Only this many documents, the best.")]
Score = Annotated[
    RelevanceScore, typer.Option(help="sigmoid or raw for cross-encoders; embedding models give the cosine.")
]
QueryPrompt = Annotated[str | None, typer.Option(help="Embedding models: prompt of the query.")]
DocumentPrompt = Annotated[str | None, typer.Option(help="Embedding models: prompt of each document.")]


@with_encoder_call
def rerank(
    query: Query,
    documents: Documents,
    *,
    top_n: TopN = None,
    score: Score = RelevanceScore.UNSPECIFIED,
    query_prompt_name: QueryPrompt = None,
    document_prompt_name: DocumentPrompt = None,
    truncation: Truncate = Truncation.END,
    chunk_overlap: ChunkOverlap = None,
    call: EncoderCall,
) -> None:
    """Put documents in the order in which they answer a query."""
    options = RerankOptions(
        top_n=top_n,
        score=score,
        truncation=truncation,
        chunk_overlap=chunk_overlap,
        query_prompt_name=query_prompt_name,
        document_prompt_name=document_prompt_name,
    )
    with call.client(EmbeddingClient) as (client, model):
        ranking = client.rerank(query, documents, model=model, options=options, deadline_s=call.deadline_s)
    if call.as_json:
        typer.echo(json.dumps(ranking_object(documents, ranking)))
    else:
        Console().print(ranking_table(documents, ranking))
    report_item_errors({f"documents[{index}]": error for index, error in ranking.errors.items()})


def ranking_object(documents: Sequence[str], ranking: Ranking) -> dict[str, object]:
    """Return the ranking as a JSON-ready object for scripts."""
    return {
        "results": [{**asdict(r), "document": documents[r.index]} for r in ranking.results],
        "errors": {str(index): error_object(error) for index, error in ranking.errors.items()},
        "method": ranking.method.value,
        "score": ranking.score.value,
        "model": ranking.model,
        "model_version": ranking.model_version,
        "usage": asdict(ranking.usage),
        "timings": asdict(ranking.timings),
    }


def ranking_table(documents: Sequence[str], ranking: Ranking) -> Table:
    """Return a table for a terminal: the best document first."""
    title = f"{ranking.method.replace('_', '-')} {ranking.model}, score: {ranking.score}"
    table = Table(title=title, title_justify="left")
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right")
    table.add_column("document", overflow="fold")
    for rank, result in enumerate(ranking.results, 1):
        table.add_row(str(rank), f"{result.score:.3f}", documents[result.index])
    return table
