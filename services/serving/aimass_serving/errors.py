"""The error tree of aimass. Knows no gRPC: `interceptors.errors` maps each `reason` to a status code, once.

    AimassError
    ├── InvalidFields        INVALID_FIELD        one or more fields outside their documented range
    │   └── InvalidField                          one field: expected, got
    ├── InputTooLong         INPUT_TOO_LONG       more tokens than fit
    ├── MalformedMessage     MALFORMED_MESSAGE    bytes that are not what their type says
    ├── MessageTooLarge      MESSAGE_TOO_LARGE    more bytes than the server takes
    ├── ModelNotFound        MODEL_NOT_FOUND
    ├── AdapterNotFound      ADAPTER_NOT_FOUND    the model has no adapter of that name
    ├── ModelNotReady        MODEL_NOT_READY
    ├── WrongTask            WRONG_TASK
    ├── ModelFailed          MODEL_FAILED         the graph failed or gave values that are not numbers
    ├── Overloaded           OVERLOADED           an answer, not a fault: carries when to come back
    ├── DeadlineExceeded     DEADLINE_EXCEEDED
    ├── Draining             DRAINING
    ├── Unauthenticated      UNAUTHENTICATED
    ├── BadBundle            BAD_BUNDLE           missing, altered, unverified or escaping files
    ├── DeviceUnavailable    DEVICE_UNAVAILABLE   asked for CUDA, there is none
    └── StartFailure                              why a service did not start; never sent to a caller
        ├── BadConfig                             a setting that is unknown or has no meaning
        ├── StoreUnavailable                      cannot be listed
        ├── NothingToServe                        the store is missing, empty or holds other tasks only
        ├── NoModelLoaded                         every model failed to load
        └── PortUnavailable                       in use, or not allowed

Constructors take facts and build the message: what was expected, what was got, what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

MAX_SHOWN_CHARS = 80


def shown(value: object) -> str:
    """Return a short `repr` of a caller's value, fit for an error message."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 1] + "…"


class AimassError(Exception):
    """Root of every error aimass raises on purpose."""

    reason: ClassVar[str] = "INTERNAL"
    """Stable name of the cause: an `ErrorReason` of the protos without its prefix."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One refused field: its path in the request, and what was expected and got."""

    field: str
    description: str


class InvalidFields(AimassError):
    """One or more fields are outside their documented range or form."""

    reason = "INVALID_FIELD"

    def __init__(self, violations: Iterable[Violation]) -> None:
        self.violations: Sequence[Violation] = tuple(violations)
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in self.violations))


class InvalidField(InvalidFields):
    """One field is outside its documented range or form."""

    def __init__(self, field: str, *, expected: str, got: object) -> None:
        super().__init__([Violation(field, f"expected {expected}, got {shown(got)}")])


class InputTooLong(AimassError):
    """A prompt or text has more tokens than fit."""

    reason = "INPUT_TOO_LONG"

    def __init__(self, field: str, *, num_tokens: int, max_tokens: int) -> None:
        self.field = field
        self.description = f"expected at most {max_tokens} tokens, got {num_tokens}"
        super().__init__(f"{field}: {self.description}")


class MalformedMessage(AimassError):
    """The bytes of a message are not what its type says."""

    reason = "MALFORMED_MESSAGE"

    def __init__(self, message_type: str, *, detail: str) -> None:
        super().__init__(
            f"expected a {message_type} with valid UTF-8 text, got bytes that do not parse: {detail}"
        )


class MessageTooLarge(AimassError):
    """A message has more bytes than the server takes."""

    reason = "MESSAGE_TOO_LARGE"

    def __init__(self, message_type: str, *, num_bytes: int, max_bytes: int) -> None:
        super().__init__(
            f"larger than max: expected a {message_type} of at most {max_bytes} bytes, got {num_bytes}"
        )


class ModelNotFound(AimassError):
    """No such model, or no such version, is served here."""

    reason = "MODEL_NOT_FOUND"

    def __init__(self, model: str, *, available: Iterable[str]) -> None:
        names = ", ".join(sorted(available)) or "none"
        super().__init__(f"model {shown(model)} is not served here; available: {names}")


