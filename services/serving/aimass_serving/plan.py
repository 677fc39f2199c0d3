"""What makes a service this one: its name, its task, how it loads a model and which servicers it adds.

Everything else about a service is shared (`lifecycle`, `service`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
from aimass.model.v1.manifest_pb2 import Task

from aimass_serving.bundle import Bundle
from aimass_serving.compute import ComputePermit
from aimass_serving.registry import E, ModelRegistry
from aimass_serving.session import SessionConfig

C = TypeVar("C")

DEFAULT_MAX_RECEIVE_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class LoadContext:
    """What a service needs beside the bundle to load a model."""

    session_config: SessionConfig
    permit: ComputePermit
    """Held while a graph runs. One for all engines of the process on the CPU."""
    extra: tuple[Any, ...] = ()
    """Instances of the plan's config classes."""

    def config(self, kind: type[C]) -> C:
        """Return the settings of this class, one of the plan's `configs`; its defaults when not given."""
        return next((config for config in self.extra if isinstance(config, kind)), None) or kind()


@dataclass(frozen=True, slots=True)
class ServicePlan(Generic[E]):
    """What makes a service this one: everything else is shared."""

    name: str
    """Short name: `aimass serve <name>`, `AIMASS_<NAME>_*`."""
    default_port: int
    task: Task.ValueType
    """It serves the store's models for this task."""
    load: Callable[[Bundle, LoadContext], E]
    """Make an engine and replay the golden inputs. Blocking; runs in a thread. Raises on any doubt."""
    register: Callable[[grpc.aio.Server, ModelRegistry[E]], Sequence[str]]
    """Add the servicers; return their full names, for health and reflection."""
    configs: tuple[type[Any], ...] = ()
    """Frozen dataclasses of the service's own settings, filled from `AIMASS_<NAME>_<FIELD>`."""
    further_tasks: tuple[Task.ValueType, ...] = ()
    """It serves the store's models for these tasks too; servicers ask the registry for the task they need."""
    max_receive_bytes: int = DEFAULT_MAX_RECEIVE_BYTES
    """Largest request message, unless the operator says otherwise."""

    @property
    def tasks(self) -> tuple[Task.ValueType, ...]:
        """Every task it serves models for."""
        return (self.task, *self.further_tasks)
