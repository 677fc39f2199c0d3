"""Makes an engine of a bundle: opens its graph, tokenizer and template, and replays its golden prompt.

The only place that reads the manifest. Blocking; runs in a thread at the start of the service.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jinja2
import numpy as np
from aimass.model.v1.manifest_pb2 import (
    PRECISION_INT8,
    DecoderSpec,
    GenerationDefaults,
    Text2TextSpec,
)
from aimass_decoding.config import EngineConfig
from aimass_decoding.cross_attention import SourceEncoder, SourceMemory, cross_geometry_of
from aimass_decoding.engine import DecodingEngine
from aimass_decoding.golden import encoder_feeds
from aimass_decoding.request import MAX_BEAMS, BeamParams
from aimass_decoding.runner import DECODER_ROLE, DRAFT_ROLE, geometry_of, gives_every_position
from aimass_serving.adaptive_session import open_adaptive_session
from aimass_serving.bundle import Bundle
from aimass_serving.errors import BadBundle, InvalidFields
from aimass_serving.plan import LoadContext
from aimass_serving.session import Session, SessionConfig, TensorInfo, open_session
from numpy.typing import NDArray
from tokenizers import Tokenizer

from aimass_generation.chat_template import ChatTemplate
from aimass_generation.config import GenerationConfig
from aimass_generation.detokenizer import TextDecoder
from aimass_generation.engine import GenerationEngine
from aimass_generation.guidance import GuidanceCompiler
from aimass_generation.prompt import PromptEncoder
from aimass_generation.request import SamplingOptions, TextPrompt
from aimass_generation.resolver import ModelProfile
from aimass_generation.source_engine import SourceEngine, WholeTextDecoder

ENCODER_ROLE = "encoder"


def load_engine(bundle: Bundle, context: LoadContext) -> GenerationEngine:
    """Return a started engine whose graph has just given the numbers of its export.

    The replay runs the graph as prompts and as decode steps do, so it warms it up as well. Raises `BadBundle`
    when the numbers differ or a file does not fit, `DeviceUnavailable`.
    """
    session = open_adaptive_session(
        bundle.graph(DECODER_ROLE), context.session_config, precision=bundle.manifest.precision
    )
    may_draft = context.config(EngineConfig).max_draft_tokens > 0
    draft = open_draft_session(bundle, context.session_config) if may_draft else None
    return engine_on(session, bundle, context, draft=draft)


def open_draft_session(bundle: Bundle, config: SessionConfig) -> Session | None:
    """Open the graph that guesses for the decoder; None where the bundle has none.

    The two run in turn: threads of this one that spin on would take the cores from the other.
    """
    if not any(graph.role == DRAFT_ROLE for graph in bundle.manifest.graphs):
        return None
    config = replace(config, spins_between_runs=False)
    return open_adaptive_session(bundle.graph(DRAFT_ROLE), config, precision=PRECISION_INT8)


def engine_on(
    session: Session, bundle: Bundle, context: LoadContext, *, draft: Session | None = None
) -> GenerationEngine:
    """Return a started engine that runs on an open session. Errors as `load_engine`."""
    if draft is not None:
        _check_draft(draft, session, bundle)
    spec = bundle.manifest.decoder
    reads_source = spec.HasField("cross_attention")
    tokenizer = _tokenizer(bundle)
    prompts = PromptEncoder(tokenizer, vocab_size=spec.vocab_size, chat_template=_chat_template(bundle))
    _check_tokenizer(prompts, bundle)
    config = context.config(GenerationConfig)
    decoding = DecodingEngine(
        session,
        geometry_of(spec, num_adapters=len(bundle.manifest.adapters)),
        context.config(EngineConfig),
        model=bundle.ref,
        permit=context.permit,
        draft_session=draft,
    )
    tokens = _with_encoder(decoding, bundle, context, config) if reads_source else _replayed(decoding, bundle)
    decoding.start()
    profile = _profile(bundle, config, tokens)
    guidance = GuidanceCompiler(tokenizer, vocab_size=profile.vocab_size, eos_token_ids=profile.eos_token_ids)
    text = WholeTextDecoder(tokenizer) if reads_source else TextDecoder(tokenizer)
    return GenerationEngine(tokens, prompts, text, profile, config, guidance=guidance)


def _check_draft(draft: Session, session: Session, bundle: Bundle) -> None:
    """Refuse a graph that could not guess on the cache of the other."""
    for kind, got, expected in (
        ("inputs", draft.inputs, session.inputs),
        ("outputs", draft.outputs, session.outputs),
    ):
        if unlike := set(_signatures(got)) ^ set(_signatures(expected)):
            names = ", ".join(sorted({name for name, _, _ in unlike})[:5])
            raise BadBundle(bundle.ref, detail=f"{kind} of its draft graph are not the decoder's: {names}")


def _signatures(tensors: Sequence[TensorInfo]) -> list[tuple[str, np.dtype[Any], tuple[int | None, ...]]]:
    """Return name, element type and shape of each; what a dynamic side is called does not matter."""
    return [
        (tensor.name, tensor.dtype, tuple(side if isinstance(side, int) else None for side in tensor.shape))
        for tensor in tensors
    ]


def _replayed(decoding: DecodingEngine, bundle: Bundle) -> DecodingEngine:
    decoding.replay_golden(bundle.golden())
    return decoding


def _with_encoder(
    decoding: DecodingEngine, bundle: Bundle, context: LoadContext, config: GenerationConfig
) -> SourceEngine:
    """Open the encoder too, and replay the golden source through both graphs."""
    cross = cross_geometry_of(bundle.manifest.decoder)
    assert cross is not None, "only asked for a decoder with a source"
    encoder = SourceEncoder(open_session(bundle.graph(ENCODER_ROLE), context.session_config), cross)
    golden = bundle.golden()
    decoding.replay_golden(golden, memory=_golden_memory(encoder, golden, bundle))
    return SourceEngine(
        decoding,
        encoder,
        bundle.manifest.text2text,
        permit=context.permit,
        max_waiting=config.max_waiting_prompts,
    )


def _golden_memory(
    encoder: SourceEncoder, golden: Mapping[str, NDArray[Any]], bundle: Bundle
) -> SourceMemory:
    try:
        return encoder.encode(encoder_feeds(golden))[0]
    except Exception as error:  # whatever the runtime raises on a graph that does not fit its manifest
        raise BadBundle(bundle.ref, detail=f"its golden source does not run: {error}") from error


def _tokenizer(bundle: Bundle) -> Tokenizer:
    file = bundle.file(bundle.manifest.tokenizer.file)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare `Exception`
        raise BadBundle(bundle.ref, detail=f"{file.name} is not a tokenizer: {error}") from error
    # Some files carry the settings of a training run, which would cut or pad prompts in silence.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _check_tokenizer(prompts: PromptEncoder, bundle: Bundle) -> None:
    """Tokenise once, which also starts the library's threads."""
    try:
        prompts.encode(TextPrompt("warm up"))
    except InvalidFields as error:
        raise BadBundle(bundle.ref, detail=f"its tokenizer does not fit its decoder: {error}") from error


