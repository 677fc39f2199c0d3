"""One structured log line for each RPC, at its end. Never what was asked or answered."""

from __future__ import annotations

import logging
import time

from opentelemetry import trace

from aimass_serving.call import Call
from aimass_serving.interceptors.layering import Proceed, ServicerContext
from aimass_serving.telemetry import is_tracing

logger = logging.getLogger("aimass.access")


async def log(call: Call, context: ServicerContext, proceed: Proceed) -> None:
    """Log the call when it is over, whatever its end."""
    if not logger.isEnabledFor(logging.INFO):
        await proceed()
        return
    started_s = time.perf_counter()
    try:
        await proceed()
    finally:
        logger.info("request", extra={"fields": _fields(call, (time.perf_counter() - started_s) * 1000)})


def _fields(call: Call, duration_ms: float) -> dict[str, str | float]:
    fields: dict[str, str | float] = {
        "method": call.method,
        "request_id": call.request_id,
        "status": call.outcome.status_code,
        "ms": round(duration_ms, 1),
        "peer": call.peer,
        **call.log_fields,
    }
    if call.outcome.reason:
        fields["reason"] = call.outcome.reason
    if is_tracing():
        span_context = trace.get_current_span().get_span_context()
        fields["trace_id"] = trace.format_trace_id(span_context.trace_id)
    return fields
