"""A voice's bundle to an engine that speaks, checked against its golden audio. Must not know the wire."""

from __future__ import annotations

from aimass_serving.bundle import Bundle
from aimass_serving.errors import BadBundle
from aimass_serving.service import LoadContext

from aimass_speech.config import SpeechConfig
from aimass_speech.synthesis.bundled_voice import open_bundled_voice
from aimass_speech.synthesis.engine import SynthesisEngine
from aimass_speech.synthesis.speaking import VoiceParts


def load_synthesizer(bundle: Bundle, context: LoadContext) -> SynthesisEngine:
    """Return a started engine. Blocking. Raises `BadBundle` when the golden audio does not come out."""
    if not bundle.manifest.HasField("speech_synthesis"):
        raise BadBundle(bundle.ref, detail="a voice needs `speech_synthesis`")
    parts = VoiceParts(*open_bundled_voice(bundle, context.session_config))
    engine = SynthesisEngine(
        parts,
        bundle.manifest.speech_synthesis,
        model=bundle.manifest.name,
        config=context.config(SpeechConfig),
        permit=context.permit,
    )
    engine.start()
    return engine
