"""`aimass traces`: receive spans from the services and show each finished trace."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from aimass.trace_collector import DEFAULT_OTLP_PORT, TraceCollector, running_collector
from aimass.trace_tree import FinishedSpan, print_tree, span_forest, trace_object

LOOK_EVERY_S = 0.2

Listen = Annotated[int, typer.Option(help="Port to receive OTLP/gRPC on; 0 takes a free one.", max=65535)]
Host = Annotated[str, typer.Option(help="Address to listen on.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Leave after this many traces.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print one JSON object a trace, each on its line.")]


def traces(
    *,
    listen: Listen = DEFAULT_OTLP_PORT,
    host: Host = "127.0.0.1",
    limit: Limit = None,
    as_json: JsonLines = False,
) -> None:
    """Show each request's trace as a tree of spans with milliseconds, until Ctrl-C.

    Start the services with OTEL_EXPORTER_OTLP_ENDPOINT set to the address this prints.
    """
    collector = TraceCollector()
    with running_collector(collector, host=host, port=listen) as port:
        typer.echo(f"set OTEL_EXPORTER_OTLP_ENDPOINT=http://{host}:{port}", err=True)
        num_shown = 0
        while limit is None or num_shown < limit:
            for spans in collector.take_finished():
                show_trace(spans, as_json=as_json)
                num_shown += 1
            time.sleep(LOOK_EVERY_S)


def show_trace(spans: Sequence[FinishedSpan], *, as_json: bool) -> None:
    """Print one trace: its trees, or one line of JSON."""
    if as_json:
        typer.echo(json.dumps(trace_object(spans), ensure_ascii=False))
        return
    for root in span_forest(spans):
        print_tree(root)
