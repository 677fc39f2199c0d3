"""A storm of calls, cancellations and deadlines: every call ends once and nothing is left behind."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter

from aimass_encoder.config import EncoderConfig
from aimass_encoder.engine import EncoderEngine
from aimass_encoder.request import EmbeddedText, EmbedRequest
from aimass_encoder.testing import FakeEncoderGraph, fake_engine
from aimass_serving.errors import DeadlineExceeded, Overloaded

NUM_CALLS = 600
SETTINGS = EncoderConfig(cpu_batch_tokens=64, cpu_lanes=1)
PATIENT_S = 120.0


async def one_call(engine: EncoderEngine, rng: random.Random) -> str:
    """Make a call that may be cancelled or run late; return how it ended. The vectors' order is checked."""
    await asyncio.sleep(rng.random() * 0.5)
    texts = ["w" * rng.randint(1, 3) + " x" * rng.randint(0, 20) for _ in range(rng.randint(1, 12))]
    time_s, is_fickle = rng.choice([0.002, 0.05, PATIENT_S]), rng.random() < 0.3
    call = asyncio.ensure_future(engine.embed(EmbedRequest(texts, deadline_s=time.monotonic() + time_s)))
    if is_fickle:
        asyncio.get_running_loop().call_later(rng.random() * 0.02, call.cancel)
    try:
        reply = await call
    except asyncio.CancelledError:
        assert is_fickle
        return "cancelled"
    except (DeadlineExceeded, Overloaded):
        assert time_s < PATIENT_S
        return "expired"
    assert all(isinstance(r, EmbeddedText) for r in reply.results)
    assert [r.num_tokens for r in reply.results if isinstance(r, EmbeddedText)] == [
        min(16, 2 + len(text.split())) for text in texts
    ]
    return "answered"


async def test_every_call_of_a_storm_ends_once_and_nothing_is_left_behind() -> None:
    rng = random.Random(7)
    engine = fake_engine(FakeEncoderGraph(), SETTINGS, model="storm")
    try:
        ends = Counter(
            await asyncio.gather(*(one_call(engine, random.Random(rng.random())) for _ in range(NUM_CALLS)))
        )
        assert ends.total() == NUM_CALLS
        assert ends["answered"] > 0
        assert ends["cancelled"] > 0
        assert engine.queued_tokens == 0
        await asyncio.wait_for(engine.drain(), timeout=10)
    finally:
        await asyncio.to_thread(engine.close)
    stats = engine.stats()
    assert stats.num_texts + stats.num_shared >= ends["answered"]
    assert stats.num_padded_tokens >= stats.num_tokens > 0
    assert not [thread.name for thread in threading.enumerate() if "storm" in thread.name]


async def test_memory_of_finished_calls_is_given_back() -> None:
    engine = fake_engine(FakeEncoderGraph(), SETTINGS)
    try:
        for _ in range(20):
            await asyncio.gather(*(engine.embed(EmbedRequest(["a b c"] * 3)) for _ in range(20)))
        pipeline = engine._encoder.pipeline
        assert not pipeline._calls
        assert not len(pipeline._batcher)
        assert not pipeline._in_flight
        assert len(pipeline._batcher._by_due) < 200
    finally:
        await asyncio.to_thread(engine.close)
