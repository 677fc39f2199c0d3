"""One line for people from what a call raised: reason, field, and what to do. Makes no calls."""

from __future__ import annotations

from aimass.errors import ModelNotReady, ServerFault, Unavailable

SERVICE_OF_COMMAND = {
    "generate": "generation",
    "chat": "generation",
    "embed": "encoder",
    "embed-sparse": "encoder",
    "classify": "encoder",
    "entities": "encoder",
    "fill-mask": "encoder",
    "answer": "encoder",
    "transcribe": "speech",
}


def failure_line(error: Exception, *, command: str = "") -> str:
    """Return the line to print on standard error."""
    advice = _advice(error, command)
    return f"aimass: {_one_line(error)}" + (f" ({advice})" if advice else "")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _advice(error: Exception, command: str) -> str:
    service = SERVICE_OF_COMMAND.get(command)
    if isinstance(error, ModelNotReady):
        return "`aimass status` shows its state"
    if isinstance(error, Unavailable) and service:
        return f"start the service with: aimass serve {service}, or all with: aimass up"
    if isinstance(error, ServerFault) and error.request_id:
        return f"request id {error.request_id}"
    return ""
