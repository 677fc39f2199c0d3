"""A bundle for voice activity detection to an engine that takes audio, checked against its golden frames.

Must not know the wire.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from aimass_serving.bundle import Bundle
from aimass_serving.errors import BadBundle
from aimass_serving.service import LoadContext
from aimass_serving.session import open_session

from aimass_speech.config import SpeechConfig
from aimass_speech.detector import VoiceActivityEngine
from aimass_speech.vad import DetectorShape, VoiceActivityRunner

FRAME_ROLE, SEQUENCE_ROLE = "detector", "sequence_detector"


def load_detector(bundle: Bundle, context: LoadContext) -> VoiceActivityEngine:
    """Return a started engine. Blocking. Raises `BadBundle` when the golden probabilities do not come out."""
    # A detector is so small that threads inside its operators only cost.
    config = replace(context.session_config, num_threads=1)
    runner = VoiceActivityRunner(
        open_session(bundle.graph(FRAME_ROLE), config),
        open_session(bundle.graph(SEQUENCE_ROLE), config),
        detector_shape(bundle),
    )
    replay_golden(runner, bundle)
    engine = VoiceActivityEngine(
        runner, model=bundle.manifest.name, config=context.config(SpeechConfig), permit=context.permit
    )
    engine.start()
    return engine


def detector_shape(bundle: Bundle) -> DetectorShape:
    """Return what the manifest says of a detector. Raises `BadBundle` where it says too little."""
    spec = bundle.manifest.voice_activity
    if min(spec.sample_rate_hz, spec.frame_samples, spec.context_samples, spec.state_size) < 1:
        raise BadBundle(bundle.ref, detail="expected voice_activity with rate, frame, context and state size")
    return DetectorShape(spec.sample_rate_hz, spec.frame_samples, spec.context_samples, spec.state_size)


def replay_golden(runner: VoiceActivityRunner, bundle: Bundle) -> None:
    """Run the frames that the export recorded through both graphs. Raises `BadBundle` on a difference."""
    golden = bundle.golden()
    try:
        frames, expected = golden["frames"], golden["probabilities"]
        tolerance = float(golden["tolerance"])
    except KeyError as error:
        raise BadBundle(bundle.ref, detail=f"golden.npz has no array named {error}") from error
    together, _ = runner.sequence(frames, runner.new_state())
    alone, states = np.zeros(len(frames), np.float32), runner.new_state()[:, None]
    for index in range(len(frames)):
        alone[index : index + 1], states = runner.step(frames[index : index + 1], states)
    difference = max(float(np.abs(got - expected).max()) for got in (together, alone))
    if not difference <= tolerance:  # NaN is not
        detail = f"golden probabilities differ by {difference:.3g}, expected at most {tolerance:.3g}"
        raise BadBundle(bundle.ref, detail=detail)
