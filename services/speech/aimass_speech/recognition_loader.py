"""A bundle for speech recognition to an engine that takes audio, checked against its golden tokens.

Must not know the wire.
"""

from __future__ import annotations

from aimass_decoding.cross_attention import SourceEncoder, cross_geometry_of
from aimass_decoding.golden import encoder_feeds, replay_golden
from aimass_decoding.runner import DECODER_ROLE, DecoderRunner, geometry_of, gives_every_position
from aimass_serving.bundle import Bundle
from aimass_serving.errors import BadBundle
from aimass_serving.service import LoadContext
from aimass_serving.session import Session, open_session

from aimass_speech.config import SpeechConfig
from aimass_speech.recognizer import RecognitionEngine
from aimass_speech.transcript_tokenizer import FileCodec, TranscriptTokenizer
from aimass_speech.whisper_model import WhisperModel
from aimass_speech.whisper_spec import WhisperSpec, whisper_spec
from aimass_speech.window_decoder import WindowDecoder

ENCODER_ROLE, ALIGNER_ROLE = "encoder", "aligner"


def load_recognizer(bundle: Bundle, context: LoadContext) -> RecognitionEngine:
    """Return a started engine. Blocking. Raises `BadBundle` when the golden logits do not come out."""
    config = context.config(SpeechConfig)
    spec = _spec(bundle)
    model = _model(bundle, context, spec, num_slots=config.max_slots)
    tokenizer = TranscriptTokenizer(_codec(bundle), num_text_tokens=spec.end_of_text)
    decoder = WindowDecoder(model, tokenizer, name=bundle.manifest.name, config=config, permit=context.permit)
    decoder.start()
    return RecognitionEngine(
        decoder, tokenizer, spec, config=config, execution_provider=model.execution_provider
    )


def _spec(bundle: Bundle) -> WhisperSpec:
    manifest = bundle.manifest
    if not manifest.HasField("speech_recognition") or manifest.speech_recognition.window_s < 1:
        raise BadBundle(bundle.ref, detail="a model for speech recognition needs `speech_recognition`")
    return whisper_spec(manifest.speech_recognition, max_positions=manifest.decoder.max_positions)


def _model(bundle: Bundle, context: LoadContext, spec: WhisperSpec, *, num_slots: int) -> WhisperModel:
    """Open the graphs and replay the golden window."""
    geometry = geometry_of(bundle.manifest.decoder)
    cross = cross_geometry_of(bundle.manifest.decoder)
    if cross is None:
        raise BadBundle(bundle.ref, detail="expected a decoder with cross_attention")
    if not gives_every_position(bundle.manifest):
        raise BadBundle(
            bundle.ref, detail="its decoder gives the last position's logits only: export it anew"
        )
    encoder = SourceEncoder(open_session(bundle.graph(ENCODER_ROLE), context.session_config), cross)
    session = open_session(bundle.graph(DECODER_ROLE), context.session_config)
    runner = DecoderRunner(session, geometry, max_slots=num_slots, max_len=spec.max_positions)
    golden = bundle.golden()
    (memory, *_) = encoder.encode(encoder_feeds(golden))
    replay_golden(runner, golden, bundle=bundle.ref, memory=memory)
    return WhisperModel(
        spec,
        encoder,
        runner,
        _aligner(bundle, context),
        num_slots=num_slots,
        execution_provider=session.execution_provider,
    )


def _aligner(bundle: Bundle, context: LoadContext) -> Session | None:
    if not any(graph.role == ALIGNER_ROLE for graph in bundle.manifest.graphs):
        return None
    return open_session(bundle.graph(ALIGNER_ROLE), context.session_config)


def _codec(bundle: Bundle) -> FileCodec:
    file = bundle.file(bundle.manifest.tokenizer.file)
    try:
        return FileCodec(file)
    except Exception as error:  # the library raises bare Exception
        raise BadBundle(bundle.ref, detail=f"{file.name} is not a tokeniser") from error