def _chat_template(bundle: Bundle) -> ChatTemplate | None:
    spec = bundle.manifest.tokenizer
    if not spec.chat_template_file:
        return None
    file = bundle.file(spec.chat_template_file)
    try:
        return ChatTemplate(file.read_text(encoding="utf-8"), special_tokens=spec.special_tokens)
    except (jinja2.TemplateError, UnicodeDecodeError) as error:
        raise BadBundle(bundle.ref, detail=f"its chat template does not compile: {error}") from error


def _profile(bundle: Bundle, config: GenerationConfig, tokens: DecodingEngine | SourceEngine) -> ModelProfile:
    spec: DecoderSpec = bundle.manifest.decoder
    reads_source = spec.HasField("cross_attention")
    return ModelProfile(
        name=bundle.manifest.name,
        vocab_size=spec.vocab_size,
        max_context_tokens=tokens.max_context_tokens,
        eos_token_ids=frozenset(spec.eos_token_ids),
        sampling_defaults=_sampling_defaults(spec.defaults),
        default_max_new_tokens=spec.defaults.max_new_tokens or config.default_max_new_tokens,
        beam_defaults=_beam_defaults(bundle.manifest.text2text, tokens.max_beams)
        if reads_source
        else BeamParams(),
        default_min_new_tokens=bundle.manifest.text2text.min_new_tokens,
        can_echo_logprobs=gives_every_position(bundle.manifest) and not reads_source,
        reads_source=reads_source,
        adapters=tuple(adapter.name for adapter in bundle.manifest.adapters),
    )


def _beam_defaults(spec: Text2TextSpec, max_beams: int) -> BeamParams:
    """Return how a model that reads a source wants to be searched; greedy where no beams can be had."""
    if max_beams < 1:
        return BeamParams()
    return BeamParams(
        num_beams=max(1, min(spec.num_beams, max_beams, MAX_BEAMS)),
        length_penalty=spec.length_penalty,
        early_stopping=spec.early_stopping,
        no_repeat_ngram_size=spec.no_repeat_ngram_size,
        forced_eos_id=spec.forced_eos_id if spec.HasField("forced_eos_id") else None,
        num_counted_prompt_tokens=len(spec.decoder_start_ids) - 1,
    )


def _sampling_defaults(defaults: GenerationDefaults) -> SamplingOptions:
    given = {field.name: value for field, value in defaults.ListFields() if field.name != "max_new_tokens"}
    return SamplingOptions(**given)
