"""`aimass embed-sparse`: the words that a text is about, with their weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from aimass.cli.answers import answers_object, report_errors
from aimass.cli.options import ENCODER_ADDRESS, Address, AsJson, Deadline, ModelName
from aimass.cli.session import chosen_model, connected
from aimass.embedding_client import EmbeddingClient
from aimass.embeddings import ItemError
from aimass.sparse_embeddings import SparseEmbeddings, SparseText

Texts = Annotated[list[str], typer.Argument(metavar="TEXT...", help="One text or more.")]
TopK = Annotated[int | None, typer.Option(help="At most this many words of each text.")]


def embed_sparse(
    ctx: typer.Context,
    texts: Texts,
    *,
    top_k: TopK = None,
    model: ModelName = None,
    address: Address = ENCODER_ADDRESS,
    deadline_s: Deadline = None,
    as_json: AsJson = False,
) -> None:
    """Turn texts into weights of words, for search by an inverted index (SPLADE)."""
    with connected(ctx, address) as connection:
        name = chosen_model(connection, model)
        sparse = EmbeddingClient(connection).embed_sparse(
            texts, model=name, top_k=top_k, deadline_s=deadline_s
        )
    if as_json:
        typer.echo(json.dumps({**answers_object(sparse, _shown), "vocabulary_size": sparse.vocabulary_size}))
    else:
        Console().print(_table(texts, sparse))
    report_errors(sparse.results, "texts")


def _shown(text: SparseText) -> dict[str, object]:
    places = list(text.weights)
    return {
        "indices": places,
        "weights": [text.weights[place] for place in places],
        "words": [text.words[place] for place in places],
        "tokens": text.tokens,
        "truncated_tokens": text.truncated_tokens,
    }


def _table(texts: Sequence[str], sparse: SparseEmbeddings) -> Table:
    table = Table("text", "words")
    for text, result in zip(texts, sparse.results, strict=True):
        if not isinstance(result, ItemError):
            words = (f"{result.words[place]} {weight:.2f}" for place, weight in result.weights.items())
            table.add_row(text, ", ".join(words))
    return table
