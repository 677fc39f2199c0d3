"""`aimass status`: health and models of every service, and an exit code that says whether all are ready."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from aimass.channel import Connection
from aimass.cli.options import ENCODER_ADDRESS, GENERATION_ADDRESS, AsJson
from aimass.cli.session import connected
from aimass.errors import RpcError, Unavailable
from aimass.health_check import HealthStatus, health
from aimass.model_client import Model, ModelClient

CHECK_DEADLINE_S = 5.0

GenerationAddress = Annotated[str, typer.Option("--generation", help="host:port of the generation service.")]
EncoderAddress = Annotated[str, typer.Option("--encoder", help="host:port of the encoder service.")]


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """What one service says of itself, or why it says nothing."""

    service: str
    address: str
    health: HealthStatus
    models: Sequence[Model] = ()
    error: str = ""

    @property
    def is_ready(self) -> bool:
        """Whether it takes calls and all its models, at least one, take requests."""
        are_models_ready = bool(self.models) and all(model.is_ready for model in self.models)
        return self.health is HealthStatus.SERVING and are_models_ready


def status(
    ctx: typer.Context,
    *,
    generation: GenerationAddress = GENERATION_ADDRESS,
    encoder: EncoderAddress = ENCODER_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Show health and models of every service. Exit code 0 only when all are ready."""
    addresses = {"generation": generation, "encoder": encoder}
    found = [_ask(ctx, service, address) for service, address in addresses.items()]
    is_ready = all(each.is_ready for each in found)
    if as_json:
        services = [status_object(each) for each in found]
        typer.echo(json.dumps({"ready": is_ready, "services": services}, ensure_ascii=False))
    else:
        _print_table(found)
    if not is_ready:
        raise typer.Exit(1)


def status_object(found: ServiceStatus) -> dict[str, object]:
    """Return the status of a service as a JSON-ready object."""
    return {
        "service": found.service,
        "address": found.address,
        "health": str(found.health),
        "ready": found.is_ready,
        "error": found.error,
        "models": [_model_object(model) for model in found.models],
    }


def _ask(ctx: typer.Context, service: str, address: str) -> ServiceStatus:
    with connected(ctx, address) as connection:
        try:
            return _ask_connected(service, connection)
        except Unavailable:
            error = f"nobody answers at {address}; start it with: aimass serve {service}"
        except RpcError as failure:
            error = str(failure)
    return ServiceStatus(service, address, HealthStatus.UNKNOWN, error=error)


def _ask_connected(service: str, connection: Connection) -> ServiceStatus:
    state = health(connection, deadline_s=CHECK_DEADLINE_S)
    models = ModelClient(connection).list(deadline_s=CHECK_DEADLINE_S)
    return ServiceStatus(service, connection.address, state, models)


def _model_object(model: Model) -> dict[str, object]:
    return {
        "name": model.name,
        "version": model.version,
        "task": model.task,
        "family": model.family,
        "precision": model.precision,
        "execution_provider": model.execution_provider,
        "state": str(model.state),
        "state_detail": model.state_detail,
        "verified": model.is_verified,
        "adapters": [adapter.name for adapter in model.adapters],
    }


def _print_table(found: Sequence[ServiceStatus]) -> None:
    table = Table(show_edge=False)
    for heading in ("service", "address", "health", "model", "state", "precision", "on"):
        table.add_column(heading, overflow="fold")
    for each in found:
        table.add_row(each.service, each.address, _coloured(each.health), *_model_cells(each.models[:1]))
        for model in each.models[1:]:
            table.add_row("", "", "", *_model_cells([model]))
    console = Console()
    console.print(table)
    for line in _explanations(found):
        console.print(line, soft_wrap=True, markup=False)


def _model_cells(models: Sequence[Model]) -> Sequence[str]:
    for model in models:
        device = model.execution_provider.removesuffix("ExecutionProvider")
        return f"{model.name}@{model.version}", str(model.state), model.precision, device
    return ("none", "", "", "")


def _explanations(found: Sequence[ServiceStatus]) -> Iterator[str]:
    for each in found:
        if each.error:
            yield f"{each.service}: {each.error}"
        for model in each.models:
            if model.state_detail:
                yield f"{model.name}@{model.version}: {model.state_detail}"


def _coloured(state: HealthStatus) -> str:
    colour = "green" if state is HealthStatus.SERVING else "red"
    return f"[{colour}]{state}[/]"
