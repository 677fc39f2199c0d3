"""A bundle on disk to an engine that takes requests: chooses the loader of the bundle's task.

Must not know the wire, nor what any task needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aimass.model.v1.manifest_pb2 import (
    TASK_FEATURE_CLASSIFICATION,
    TASK_IMAGE_CLASSIFICATION,
    Task,
)
from aimass_serving.adaptive_session import open_lane_session
from aimass_serving.bundle import Bundle
from aimass_serving.service import LoadContext
from aimass_serving.session import Session, SessionConfig, open_session

from aimass_encoder.embedding_loader import embedding_engine_on
from aimass_encoder.head_loader import HEAD_TASKS, head_engine_on
from aimass_encoder.images.loader import image_engine_on
from aimass_encoder.tables.loader import table_engine_on
from aimass_encoder.task_engine import TaskEngine

GRAPH_ROLE = "encoder"

Loader = Callable[[Session, Bundle, LoadContext], TaskEngine]
"""Returns an engine on an open session, not started. Raises `BadBundle`."""

LOADERS: Mapping[Task.ValueType, Loader] = {
    **dict.fromkeys(HEAD_TASKS, head_engine_on),
    TASK_IMAGE_CLASSIFICATION: image_engine_on,
    TASK_FEATURE_CLASSIFICATION: table_engine_on,
}
"""By task; embeddings are the rest."""


def load_engine(bundle: Bundle, context: LoadContext) -> TaskEngine:
    """Return a started engine. Blocking. Raises `BadBundle` when the golden outputs do not come out."""
    return engine_on(_open(bundle, context.session_config), bundle, context)


def _open(bundle: Bundle, config: SessionConfig) -> Session:
    graph = bundle.graph(GRAPH_ROLE)
    if bundle.manifest.task == TASK_FEATURE_CLASSIFICATION:  # over in microseconds: nothing to split
        return open_session(graph, config)
    return open_lane_session(graph, config)


def engine_on(session: Session, bundle: Bundle, context: LoadContext) -> TaskEngine:
    """Return a started engine that runs on an open session. Blocking; errors as `load_engine`."""
    load = LOADERS.get(bundle.manifest.task, embedding_engine_on)
    engine = load(session, bundle, context)
    engine.start()
    return engine
