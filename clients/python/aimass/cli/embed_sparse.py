"""`aimass embed-sparse`: the words that a text is about, with their weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from aimass.cli.answers import answers_object, report_errors
from aimass.cli.encoder_call import EncoderCall, with_encoder_call
from aimass.cli.options import Texts
from aimass.embedding_client import EmbeddingClient
from aimass.embeddings import ItemError
from aimass.sparse_embeddings import SparseEmbeddings, SparseText

TopK = Annotated[int | None, typer.Option(help="At most this many words of each text.")]


@with_encoder_call
def embed_sparse(
    texts: Texts,
    *,
    top_k: TopK = None,
    call: EncoderCall,
) -> None:
    """Turn texts into weights of words, for search by an inverted index (SPLADE)."""
    with call.client(EmbeddingClient) as (client, model):
        sparse = client.embed_sparse(texts, model=model, top_k=top_k, deadline_s=call.deadline_s)
    if call.as_json:
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