class AdapterNotFound(AimassError):
    """The model has no adapter of that name."""

    reason = "ADAPTER_NOT_FOUND"

    def __init__(self, adapter: str, *, model: str, available: Iterable[str]) -> None:
        names = ", ".join(sorted(available))
        super().__init__(f"model {shown(model)} has no adapter {shown(adapter)}; available: {names}")


class ModelNotReady(AimassError):
    """The model is loading or failed to load."""

    reason = "MODEL_NOT_READY"

    def __init__(self, model: str, *, state: str, detail: str = "") -> None:
        super().__init__(f"model {shown(model)} is {state}" + (f": {detail}" if detail else ""))


class WrongTask(AimassError):
    """The model serves another task."""

    reason = "WRONG_TASK"

    def __init__(self, model: str, *, expected: str, got: str) -> None:
        super().__init__(f"model {shown(model)}: expected a model for {expected}, got one for {got}")


class ModelFailed(AimassError):
    """The graph failed, or gave values that are not numbers."""

    reason = "MODEL_FAILED"

    def __init__(self, model: str, *, detail: str) -> None:
        super().__init__(f"model {shown(model)} failed: {detail}")


class Overloaded(AimassError):
    """The queue is full; come back after `retry_after_s`."""

    reason = "OVERLOADED"

    def __init__(self, *, retry_after_s: float, detail: str) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"{detail}; retry in {retry_after_s:.1f} s")


class DeadlineExceeded(AimassError):
    """The deadline has passed, or would pass before the work could be done."""

    reason = "DEADLINE_EXCEEDED"

    def __init__(self, *, phase: str) -> None:
        super().__init__(f"the call's deadline passed during: {phase}")


class Draining(AimassError):
    """The server is shutting down and takes no new work."""

    reason = "DRAINING"

    def __init__(self) -> None:
        super().__init__("the server is shutting down; retry elsewhere")


class Unauthenticated(AimassError):
    """The caller has no valid credentials."""

    reason = "UNAUTHENTICATED"

    def __init__(self, *, detail: str) -> None:
        super().__init__(detail)


class BadBundle(AimassError):
    """A bundle is missing files, was altered, was never verified, or points outside its own folder."""

    reason = "BAD_BUNDLE"

    def __init__(self, bundle: str, *, detail: str) -> None:
        super().__init__(f"bundle {bundle}: {detail}")


class DeviceUnavailable(AimassError):
    """The asked-for device is not available. Never answered by falling back in silence."""

    reason = "DEVICE_UNAVAILABLE"

    def __init__(self, device: str, *, available: Iterable[str]) -> None:
        super().__init__(
            f"device {device!r} is not available; execution providers here: {', '.join(available)}"
        )


class StartFailure(AimassError):
    """The service could not start. One line for the operator; never sent to a caller."""


class StoreUnavailable(StartFailure):
    """The store cannot be listed."""

    def __init__(self, store: str, *, detail: str) -> None:
        super().__init__(f"store {store!r} cannot be read: {detail}")


class BadConfig(StartFailure):
    """A setting is unknown, or its value has no meaning."""

    def __init__(self, setting: str, *, expected: str, got: object) -> None:
        super().__init__(f"{setting}: expected {expected}, got {shown(got)}")


class NothingToServe(StartFailure):
    """The store is missing, empty, or holds no model for this service's task."""

    def __init__(self, store: str, *, task: str, available: Iterable[str]) -> None:
        names = ", ".join(sorted(available)) or "nothing"
        super().__init__(
            f"store {store!r} holds no model for {task} (it holds: {names}); "
            "export one with `aimass export`, or name another store with --store"
        )


class NoModelLoaded(StartFailure):
    """Every model failed to load."""

    def __init__(self, failures: Iterable[tuple[str, str]]) -> None:
        super().__init__("no model could be loaded: " + "; ".join(f"{m}: {d}" for m, d in failures))


class PortUnavailable(StartFailure):
    """The address cannot be listened on: another process has it, or it is not allowed."""

    def __init__(self, host: str, port: int, *, detail: str) -> None:
        self.port = port
        super().__init__(f"cannot listen on {host}, port {port}: {detail}; choose another with --port")
