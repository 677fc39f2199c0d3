"""With kernels of our own, int8 graphs of the real SmolLM2 give a chunk the bits of its tokens one by one.

So its texts are drafted for (decisions 031 and 033), and stay what they are without drafts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from aimass_decoding.config import EngineConfig
from aimass_decoding.engine import DecodingEngine
from aimass_decoding.request import SequenceRequest
from aimass_decoding.runner import DRAFT_ROLE, DecoderRunner, geometry_of
from aimass_serving.bundle import Bundle
from aimass_serving.compute import ComputePermit
from aimass_serving.session import Session, SessionConfig, open_session, own_kernels
from aimass_serving.store import open_store
from tokenizers import Tokenizer

pytestmark = pytest.mark.skipif(own_kernels() is None, reason="this machine cannot run our own kernels")
TEXT = "one two three four one two three four one two three"


@pytest.fixture(scope="module")
def bundle(smollm2_drafted_store: Path) -> Bundle:
    store = open_store(str(smollm2_drafted_store))
    return store.open(store.list()[0])


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> Session:
    return open_session(bundle.graph(DRAFT_ROLE), SessionConfig(num_threads=2))


def test_a_chunk_has_the_bits_of_its_tokens_one_by_one(bundle: Bundle, session: Session) -> None:
    runner = DecoderRunner(session, geometry_of(bundle.manifest.decoder), max_slots=2, max_len=128)
    token_ids = np.random.default_rng(3).integers(5, 40_000, 90)
    runner.prefill(0, token_ids[:40], start=0)
    steps = [runner.decode(token_ids[n : n + 1], np.array([n])).copy() for n in range(40, 90)]
    chunk = runner.prefill_all(0, token_ids[40:], start=40)
    np.testing.assert_array_equal(chunk, np.concatenate(steps))


async def test_a_text_that_repeats_itself_takes_fewer_steps_and_stays_what_it_is(
    bundle: Bundle, session: Session
) -> None:
    prompt = Tokenizer.from_file(str(bundle.file("tokenizer.json"))).encode(TEXT).ids
    texts, steps = [], []
    for most in (0, 8):
        config = EngineConfig(max_slots=2, max_len=128, max_draft_tokens=most, max_kept_prefixes=0)
        engine = DecodingEngine(
            session, geometry_of(bundle.manifest.decoder), config, model=bundle.ref, permit=ComputePermit()
        )
        engine.start()
        try:
            asked = SequenceRequest("r", np.array(prompt), 48, min_new_tokens=48)
            texts.append([t async for delta in engine.generate(asked) for t in delta.token_ids])
            steps.append(engine.stats().num_decode_steps)
        finally:
            engine.close()
    assert texts[1] == texts[0]
    assert steps[1] < steps[0]
