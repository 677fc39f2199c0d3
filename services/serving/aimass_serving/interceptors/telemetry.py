"""The outermost layer: one SERVER span and one duration for each RPC, truthful about cancel and deadline."""

from __future__ import annotations

import time

from opentelemetry.trace import Span, StatusCode

from aimass_serving import telemetry
from aimass_serving.call import Call
from aimass_serving.interceptors.layering import Proceed, ServicerContext

SERVER_FAULTS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
"""Status codes that the semantic conventions count as errors of a server."""


async def record(call: Call, context: ServicerContext, proceed: Proceed) -> None:
    """Record the call when it is over, whatever its end. The span is ended exactly once."""
    if not telemetry.is_recording():
        await proceed()
        return
    started_s = time.perf_counter()
    parent = telemetry.incoming_context(call.metadata)
    span = telemetry.start_server_span(call.method, parent=parent, start_ns=call.received_ns)
    try:
        await proceed()
    finally:
        _end(span, call)
        telemetry.record_call(
            call.method,
            status_code=call.outcome.status_code,
            duration_s=time.perf_counter() - started_s,
            error_type=call.outcome.status_code if call.outcome.status_code in SERVER_FAULTS else None,
        )


def _end(span: Span, call: Call) -> None:
    code = call.outcome.status_code
    span.set_attribute("rpc.response.status_code", code)
    span.set_attribute("aimass.request_id", call.request_id)
    if call.outcome.reason:
        span.set_attribute("aimass.error.reason", call.outcome.reason)
    if code in SERVER_FAULTS:
        span.set_attribute("error.type", code)
        span.set_status(StatusCode.ERROR, call.outcome.reason)
    span.end()
