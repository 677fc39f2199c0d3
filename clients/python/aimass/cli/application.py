"""Puts the commands together and turns what they raise into one line and an exit code.

Installed distributions add commands by the entry-point group `aimass.commands`: each entry is a function
`register(app: typer.Typer) -> None`. Knows no command's work.
"""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from aimass.channel import ConnectionOptions, Tls
from aimass.cli import (
    answer,
    chat,
    classify,
    classify_image,
    embed,
    embed_sparse,
    entities,
    fill_mask,
    generate,
    rerank,
    similarity,
    speak,
    status,
    traces,
    transcribe,
)
from aimass.cli.failure import failure_line
from aimass.embeddings import TextRefused
from aimass.errors import RpcError
from aimass.trace_collector import PortInUse

COMMANDS_GROUP = "aimass.commands"

CaFile = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="PEM certificates to trust; implies --tls.")
]
CertFile = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="PEM certificate to show (mTLS); needs --key."),
]
KeyFile = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="PEM key of --cert.")]


class AimassGroup(TyperGroup):
    """Runs a command; a failed call becomes one line on standard error and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (RpcError, TextRefused, PortInUse) as error:
            typer.echo(failure_line(error, command=ctx.invoked_subcommand or ""), err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=AimassGroup,
    name="aimass",
    help="Export transformer models, serve them over gRPC, and talk to them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(generate.generate)
app.command()(chat.chat)
app.command()(embed.embed)
app.command("embed-sparse")(embed_sparse.embed_sparse)
app.command()(classify.classify)
app.command()(entities.entities)
app.command("fill-mask")(fill_mask.fill_mask)
app.command()(answer.answer)
app.command("classify-image")(classify_image.classify_image)
app.command()(similarity.similarity)
app.command()(rerank.rerank)
app.command()(status.status)
app.command()(traces.traces)
app.command()(transcribe.transcribe)
app.command()(speak.speak)


@app.callback()
def connection(
    ctx: typer.Context,
    *,
    tls: Annotated[bool, typer.Option("--tls", help="Encrypt connections to the services.")] = False,
    ca: CaFile = None,
    cert: CertFile = None,
    key: KeyFile = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="AIMASS_CLIENT_API_KEY", show_envvar=True, help="API key, best given in the environment."
        ),
    ] = None,
) -> None:
    """Export transformer models, serve them over gRPC, and talk to them."""
    if (cert is None) != (key is None):
        raise typer.BadParameter("expected both --cert and --key, got one of them")
    has_tls = tls or ca is not None or cert is not None
    encryption = (
        Tls.from_files(root_certificates=ca, certificate_chain=cert, private_key=key) if has_tls else None
    )
    ctx.obj = ConnectionOptions(tls=encryption, api_key=api_key)


def add_installed_commands(target: typer.Typer) -> None:
    """Let each installed distribution add its commands. One that fails costs its own alone, with a line."""
    for entry in entry_points(group=COMMANDS_GROUP):
        try:
            entry.load()(target)
        except Exception as error:  # whatever a foreign distribution raises on import must not end the others
            typer.echo(f"aimass: the commands of {entry.value} are not available: {error}", err=True)


def main() -> None:
    """Run the command line and exit."""
    add_installed_commands(app)
    sys.exit(app(prog_name="aimass"))
