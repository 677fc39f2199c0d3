"""One call on texts, whatever its task: finds the engine that a request names, asks it, says what that used.

Must not know any task.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from aimass.model.v1.manifest_pb2 import Task
from aimass_serving.errors import WrongTask
from aimass_serving.registry import ModelRegistry, ServedModel, task_name
from aimass_serving.request_context import request_context

from aimass_encoder.messages import TextReply, annotate_call
from aimass_encoder.task_engine import TaskEngine

Engine = TypeVar("Engine", bound=TaskEngine)
Reply = TypeVar("Reply", bound=TextReply)


class ModelRequest(Protocol):
    """A message that names a model."""

    @property
    def model(self) -> str:
        """Name or name@version."""

    @property
    def request_id(self) -> str:
        """The caller's name for the request."""


@dataclass(frozen=True, slots=True)
class TaskCalls(Generic[Engine]):
    """The calls of one kind."""

    operation: str
    """Name of the operation on spans."""
    task: Task.ValueType
    engine: type[Engine]

    async def answer(
        self,
        registry: ModelRegistry[TaskEngine],
        request: ModelRequest,
        context: Any,
        ask: Callable[[Engine, float | None], Awaitable[Reply]],
    ) -> tuple[Reply, ServedModel[TaskEngine]]:
        """Return what `ask` gets from the engine, which it is given with the call's deadline, and the model.

        Raises `ModelNotFound`, `ModelNotReady`, `WrongTask` and what `ask` raises.
        """
        call = request_context(context, request.request_id)
        served, engine = served_engine(registry, request.model, self.task, self.engine)
        reply = await ask(engine, call.deadline_s)
        annotate_call(self.operation, served.name, reply.num_tokens)
        return reply, served


def served_engine(
    registry: ModelRegistry[TaskEngine], model: str, task: Task.ValueType, kind: type[Engine]
) -> tuple[ServedModel[TaskEngine], Engine]:
    """Return the ready model and its engine. Raises `ModelNotFound`, `ModelNotReady`, `WrongTask`."""
    served = registry.get(model, task=task)
    engine = served.engine
    if not isinstance(engine, kind):  # a bundle that did not say its task when the store was listed
        raise WrongTask(model, expected=task_name(task), got="another task")
    return served, engine
