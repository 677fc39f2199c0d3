"""Finds the engine a request names, of the kind its RPC needs."""

from __future__ import annotations

from typing import TypeVar

from aimass.model.v1.manifest_pb2 import (
    TASK_SPEECH_RECOGNITION,
    TASK_SPEECH_SYNTHESIS,
    TASK_VOICE_ACTIVITY_DETECTION,
    Task,
)
from aimass_serving.errors import InvalidField, ModelNotFound
from aimass_serving.registry import HostedEngine, ModelRegistry, ServedModel, task_name

from aimass_speech.detector import VoiceActivityEngine
from aimass_speech.recognizer import RecognitionEngine
from aimass_speech.synthesis.engine import SynthesisEngine

SpeechRegistry = ModelRegistry[HostedEngine]
K = TypeVar("K", bound=HostedEngine)


def engine_of(served: ServedModel[HostedEngine], kind: type[K]) -> K:
    """Return the engine of a model whose task was checked."""
    engine = served.engine
    assert isinstance(engine, kind), "the task decides the kind of engine"
    return engine


def detector_named(registry: SpeechRegistry, model: str, *, field: str = "model") -> VoiceActivityEngine:
    """Return the named detector, or the only one when the name is empty.

    Raises `ModelNotFound`, `ModelNotReady`, `WrongTask`, and `InvalidField` when there are several.
    """
    name = model or _only_name(registry, TASK_VOICE_ACTIVITY_DETECTION, field)
    return engine_of(registry.get(name, task=TASK_VOICE_ACTIVITY_DETECTION), VoiceActivityEngine)


def detector_for(registry: SpeechRegistry, *, is_wanted: bool | None) -> VoiceActivityEngine | None:
    """Return a detector for a recogniser; None when the caller wants none, or left it open and there is none.

    Raises `ModelNotFound` when one is wanted and there is none.
    """
    if is_wanted is False:
        return None
    ready = [m for m in registry.models() if m.ref.task == TASK_VOICE_ACTIVITY_DETECTION and m.is_ready]
    if ready:
        return engine_of(ready[0], VoiceActivityEngine)
    if is_wanted:
        raise ModelNotFound("for voice activity detection", available=[])
    return None


def recognizer_named(registry: SpeechRegistry, model: str) -> RecognitionEngine:
    """Return the named recogniser. Raises `ModelNotFound`, `ModelNotReady`, `WrongTask`."""
    return engine_of(registry.get(model, task=TASK_SPEECH_RECOGNITION), RecognitionEngine)


def voice_named(registry: SpeechRegistry, voice: str, *, field: str = "voice") -> SynthesisEngine:
    """Return the named voice, or the only one when the name is empty.

    Raises `ModelNotFound`, `ModelNotReady`, `WrongTask`, and `InvalidField` when there are several.
    """
    name = voice or _only_name(registry, TASK_SPEECH_SYNTHESIS, field)
    return engine_of(registry.get(name, task=TASK_SPEECH_SYNTHESIS), SynthesisEngine)


def voices(registry: SpeechRegistry) -> list[ServedModel[HostedEngine]]:
    """Return the voices that are ready."""
    return [m for m in registry.models() if m.ref.task == TASK_SPEECH_SYNTHESIS and m.is_ready]


def _only_name(registry: SpeechRegistry, task: Task.ValueType, field: str) -> str:
    names = sorted({served.name for served in registry.models() if served.ref.task == task})
    if not names:
        raise ModelNotFound(f"for {task_name(task)}", available=[])
    if len(names) > 1:
        raise InvalidField(field, expected=f"one of: {', '.join(names)}", got="none")
    return names[0]
