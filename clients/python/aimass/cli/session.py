"""What every command does around its calls: connect, trace, and find the model when none was named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from aimass.channel import Connection, ConnectionOptions
from aimass.model_client import ModelClient
from aimass.tracing import export_spans

SERVICE_NAME = "aimass-cli"


@contextmanager
def connected(ctx: typer.Context, address: str) -> Iterator[Connection]:
    """Give a connection with the options of the command line; send its spans where `OTEL_*` says."""
    flush = export_spans(SERVICE_NAME)
    try:
        with Connection(address, connection_options(ctx)) as connection:
            yield connection
    finally:
        flush()


def connection_options(ctx: typer.Context) -> ConnectionOptions:
    """Return the connection options that were given before the command."""
    options = ctx.obj
    return options if isinstance(options, ConnectionOptions) else ConnectionOptions()


def chosen_model(connection: Connection, name: str | None, *, task: str | None = None) -> str:
    """Return the named model, or the only one that is ready at the address, and for this task if one is
    given.
    """
    if name is not None:
        return name
    ready = [model for model in ModelClient(connection).list() if model.is_ready]
    names = sorted({model.name for model in ready if task is None or model.task == task})
    if len(names) == 1:
        return names[0]
    found, wanted = ", ".join(names) or "none", "" if task is None else f" for {task.replace('_', ' ')}"
    raise typer.BadParameter(
        f"expected a model, as {connection.address} does not serve exactly one{wanted}; ready: {found}",
        param_hint="--model",
    )
