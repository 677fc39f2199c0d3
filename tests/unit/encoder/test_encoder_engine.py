"""The engine on a fake graph: results per text, cancellation, deadlines, overload, failure, ending."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator

import numpy as np
import pytest
from aimass_encoder.config import EncoderConfig
from aimass_encoder.engine import EncoderEngine
from aimass_encoder.pooling import l2_normalize
from aimass_encoder.request import EmbeddedText, EmbedOptions, EmbedReply, EmbedRequest, Truncation
from aimass_encoder.testing import FakeEncoderGraph, WordTokenizer, fake_engine
from aimass_serving.errors import (
    DeadlineExceeded,
    Draining,
    InputTooLong,
    InvalidField,
    InvalidFields,
    ModelFailed,
    Overloaded,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray


@contextlib.contextmanager
def engine_on(graph: FakeEncoderGraph, **settings: int) -> Iterator[EncoderEngine]:
    engine = fake_engine(graph, EncoderConfig(**{"cpu_batch_tokens": 64, "cpu_lanes": 1, **settings}))
    try:
        yield engine
    finally:
        graph.open()
        engine.close()


@pytest.fixture
def graph() -> FakeEncoderGraph:
    return FakeEncoderGraph()


@pytest.fixture
def engine(graph: FakeEncoderGraph) -> Iterator[EncoderEngine]:
    with engine_on(graph) as engine:
        yield engine


@contextlib.asynccontextmanager
async def running(
    engine: EncoderEngine, *texts: str, **fields: float
) -> AsyncIterator[asyncio.Task[EmbedReply]]:
    """Run one call beside the test; its end is awaited."""
    task = asyncio.create_task(engine.embed(EmbedRequest(texts, **fields)))  # type: ignore[arg-type]
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks and threads run until `condition` holds."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the condition is another thread's
            await asyncio.sleep(0.001)


def vectors(reply: EmbedReply) -> NDArray[np.float32]:
    assert all(isinstance(r, EmbeddedText) for r in reply.results)
    return np.stack([r.vector for r in reply.results if isinstance(r, EmbeddedText)])


WORD_LISTS = st.lists(
    st.lists(st.sampled_from(["a", "bb", "ccc", "dd"]), min_size=1, max_size=20), min_size=1
)


@settings(deadline=None, max_examples=25)
@given(WORD_LISTS, st.integers(1, 3))
def test_a_text_has_the_same_vector_alone_and_in_any_batch(texts: list[list[str]], cpu_lanes: int) -> None:
    async def both() -> None:
        with engine_on(FakeEncoderGraph(), cpu_lanes=cpu_lanes) as engine:
            lines = [" ".join(words) for words in texts]
            together = vectors(await engine.embed(EmbedRequest(lines)))
            alone = [vectors(await engine.embed(EmbedRequest([line])))[0] for line in lines]
            np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)

    asyncio.run(both())


async def test_one_bad_text_fails_its_own_result_only(engine: EncoderEngine) -> None:
    texts = ["good", "", "also poison here", "x" * 300_000, "a b", "w " * 50]
    reply = await engine.embed(EmbedRequest(texts, EmbedOptions(truncation=Truncation.NONE)))
    kinds = [type(r) for r in reply.results]
    assert kinds == [EmbeddedText, InvalidField, ModelFailed, InvalidField, EmbeddedText, InputTooLong]
    fields = [r.violations[0].field for r in reply.results if isinstance(r, InvalidFields)]
    assert fields == ["texts[1]", "texts[3]"]
    too_long = reply.results[5]
    assert isinstance(too_long, InputTooLong)
    assert (too_long.field, too_long.description) == ("texts[5]", "expected at most 16 tokens, got 52")


async def test_a_poisoned_neighbour_does_not_change_a_vector(engine: EncoderEngine) -> None:
    alone = await engine.embed(EmbedRequest(["a b c"]))
    beside = await engine.embed(EmbedRequest(["x poison z", "a b c"]))
    good = beside.results[1]
    assert isinstance(good, EmbeddedText)
    np.testing.assert_allclose(good.vector, vectors(alone)[0], atol=1e-6)


async def test_a_call_of_bad_texts_only_runs_nothing(engine: EncoderEngine, graph: FakeEncoderGraph) -> None:
    reply = await engine.embed(EmbedRequest(["", ""]))
    assert all(isinstance(r, InvalidField) for r in reply.results)
    assert reply.num_tokens == 0
    assert graph.shapes == []


async def test_truncation_is_reported_and_takes_the_asked_for_side(engine: EncoderEngine) -> None:
    words = [f"w{i}" for i in range(20)]
    end = await engine.embed(EmbedRequest([" ".join(words)], EmbedOptions(truncation=Truncation.END)))
    start = await engine.embed(EmbedRequest([" ".join(words)], EmbedOptions(truncation=Truncation.START)))
    kept = await engine.embed(EmbedRequest([" ".join(words[:14]), " ".join(words[6:])]))
    for reply in (end, start):
        (result,) = reply.results
        assert isinstance(result, EmbeddedText)
        assert (result.num_tokens, result.num_truncated_tokens) == (16, 6)
    np.testing.assert_allclose(np.concatenate([vectors(end), vectors(start)]), vectors(kept), atol=1e-6)


async def test_dimensions_are_cut_first_and_normalised_then(engine: EncoderEngine) -> None:
    raw = vectors(await engine.embed(EmbedRequest(["a b"], EmbedOptions(normalize=False))))
    cut = await engine.embed(EmbedRequest(["a b"], EmbedOptions(dimensions=3)))
    assert cut.dimensions == 3
    np.testing.assert_allclose(vectors(cut), l2_normalize(raw[:, :3]), atol=1e-6)


async def test_a_named_prompt_is_put_before_each_text(engine: EncoderEngine) -> None:
    prompted = await engine.embed(EmbedRequest(["a b"], EmbedOptions(prompt_name="query")))
    by_hand = await engine.embed(EmbedRequest(["query : a b"]))
    np.testing.assert_array_equal(vectors(prompted), vectors(by_hand))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (EmbedOptions(dimensions=9), "options.dimensions"),
        (EmbedOptions(prompt_name="passage"), "options.prompt_name"),
    ],
)
async def test_options_the_model_does_not_have_fail_the_call(
    engine: EncoderEngine, options: EmbedOptions, field: str
) -> None:
    with pytest.raises(InvalidField) as refused:
        await engine.embed(EmbedRequest(["a"], options))
    assert refused.value.violations[0].field == field


async def test_too_many_texts_fail_the_call(graph: FakeEncoderGraph) -> None:
    with engine_on(graph, max_batch_items=3) as engine, pytest.raises(InvalidField, match="at most 3 texts"):
        await engine.embed(EmbedRequest(["a"] * 4))


async def test_calls_that_wait_together_run_together(engine: EncoderEngine, graph: FakeEncoderGraph) -> None:
    graph.hold()
    async with running(engine, "first") as first:
        await until(lambda: len(graph.shapes) == 1)
        calls = [asyncio.create_task(engine.embed(EmbedRequest([f"a {word}"]))) for word in "bcdefghi"]
        await until(lambda: engine.queued_tokens == 8 * 4)
        graph.open()
        await asyncio.gather(first, *calls)
    assert graph.shapes == [(1, 3), (8, 4)]


async def test_equal_texts_on_their_way_are_computed_once(
    engine: EncoderEngine, graph: FakeEncoderGraph
) -> None:
    graph.hold()
    async with running(engine, "first") as first:
        await until(lambda: len(graph.shapes) == 1)
        async with running(engine, "a b", "c", "a b") as waits, running(engine, "first", "a b") as joins:
            await until(lambda: engine.queued_tokens == 7 and engine.stats().num_shared == 3)
            graph.open()
            replies = await asyncio.gather(first, waits, joins)
    alone = vectors(await engine.embed(EmbedRequest(["first", "a b", "c"])))
    for reply, rows in zip(replies, ([0], [1, 2, 1], [0, 1]), strict=True):
        np.testing.assert_allclose(vectors(reply), alone[rows], atol=1e-6)
    assert sum(rows for rows, _ in graph.shapes) == 3 + 3
    assert engine.stats().num_shared == 3


async def test_a_text_that_two_calls_share_stays_when_one_leaves(
    engine: EncoderEngine, graph: FakeEncoderGraph
) -> None:
    graph.hold()
    async with running(engine, "first") as first:
        await until(lambda: len(graph.shapes) == 1)
        async with running(engine, "a b", deadline_s=time.monotonic() + 60) as leaves:
            await until(lambda: engine.queued_tokens == 4)
            async with running(engine, "a b", deadline_s=time.monotonic() + 120) as stays:
                await until(lambda: engine.stats().num_shared == 1)
                leaves.cancel()
                await asyncio.wait([leaves])
                assert (engine.queued_tokens, engine.stats().num_cancelled) == (4, 0)
                graph.open()
                assert isinstance((await stays).results[0], EmbeddedText)
                await first


async def test_a_cancelled_call_never_costs_compute(engine: EncoderEngine, graph: FakeEncoderGraph) -> None:
    graph.hold()
    async with running(engine, "first") as first:
        await until(lambda: len(graph.shapes) == 1)
        async with running(engine, "to be cancelled", "this too"):
            await until(lambda: engine.queued_tokens == 9)
        assert engine.queued_tokens == 0
        graph.open()
        await first
    assert graph.shapes == [(1, 3)]
    assert engine.stats().num_cancelled == 2


async def test_a_cancelled_call_leaves_the_batch_that_was_laid_out_ahead(
    engine: EncoderEngine, graph: FakeEncoderGraph
) -> None:
    texts = [f"{word} " * 14 for word in "abcdefgh"]
    graph.hold()
    async with running(engine, "first") as first:
        await until(lambda: len(graph.shapes) == 1)
        async with running(engine, *texts[:4]) as second, running(engine, *texts[4:6]) as stays:
            await until(lambda: engine.queued_tokens == 6 * 16)  # so that these are due first
            async with running(engine, *texts[6:]):
                await until(lambda: engine.queued_tokens == 8 * 16)
                graph.let_through()  # of the eight, four begin and the other four are laid out
                await until(lambda: len(graph.shapes) == 2)
            graph.open()
            await asyncio.gather(first, second, stays)
    assert graph.shapes == [(1, 3), (4, 16), (2, 16)]


async def test_a_cancelled_call_that_is_computed_leaves_the_engine_well(
    engine: EncoderEngine, graph: FakeEncoderGraph
) -> None:
    graph.hold()
    async with running(engine, "a b"):
        await until(lambda: len(graph.shapes) == 1)
    graph.open()
    assert len((await engine.embed(EmbedRequest(["a b"]))).results) == 1


async def test_an_expired_call_never_costs_compute(engine: EncoderEngine, graph: FakeEncoderGraph) -> None:
    graph.hold()
    async with running(engine, "first") as first:
        await until(lambda: len(graph.shapes) == 1)
        async with running(engine, "a b", "c d", deadline_s=time.monotonic() + 0.05) as late:
            await until(lambda: engine.queued_tokens == 8)
            await asyncio.sleep(0.06)
            graph.open()
            with pytest.raises(DeadlineExceeded):
                await late
        await first
    assert graph.shapes == [(1, 3)]
    assert engine.stats().num_expired == 2


async def test_a_passed_deadline_is_refused_at_once(engine: EncoderEngine) -> None:
    with pytest.raises(DeadlineExceeded):
        await engine.embed(EmbedRequest(["a"], deadline_s=time.monotonic() - 1))


async def test_a_deadline_that_the_queue_would_outlast_is_refused_before_the_text_is_tokenised(
    graph: FakeEncoderGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine_on(graph) as engine:
        engine.pipeline._batcher._tokens_per_s = 0.1
        graph.hold()
        async with running(engine, "first") as first:
            await until(lambda: len(graph.shapes) == 1)
            async with running(engine, *(f"a b {word}" for word in "cdef")) as waiting:
                await until(lambda: engine.queued_tokens == 20)
                monkeypatch.setattr(WordTokenizer, "tokenize", None)
                with pytest.raises(Overloaded, match="outlast its deadline") as refused:
                    await engine.embed(EmbedRequest(["x"], deadline_s=time.monotonic() + 60))
                assert refused.value.retry_after_s > 0
                graph.open()
                await asyncio.gather(first, waiting)


async def test_a_full_queue_refuses_one_text_and_many_alike_and_recovers(graph: FakeEncoderGraph) -> None:
    with engine_on(graph, max_queue_tokens=10) as engine:
        graph.hold()
        async with running(engine, "first") as first:
            await until(lambda: len(graph.shapes) == 1)
            texts = [f"a b {word}" for word in "cdef"]  # 20 tokens: whole, below the bound before
            async with running(engine, *texts) as admitted:
                await until(lambda: engine.queued_tokens == 20)
                for more in (["a"], ["a"] * 50, texts):  # one rule, also for what is on its way already
                    with pytest.raises(Overloaded) as refused:
                        await engine.embed(EmbedRequest(more))
                    assert refused.value.retry_after_s > 0
                graph.open()
                await asyncio.gather(first, admitted)
        assert len((await engine.embed(EmbedRequest(["a"]))).results) == 1


async def test_a_failing_graph_fails_its_batch_and_not_the_engine(
    engine: EncoderEngine, graph: FakeEncoderGraph, caplog: pytest.LogCaptureFixture
) -> None:
    graph.failure = RuntimeError("secret detail")
    reply = await engine.embed(EmbedRequest(["a", "b"]))
    assert [type(r) for r in reply.results] == [ModelFailed, ModelFailed]
    assert not any("secret" in str(r) for r in reply.results)
    assert "secret detail" in caplog.text
    graph.failure = None
    assert isinstance((await engine.embed(EmbedRequest(["a"]))).results[0], EmbeddedText)


async def test_draining_finishes_what_was_taken_and_refuses_the_rest(
    engine: EncoderEngine, graph: FakeEncoderGraph
) -> None:
    graph.hold()
    async with running(engine, "a b") as taken:
        await until(lambda: len(graph.shapes) == 1)
        drained = asyncio.create_task(engine.drain())
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            await engine.embed(EmbedRequest(["c"]))
        assert not drained.done()
        graph.open()
        await drained
        assert len((await taken).results) == 1


async def test_closing_fails_what_waits_instead_of_leaving_it(graph: FakeEncoderGraph) -> None:
    with engine_on(graph) as engine:
        graph.hold()
        async with running(engine, "a") as running_call:
            await until(lambda: len(graph.shapes) == 1)
            async with running(engine, "b") as waiting:
                await until(lambda: engine.queued_tokens == 3)
                closing = asyncio.create_task(asyncio.to_thread(engine.close))
                with pytest.raises(Draining):
                    await waiting
                graph.open()
                await closing
                with pytest.raises(Draining):
                    await running_call
    engine.close()


async def test_timings_add_up_and_usage_counts_what_the_model_saw(engine: EncoderEngine) -> None:
    reply = await engine.embed(EmbedRequest(["a b", "c"]))
    timings = reply.timings
    parts = timings.tokenize_ms + timings.queue_ms + timings.compute_ms
    assert 0 < parts <= timings.total_ms
    assert reply.num_tokens == 4 + 3


def test_a_request_without_texts_is_refused() -> None:
    with pytest.raises(InvalidField, match="at least one text"):
        EmbedRequest([])
