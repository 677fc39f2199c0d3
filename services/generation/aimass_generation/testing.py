"""A generation engine without a model: a byte is a token, and a script says which text follows which prompt.

Runs through the real decoding engine, so a test sees real scheduling, cancelling and counting.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from aimass_decoding.config import EngineConfig
from aimass_decoding.engine import DecodingEngine
from aimass_decoding.testing import FakeDecoder, fake_geometry, scripted_logits
from aimass_serving.plan import ServicePlan
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from aimass_generation.__main__ import PLAN
from aimass_generation.chat_template import ChatTemplate
from aimass_generation.config import GenerationConfig
from aimass_generation.detokenizer import TextDecoder, bytes_of_byte_level
from aimass_generation.engine import GenerationEngine
from aimass_generation.guidance import GuidanceCompiler
from aimass_generation.prompt import PromptEncoder
from aimass_generation.request import SamplingOptions
from aimass_generation.resolver import ModelProfile

END, START = 256, 257
"""Ids of the special tokens `<|end|>` and `<|start|>`; below them, a token's id is its byte."""
VOCAB_SIZE = 258
CHAT_TEMPLATE = "{% for m in messages %}<|start|>{{ m.role }}:{{ m.content }}{% endfor %}<|start|>"


def byte_tokenizer() -> Tokenizer:
    """Return a tokenizer whose every byte is a token."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE({char: bytes_of_byte_level(char)[0] for char in alphabet}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>", "<|start|>"])
    return tokenizer


def scripted_decoder(script: Mapping[str, str]) -> FakeDecoder:
    """Return a decoder that continues each prompt of the script with its text, then ends."""
    tokens = {tuple(prompt.encode()): tuple(text.encode()) for prompt, text in script.items()}
    return FakeDecoder(scripted_logits(tokens, vocab_size=VOCAB_SIZE, otherwise=END))


def fake_generation_engine(
    decoder: FakeDecoder,
    *,
    max_positions: int = 512,
    config: GenerationConfig | None = None,
    engine_config: EngineConfig | None = None,
    sampling_defaults: SamplingOptions | None = None,
    prompts: PromptEncoder | None = None,
    permit: AbstractContextManager[object] | None = None,
) -> GenerationEngine:
    """Return a started engine on a fake decoder. The caller closes it."""
    tokenizer = byte_tokenizer()
    tokens = DecodingEngine(
        decoder.session(),
        fake_geometry(vocab_size=VOCAB_SIZE, max_positions=max_positions),
        engine_config or EngineConfig(max_len=max_positions),
        model="fake",
        permit=permit or nullcontext(),
    )
    tokens.start()
    template = ChatTemplate(CHAT_TEMPLATE, special_tokens={})
    config = config or GenerationConfig()
    profile = ModelProfile(
        name="fake",
        vocab_size=VOCAB_SIZE,
        max_context_tokens=tokens.max_context_tokens,
        eos_token_ids=frozenset([END]),
        sampling_defaults=sampling_defaults or SamplingOptions(),
        default_max_new_tokens=config.default_max_new_tokens,
    )
    prompts = prompts or PromptEncoder(tokenizer, vocab_size=VOCAB_SIZE, chat_template=template)
    guidance = GuidanceCompiler(tokenizer, vocab_size=profile.vocab_size, eos_token_ids=profile.eos_token_ids)
    return GenerationEngine(tokens, prompts, TextDecoder(tokenizer), profile, config, guidance=guidance)


def fake_plan(engine: GenerationEngine) -> ServicePlan[GenerationEngine]:
    """Return the service's plan with an engine that is there already, whatever the bundle."""
    return replace(PLAN, load=lambda bundle, context: engine)
