"""A bundle of any task of speech to its engine: one line for each task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from aimass.model.v1.manifest_pb2 import (
    TASK_SPEECH_RECOGNITION,
    TASK_SPEECH_SYNTHESIS,
    TASK_VOICE_ACTIVITY_DETECTION,
    Task,
)
from aimass_serving.bundle import Bundle
from aimass_serving.registry import HostedEngine
from aimass_serving.service import LoadContext

from aimass_speech.detector_loader import load_detector
from aimass_speech.recognition_loader import load_recognizer
from aimass_speech.synthesis.loader import load_synthesizer

_LOADERS: Mapping[Task.ValueType, Callable[[Bundle, LoadContext], HostedEngine]] = {
    TASK_SPEECH_RECOGNITION: load_recognizer,
    TASK_VOICE_ACTIVITY_DETECTION: load_detector,
    TASK_SPEECH_SYNTHESIS: load_synthesizer,
}
TASKS = tuple(_LOADERS)
"""What this service serves models for."""


def load_engine(bundle: Bundle, context: LoadContext) -> HostedEngine:
    """Return a started engine. Blocking. Raises `BadBundle`."""
    # Models of speech are several graphs, each with threads of its own, that run in turn.
    session_config = replace(context.session_config, spins_between_runs=False)
    return _LOADERS[bundle.manifest.task](bundle, replace(context, session_config=session_config))
