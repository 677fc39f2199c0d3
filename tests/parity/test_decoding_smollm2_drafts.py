"""Drafts by an int8 graph do not change a greedy token of the fp32 graph: on the real SmolLM2.

Sampled ones they may, where a random number falls within 1e-6 of a border: see decision 032. With kernels of
our own the int8 graph gives a chunk the bits of single steps, so its texts are drafted for as well (033).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from aimass_decoding.config import EngineConfig
from aimass_decoding.engine import DecodingEngine
from aimass_decoding.request import SequenceRequest
from aimass_decoding.runner import DRAFT_ROLE, DecoderRunner, geometry_of
from aimass_generation.loader import open_draft_session
from aimass_serving.bundle import Bundle
from aimass_serving.compute import ComputePermit
from aimass_serving.session import Session, SessionConfig, open_session, own_kernels
from aimass_serving.store import open_store
from tokenizers import Tokenizer

TEXTS = (
    "The lighthouse keeper climbed the stairs",
    "def fibonacci(n):\n",
    "In the year 1928, a scientist",
    "Dear Sir or Madam,\n\nI am writing to",
    "My favourite recipe for bread: first",
)
REPEATING_TEXT = "one two three four one two three four one two three"
NEW_TOKENS = 40
TOLERANCE = 1e-3
"""Of fp32 logits behind runs of one token and of several (031); int8 keys and values move them by tenths."""

needs_kernels = pytest.mark.skipif(own_kernels() is None, reason="this machine cannot run our own kernels")


@pytest.fixture(scope="module")
def bundle(smollm2_drafted_store: Path) -> Bundle:
    store = open_store(str(smollm2_drafted_store))
    return store.open(store.list()[0])


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> Session:
    return open_session(bundle.graph("decoder"), SessionConfig())


@pytest.fixture(scope="module")
def draft(bundle: Bundle) -> Session | None:
    return open_draft_session(bundle, SessionConfig())


@pytest.fixture(scope="module")
def int8(bundle: Bundle) -> Session:
    """The draft graph as a decoder by itself."""
    return open_session(bundle.graph(DRAFT_ROLE), SessionConfig(num_threads=2))


@contextmanager
def running(bundle: Bundle, session: Session, draft: Session | None, most: int) -> Iterator[DecodingEngine]:
    config = EngineConfig(max_slots=2, max_len=256, max_draft_tokens=most, max_kept_prefixes=0)
    geometry = geometry_of(bundle.manifest.decoder)
    engine = DecodingEngine(
        session, geometry, config, model=bundle.ref, permit=ComputePermit(), draft_session=draft
    )
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


async def tokens_of(engine: DecodingEngine, prompt: list[int], *, least: int = 0) -> list[int]:
    asked = SequenceRequest("r", np.array(prompt), max(NEW_TOKENS, least), min_new_tokens=least)
    return [token_id async for delta in engine.generate(asked) for token_id in delta.token_ids]


async def test_tokens_are_those_without_drafts(bundle: Bundle, session: Session, draft: Session) -> None:
    tokenizer = Tokenizer.from_file(str(bundle.file("tokenizer.json")))
    prompts = [tokenizer.encode(text).ids for text in TEXTS]
    with running(bundle, session, None, 0) as engine:
        expected = [await tokens_of(engine, prompt) for prompt in prompts]
    with running(bundle, session, draft, 8) as engine:
        got = [await tokens_of(engine, prompt) for prompt in prompts]
        stats = engine.stats()
    assert got == expected
    assert stats.num_confirmed_tokens > 60, "guesses were really made"


def test_the_cache_holds_only_what_the_fp32_graph_wrote(
    bundle: Bundle, session: Session, draft: Session
) -> None:
    geometry = geometry_of(bundle.manifest.decoder)
    alone, exact = (DecoderRunner(session, geometry, max_slots=1, max_len=64) for _ in range(2))
    guessing = DecoderRunner(draft, geometry, max_slots=1, max_len=64, slots_of=exact)
    prompt, chunk = np.arange(100, 110), np.arange(200, 205)
    for runner in (alone, exact):
        runner.prefill(0, prompt, start=0)
    for place in range(len(chunk) - 1):
        guessing.prefill(0, chunk[place : place + 1], start=len(prompt) + place)
    exact.prefill_all(0, chunk, start=len(prompt))
    for place in range(len(chunk)):
        alone.decode(chunk[place : place + 1], np.array([len(prompt) + place]))
    following = np.array([300])
    length = np.array([len(prompt) + len(chunk)])
    difference = np.abs(exact.decode(following, length) - alone.decode(following, length)).max()
    assert difference <= TOLERANCE


@needs_kernels
def test_an_int8_chunk_has_the_bits_of_its_tokens_one_by_one(bundle: Bundle, int8: Session) -> None:
    runner = DecoderRunner(int8, geometry_of(bundle.manifest.decoder), max_slots=2, max_len=128)
    token_ids = np.random.default_rng(3).integers(5, 40_000, 90)
    runner.prefill(0, token_ids[:40], start=0)
    steps = [runner.decode(token_ids[n : n + 1], np.array([n])).copy() for n in range(40, 90)]
    chunk = runner.prefill_all(0, token_ids[40:], start=40)
    np.testing.assert_array_equal(chunk, np.concatenate(steps))


@needs_kernels
async def test_an_int8_text_that_repeats_itself_takes_fewer_steps_and_stays_what_it_is(
    bundle: Bundle, int8: Session
) -> None:
    prompt = Tokenizer.from_file(str(bundle.file("tokenizer.json"))).encode(REPEATING_TEXT).ids
    texts, steps = [], []
    for most in (0, 8):
        with running(bundle, int8, None, most) as engine:
            texts.append(await tokens_of(engine, prompt, least=48))
            steps.append(engine.stats().num_decode_steps)
    assert texts[1] == texts[0]
    assert steps[1] < steps[0]
