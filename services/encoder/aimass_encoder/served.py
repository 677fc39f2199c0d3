"""Finds the engine that a request names and makes sure that it serves the request's task."""

from __future__ import annotations

from typing import TypeVar

from aimass.model.v1.manifest_pb2 import Task
from aimass_serving.errors import WrongTask
from aimass_serving.registry import ModelRegistry, ServedModel, task_name

from aimass_encoder.task_engine import TaskEngine

Engine = TypeVar("Engine", bound=TaskEngine)


def served_engine(
    registry: ModelRegistry[TaskEngine], model: str, task: Task.ValueType, kind: type[Engine]
) -> tuple[ServedModel[TaskEngine], Engine]:
    """Return the ready model and its engine. Raises `ModelNotFound`, `ModelNotReady`, `WrongTask`."""
    served = registry.get(model, task=task)
    engine = served.engine
    if not isinstance(engine, kind):  # a bundle that did not say its task when the store was listed
        raise WrongTask(model, expected=task_name(task), got="another task")
    return served, engine
