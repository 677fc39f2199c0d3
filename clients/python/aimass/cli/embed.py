"""`aimass embed`: vectors for scripts, or a table of similarities for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from aimass.cli.answers import error_object, report_item_errors
from aimass.cli.encoder_call import EncoderCall, with_encoder_call
from aimass.cli.options import ChunkOverlap, Dimensions, Texts, Truncate
from aimass.embedding_client import EmbeddingClient
from aimass.embedding_options import EmbeddingOptions, Truncation
from aimass.embeddings import Embeddings

MAX_HEADER_CHARS = 24

PromptName = Annotated[str | None, typer.Option(help="One of the model's prompts, such as query.")]


@with_encoder_call
def embed(
    texts: Texts,
    *,
    dimensions: Dimensions = None,
    prompt_name: PromptName = None,
    truncation: Truncate = Truncation.END,
    chunk_overlap: ChunkOverlap = None,
    call: EncoderCall,
) -> None:
    """Turn texts into vectors. Without --json, print how similar they are."""
    options = EmbeddingOptions(
        dimensions=dimensions, prompt_name=prompt_name, truncation=truncation, chunk_overlap=chunk_overlap
    )
    with call.client(EmbeddingClient) as (client, model):
        embeddings = client.embed(texts, model=model, options=options, deadline_s=call.deadline_s)
    if call.as_json:
        typer.echo(json.dumps(embeddings_object(embeddings)))
    elif not embeddings.errors:
        Console().print(similarity_table(texts, embeddings.vectors))
    report_item_errors({f"texts[{index}]": error for index, error in sorted(embeddings.errors.items())})


def embeddings_object(embeddings: Embeddings) -> dict[str, object]:
    """Return the vectors as a JSON-ready object for scripts; null stands for the vector of a failed text."""
    return {
        "vectors": [
            None if i in embeddings.errors else [float(f"{x:.9g}") for x in row]
            for i, row in enumerate(embeddings.vectors)
        ],
        "errors": {str(index): error_object(error) for index, error in embeddings.errors.items()},
        "dimensions": embeddings.vectors.shape[1],
        "truncated_tokens": list(embeddings.truncated_tokens),
        "chunks": list(embeddings.chunks),
        "model": embeddings.model,
        "model_version": embeddings.model_version,
        "usage": asdict(embeddings.usage),
        "timings": asdict(embeddings.timings),
    }


def cosine_similarities(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosine of each pair: `[n, dimensions]` to float32 `[n, n]`. A zero vector gives 0."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    similarities: NDArray[np.float32] = units @ units.T  # [n, n]
    return similarities


def similarity_table(texts: Sequence[str], vectors: NDArray[np.float32]) -> Table:
    """Return a table for a terminal: each text against each, numbered in the order given."""
    table = Table(title="cosine similarity", title_justify="left")
    table.add_column("text", overflow="fold")
    for number in range(1, len(texts) + 1):
        table.add_column(str(number), justify="right", no_wrap=True)
    for number, (text, row) in enumerate(zip(texts, cosine_similarities(vectors), strict=True), 1):
        table.add_row(f"{number} {text}", *(f"{value:.3f}" for value in row))
    return table
