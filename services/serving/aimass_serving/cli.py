"""`aimass serve` and `aimass up`. Knows which services are installed, and nothing of what they do."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Annotated

import typer

SERVICES_GROUP = "aimass.services"
"""Entry-point group of the installed services; each entry is the service's `main`."""

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def register(app: typer.Typer) -> None:
    """Add the commands to the `aimass` command."""
    app.command(context_settings=_PASS_ON)(serve)


def serve(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which service.")] = "--help",
) -> None:
    """Run one service in the foreground: `aimass serve NAME --help` lists its options."""
    services = installed_services()
    if name in services:
        raise typer.Exit(services[name].load()(context.args))
    is_help = name == "--help"
    typer.echo(
        f"usage: aimass serve NAME [OPTIONS]\ninstalled services: {', '.join(services) or 'none'}",
        err=not is_help,
    )
    raise typer.Exit(0 if is_help else 2)


def installed_services() -> dict[str, EntryPoint]:
    """Return the entry point of every installed service, by name."""
    return {entry.name: entry for entry in sorted(entry_points(group=SERVICES_GROUP))}
