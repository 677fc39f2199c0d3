"""Settings: frozen dataclasses filled from `AIMASS_*` variables, which refuse names nobody declared.

A setting of this module is `AIMASS_<FIELD>`. A setting of a service is `AIMASS_<SERVICE>_<FIELD>`: the
service contributes its config classes through its plan. Must not know what the settings do.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from aimass_serving.errors import BadConfig
from aimass_serving.session import SessionConfig

PREFIX = "AIMASS_"
CLIENT_SECTION = "CLIENT"
"""Names `AIMASS_CLIENT_*` belong to the client: a service leaves them alone."""

C = TypeVar("C")


class LogFormat(StrEnum):
    """How log lines look: `TEXT` for people (logfmt), `JSON` for machines."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Which bundles are served."""

    store: str = "models"
    """Folder or fsspec URL of the model store."""
    models: tuple[str, ...] = ()
    """Serve only these: `name` (its newest version) or `name@version`. Empty serves all of the right task."""
    max_versions: int = 2
    """How many of the newest versions of each name to serve when `models` is empty; 0 serves all."""
    cache: Path | None = None
    """Folder for copies of remote bundles; `~/.cache/aimass` when unset."""
    allow_unverified: bool = False
    """Serve bundles with wrong checksums or without parity, and say so in their metadata."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The gRPC server: address, limits, keepalive, transport security."""

    host: str = "127.0.0.1"
    """Address to listen on. `0.0.0.0` inside a container."""
    port: int | None = None
    """Port to listen on; 0 takes a free one. Unset: the service's own default."""
    reflection: bool = False
    """Answer reflection: which services and messages exist. For development."""
    max_receive_bytes: int | None = None
    """Largest request message; a larger one fails with RESOURCE_EXHAUSTED before it is read. Unset: the
    service's own default, 8 MiB for most."""
    max_send_bytes: int = 64 * 2**20
    """Largest response message."""
    max_metadata_bytes: int = 16 * 2**10
    """Largest metadata of a call; a larger one fails with RESOURCE_EXHAUSTED."""
    max_concurrent_streams: int = 256
    """Calls open at once on one connection; more wait at the client."""
    keepalive_time_s: float = 30.0
    """Ping a connection that was silent this long."""
    keepalive_timeout_s: float = 10.0
    """Close it when the ping is not answered within this time."""
    min_client_ping_interval_s: float = 10.0
    """Clients that ping more often than this are sent away (ENHANCE_YOUR_CALM)."""
    max_connection_age_s: float = 0.0
    """Ask clients to reconnect after this time, so that load spreads over new servers; 0 never."""
    max_connection_age_grace_s: float = 60.0
    """Calls still running this long after that are cut."""
    tls_cert: Path | None = None
    """PEM certificate chain. Set together with `tls_key`; files are read again when they change."""
    tls_key: Path | None = None
    """PEM private key."""
    tls_client_ca: Path | None = None
    """PEM certificates of those who may sign clients: clients must then show a certificate (mTLS)."""


@dataclass(frozen=True, slots=True)
class AdmissionConfig:
    """Who may call, and how many at once."""

    api_keys: Path | None = None
    """File with one lower-case SHA-256 of an API key a line. Unset: calls need no key."""
    max_concurrent_requests: int = 1024
    """Calls in progress at once, over all connections; more are refused with OVERLOADED."""
    overload_retry_after_s: float = 1.0
    """When a refused caller is told to come back."""


@dataclass(frozen=True, slots=True)
class LifecycleConfig:
    """How a service ends."""

    drain_delay_s: float = 2.0
    """After SIGTERM: how long health says NOT_SERVING before new calls are refused. At least one interval of
    the load balancer's health checks. Skipped after Ctrl-C."""
    drain_grace_s: float = 30.0
    """How long calls in progress may take to finish before they are cut."""


