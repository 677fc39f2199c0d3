"""The models of a service: loads bundles in threads, knows the state of each, finds the one a request names.

Must not know how a model is loaded (the service's `load`) nor the wire.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from aimass.model.v1.manifest_pb2 import TASK_UNSPECIFIED, Task
from aimass.model.v1.model_service_pb2 import ModelLimits

from aimass_serving.bundle import Bundle
from aimass_serving.config import StoreConfig
from aimass_serving.errors import AimassError, ModelNotFound, ModelNotReady, NothingToServe, WrongTask
from aimass_serving.store import BundleRef, ModelStore

logger = logging.getLogger(__name__)


class HostedEngine(Protocol):
    """What the registry must know of an engine, whatever it does."""

    @property
    def limits(self) -> ModelLimits:
        """What a request must stay within."""

    @property
    def execution_provider(self) -> str:
        """ONNX Runtime execution provider that runs the model."""

    async def drain(self) -> None:
        """Take no new work and return when all work is done."""

    def close(self) -> None:
        """Stop at once and free everything. Blocking; may be called twice."""


A = TypeVar("A")
R = TypeVar("R")
E = TypeVar("E", bound=HostedEngine)


class ModelState(StrEnum):
    """Where a model stands."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


class ServedModel(Generic[E]):
    """One version of a model. Changed by its registry only, on the event loop."""

    def __init__(self, ref: BundleRef) -> None:
        self.ref = ref
        self.state = ModelState.LOADING
        self.detail = ""
        """Why it failed, or which check was skipped on the operator's word."""
        self.bundle: Bundle | None = None
        """None until it has been read and checked."""
        self._engine: E | None = None

    @property
    def name(self) -> str:
        """Name to use in requests."""
        return self.ref.name

    @property
    def version(self) -> str:
        """Version of the bundle."""
        return self.ref.version

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests."""
        return self.state is ModelState.READY

    @property
    def engine(self) -> E:
        """The engine. Raises `ModelNotReady` while there is none."""
        if self._engine is None:
            raise ModelNotReady(str(self.ref), state=self.state, detail=self.detail)
        return self._engine

    def become_ready(self, bundle: Bundle, engine: E) -> None:
        """Take requests from now on."""
        self.bundle, self._engine = bundle, engine
        self.detail = "" if bundle.is_verified else "not verified: " + "; ".join(bundle.skipped_checks)
        self.state = ModelState.READY

    def fail(self, detail: str) -> None:
        """Take no requests; `detail` says why."""
        self.state, self.detail = ModelState.FAILED, detail


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What a store holds, seen by one service."""

    chosen: tuple[BundleRef, ...]
    """To be served, by name, then newest version first."""
    other_tasks: tuple[BundleRef, ...]
    """Models for other services."""


def choose_models(store: ModelStore, tasks: Sequence[Task.ValueType], config: StoreConfig) -> Catalogue:
    """Choose what to serve of the models for these tasks. Blocking.

    The newest `max_versions` of each name, or exactly the models the configuration names. A bundle whose
    manifest cannot be read may be for any task, so every service lists it, as failed.
    Raises `NothingToServe`, `ModelNotFound`, `WrongTask`.
    """
    refs = store.list()
    mine = [ref for ref in refs if ref.task in (*tasks, TASK_UNSPECIFIED)]
    others = tuple(ref for ref in refs if ref.task not in (*tasks, TASK_UNSPECIFIED))
    if config.models:
        chosen = [_named(model, mine, others=others, tasks=tasks) for model in config.models]
    else:
        chosen = [ref for ref in mine if _is_recent(ref, mine, config.max_versions)]
    if not chosen:
        raise NothingToServe(store.url, task=task_names(tasks), available=[str(ref) for ref in refs])
    return Catalogue(tuple(dict.fromkeys(chosen)), others)


def task_name(task: Task.ValueType) -> str:
    """Return a task's name as people write it: `text generation`."""
    return Task.Name(task).removeprefix("TASK_").replace("_", " ").lower()


def task_names(tasks: Sequence[Task.ValueType]) -> str:
    """Return the names of tasks as a choice: `speech recognition or voice activity detection`."""
    return " or ".join(task_name(task) for task in tasks)


