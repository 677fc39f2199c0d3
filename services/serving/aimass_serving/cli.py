"""`aimass serve` and `aimass up`. Knows which services are installed, and nothing of what they do."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from aimass_serving.errors import AimassError, BadConfig
from aimass_serving.installed import installed_services
from aimass_serving.ready import Announcement
from aimass_serving.supervisor import Program, Supervisor

# No load balancer stands before a laptop: nothing to wait for when it ends.
_CHILD_OPTIONS = ("--supervised", "--json", "--drain-delay", "0")
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def register(app: typer.Typer) -> None:
    """Add the commands to the `aimass` command."""
    app.command(context_settings=_PASS_ON)(serve)
    app.command()(up)


def serve(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which service.")] = "--help",
) -> None:
    """Run one service in the foreground. `aimass serve NAME --help` lists its options."""
    services = installed_services()
    if name in services:
        raise typer.Exit(services[name].load()(context.args))
    is_help = name == "--help"
    lines = ["usage: aimass serve NAME [OPTIONS]", f"installed services: {', '.join(services) or 'none'}"]
    typer.echo("\n".join(lines), err=not is_help)
    raise typer.Exit(0 if is_help else 2)


def up(
    store: Annotated[str | None, typer.Option(help="Folder or URL of the models.")] = None,
    device: Annotated[str | None, typer.Option(help="Where models run: auto, cpu or cuda.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[list[str] | None, typer.Option(metavar="NAME=PORT", help="Port of one service.")] = None,
    allow_unverified: Annotated[bool, typer.Option(help="Serve altered or unproven bundles.")] = False,
    reflection: Annotated[bool, typer.Option(help="Answer gRPC reflection.")] = False,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    ready_file: Annotated[Path | None, typer.Option(help="Write one line of JSON here when ready.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON when ready.")] = False,
) -> None:
    """Run every service that has a model in the store, until Ctrl-C. One that ends, ends all."""
    given = {"--store": store, "--device": device, "--host": host, "--log-level": log_level}
    options = [text for option, value in given.items() if value is not None for text in (option, value)]
    options += ["--allow-unverified"] * allow_unverified + ["--reflection"] * reflection
    announcement = Announcement(to_stdout=as_json, file=ready_file)
    announcement.withdraw()
    try:
        programs = service_programs(options, ports=_ports(port or []))
        asyncio.run(_supervise(programs, announcement))
    except AimassError as error:
        typer.echo(f"aimass up: {error}", err=True)
        raise typer.Exit(1) from error


def service_programs(options: list[str], *, ports: Mapping[str, str]) -> list[Program]:
    """Return how to run each installed service as a child. Raises `BadConfig` for the port of no service."""
    services = installed_services()
    for name in ports:
        if name not in services:
            raise BadConfig("--port", expected=f"NAME=PORT with one of {', '.join(services)}", got=name)
    return [
        Program(
            name,
            (
                *(sys.executable, "-m", entry.module.removesuffix(".__main__"), *_CHILD_OPTIONS, *options),
                *(("--port", ports[name]) if name in ports else ()),
            ),
        )
        for name, entry in services.items()
    ]


def _ports(given: list[str]) -> dict[str, str]:
    for text in given:
        name, _, number = text.partition("=")
        if not (name and number.isdigit()):
            raise BadConfig("--port", expected="NAME=PORT", got=text)
    return dict(text.split("=", 1) for text in given)


async def _supervise(programs: list[Program], announcement: Announcement) -> None:
    supervisor, stop = Supervisor(programs), asyncio.Event()

    def end() -> None:
        if stop.is_set():
            supervisor.kill()
        stop.set()

    def announce(ready: list[dict[str, Any]]) -> None:
        where = ", ".join(f"{service['service']} on {service['address']}" for service in ready)
        sys.stderr.write(f"ready: {where}; Ctrl-C ends\n")
        announcement.make({"pid": os.getpid(), "services": ready})

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end)
    await supervisor.run(stop, on_ready=announce)