@dataclass(frozen=True, slots=True)
class LogConfig:
    """What is logged, to standard error."""

    log_level: str = "info"
    """`debug`, `info`, `warning` or `error`."""
    log_format: LogFormat = LogFormat.TEXT
    """`text` or `json`."""


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """All settings of one service process."""

    store: StoreConfig = field(default_factory=StoreConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    lifecycle: LifecycleConfig = field(default_factory=LifecycleConfig)
    log: LogConfig = field(default_factory=LogConfig)
    session: SessionConfig = field(default_factory=SessionConfig)
    extra: tuple[Any, ...] = ()
    """The service's own configs: one instance of each class its plan declares."""

    def override(self, settings: Mapping[str, Any]) -> ServiceConfig:
        """Return a copy with settings replaced by name, whichever section has them. Raises `BadConfig`."""
        changed = self
        for name, value in settings.items():
            changed = changed._with(name, value)
        return changed

    def _with(self, name: str, value: Any) -> ServiceConfig:
        for section in _sections(self):
            config = getattr(self, section)
            if name in {f.name for f in fields(config)}:
                return replace(self, **{section: replace(config, **{name: value})})
        if name == "extra":
            return replace(self, extra=tuple(value))
        raise BadConfig(name, expected="the name of a setting", got=name)


def from_env(
    environ: Mapping[str, str],
    *,
    service: str = "",
    configs: Iterable[type[Any]] = (),
    other_services: Iterable[str] = (),
) -> ServiceConfig:
    """Fill every section from `AIMASS_*` variables. `configs` are the service's own classes.

    Names of other services and of the client are left to them. Raises `BadConfig` for a name nobody declared
    and for a value that does not parse.
    """
    sections = {name: type(getattr(ServiceConfig(), name)) for name in _sections(ServiceConfig())}
    own = f"{PREFIX}{service.upper()}_"
    known = {PREFIX + n for c in sections.values() for n in _names(c)} | {
        own + n for c in configs for n in _names(c)
    }
    _refuse_unknown(environ, known, [CLIENT_SECTION, *(s.upper() for s in other_services if s != service)])
    filled = {name: fill(config, environ, prefix=PREFIX) for name, config in sections.items()}
    return ServiceConfig(**filled, extra=tuple(fill(config, environ, prefix=own) for config in configs))


def fill(config: type[C], environ: Mapping[str, str], *, prefix: str) -> C:
    """Return `config` with each field taken from `<prefix><FIELD>` where that is set. Raises `BadConfig`."""
    hints = get_type_hints(config)
    given = {
        name.lower(): _parse(prefix + name, environ[prefix + name], hints[name.lower()])
        for name in _names(config)
        if prefix + name in environ
    }
    try:
        return config(**given)
    except ValueError as error:
        raise BadConfig(f"{prefix}*", expected="settings that go together", got=str(error)) from error


def _refuse_unknown(environ: Mapping[str, str], known: set[str], foreign: Iterable[str]) -> None:
    foreign_prefixes = tuple(f"{PREFIX}{section}_" for section in foreign)
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known and not name.startswith(foreign_prefixes):
            nearest = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0)[0]
            raise BadConfig("environment", expected=f"known names such as {nearest}", got=name)


def _sections(config: ServiceConfig) -> list[str]:
    return [f.name for f in fields(config) if is_dataclass(getattr(config, f.name))]


def _names(config: type[Any]) -> list[str]:
    return [f.name.upper() for f in fields(config)]


def _parse(name: str, text: str, kind: Any) -> Any:
    expected, parser = _parser(kind)
    try:
        return parser(text)
    except (ValueError, KeyError) as error:
        raise BadConfig(name, expected=expected, got=text) from error


def _parser(kind: Any) -> tuple[str, Callable[[str], Any]]:
    """Return what a value of this type looks like, in words, and how to read it."""
    if get_origin(kind) in (types.UnionType, Union):
        return _parser(next(option for option in get_args(kind) if option is not type(None)))
    if get_origin(kind) is tuple:
        return "names separated by commas", lambda text: tuple(
            t.strip() for t in text.split(",") if t.strip()
        )
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return "one of " + ", ".join(kind), kind
    return _SCALARS[kind]


def _at_least_0(value: float) -> float:
    if not 0 <= value < float("inf"):
        raise ValueError
    return value


_BOOLS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_SCALARS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    bool: ("true or false", lambda text: _BOOLS[text.strip().lower()]),
    int: ("a whole number of at least 0", lambda text: _at_least_0(int(text))),
    float: ("a number of at least 0", lambda text: _at_least_0(float(text))),
    str: ("text", str),
    Path: ("a path", Path),
}