class ModelRegistry(Generic[E]):
    """All models of a service. Lives on the event loop; loading runs in threads."""

    def __init__(self, catalogue: Catalogue, tasks: Sequence[Task.ValueType]) -> None:
        self._models: list[ServedModel[E]] = [ServedModel(ref) for ref in catalogue.chosen]
        self._other_tasks = {model: ref for ref in catalogue.other_tasks for model in (ref.name, str(ref))}
        self._tasks = tuple(tasks)

    def models(self) -> list[ServedModel[E]]:
        """Return every model, ready or not: by name, then newest version first."""
        return list(self._models)

    def get(self, model: str, *, task: Task.ValueType | None = None) -> ServedModel[E]:
        """Return the ready model of that `name` (its newest ready version) or `name@version`.

        With `task`, a model of another task is refused. Raises `ModelNotFound`, `ModelNotReady`, `WrongTask`.
        """
        found = self.find(model)
        if task is not None and found.ref.task not in (task, TASK_UNSPECIFIED):
            raise WrongTask(model, expected=task_name(task), got=task_name(found.ref.task))
        if not found.is_ready:
            raise ModelNotReady(model, state=found.state, detail=found.detail)
        return found

    def find(self, model: str) -> ServedModel[E]:
        """Return the model of that name as `get` does, ready or not. Raises `ModelNotFound`, `WrongTask`."""
        matching = [served for served in self._models if model in (served.name, str(served.ref))]
        if matching:
            return next((served for served in matching if served.is_ready), matching[0])
        if other := self._other_tasks.get(model):
            raise WrongTask(model, expected=task_names(self._tasks), got=task_name(other.task))
        raise ModelNotFound(model, available=[str(served.ref) for served in self._models])

    async def load(
        self,
        open_bundle: Callable[[BundleRef], Bundle],
        load_engine: Callable[[Bundle], E],
        *,
        on_change: Callable[[ServedModel[E]], Awaitable[None]],
    ) -> None:
        """Load every model, one after the other, in a thread; one that fails does not stop the others.

        One at a time, because each load uses all cores and the most memory it will ever need.
        """
        for served in self._models:
            await self._load_one(served, open_bundle, load_engine)
            await on_change(served)

    async def close(self, grace_s: float) -> None:
        """Let every engine end its work, for at most `grace_s` seconds, then stop it and free its memory."""
        engines = [served.engine for served in self._models if served.is_ready]
        if engines:
            await asyncio.wait([asyncio.ensure_future(engine.drain()) for engine in engines], timeout=grace_s)
        for engine in engines:
            await asyncio.to_thread(engine.close)

    async def _load_one(
        self,
        served: ServedModel[E],
        open_bundle: Callable[[BundleRef], Bundle],
        load_engine: Callable[[Bundle], E],
    ) -> None:
        try:
            served.bundle = await _in_daemon_thread(open_bundle, served.ref)
            served.become_ready(served.bundle, await _in_daemon_thread(load_engine, served.bundle))
        except AimassError as error:
            served.fail(str(error))
        except Exception as error:
            # A broken graph raises whatever the runtime likes; its text may hold paths: only the log has it.
            logger.error("model %s could not be loaded: %r", served.ref, error)
            logger.debug("model %s", served.ref, exc_info=True)
            served.fail(f"loading failed with {type(error).__name__}; the server's log has the cause")


def _named(
    model: str, mine: Sequence[BundleRef], *, others: Sequence[BundleRef], tasks: Sequence[Task.ValueType]
) -> BundleRef:
    for ref in mine:
        if model in (ref.name, str(ref)):
            return ref
    for ref in others:
        if model in (ref.name, str(ref)):
            raise WrongTask(model, expected=task_names(tasks), got=task_name(ref.task))
    raise ModelNotFound(model, available=[str(ref) for ref in mine])


def _is_recent(ref: BundleRef, refs: Sequence[BundleRef], max_versions: int) -> bool:
    newer = [other for other in refs if other.name == ref.name and int(other.version) > int(ref.version)]
    return not max_versions or len(newer) < max_versions


async def _in_daemon_thread(function: Callable[[A], R], argument: A) -> R:
    """Run a blocking function in a thread that does not keep the process alive: a load may take minutes."""
    outcome: Future[R] = Future()
    outcome.set_running_or_notify_cancel()  # a waiter that is cancelled leaves the thread to finish alone

    def run() -> None:
        try:
            outcome.set_result(function(argument))
        except Exception as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="model-load", daemon=True).start()
    return await asyncio.wrap_future(outcome)
