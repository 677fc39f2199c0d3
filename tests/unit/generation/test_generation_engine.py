"""The engine's promises, on a decoder that follows a script: what is streamed, counted and freed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from aimass_decoding.config import EngineConfig
from aimass_decoding.testing import FakeDecoder, hashed_logits
from aimass_generation.config import GenerationConfig
from aimass_generation.engine import GenerationEngine
from aimass_generation.prompt import PromptEncoder
from aimass_generation.request import (
    ChatMessage,
    ChatPrompt,
    GenerationRequest,
    OutputOptions,
    Prompt,
    SamplingOptions,
    StoppingOptions,
    TextPrompt,
    TokenPrompt,
)
from aimass_generation.result import FinishReason, GenerationEvent, GenerationFinish, PromptInfo, TextDelta
from aimass_generation.testing import (
    END,
    VOCAB_SIZE,
    byte_tokenizer,
    fake_generation_engine,
    scripted_decoder,
)
from aimass_serving.errors import (
    BadConfig,
    DeadlineExceeded,
    Draining,
    InputTooLong,
    InvalidField,
    InvalidFields,
    Overloaded,
)
from numpy.typing import NDArray

TEXT = "naïve 東京 😀👍🏽 — END of it"
ENDLESS = "x" * 4000

OpenEngine = Callable[..., GenerationEngine]


@pytest_asyncio.fixture
async def open_engine() -> AsyncIterator[OpenEngine]:
    opened: list[GenerationEngine] = []

    def open_one(decoder: FakeDecoder | None = None, **options: Any) -> GenerationEngine:
        opened.append(
            fake_generation_engine(decoder or scripted_decoder({"go": TEXT, "on": ENDLESS}), **options)
        )
        return opened[-1]

    yield open_one
    for engine in opened:
        await asyncio.to_thread(engine.close)


def request(prompt: str | Prompt = "go", **fields: Any) -> GenerationRequest:
    """`stop=`, `max_new_tokens=`... go to stopping, `temperature=`... to sampling, the rest as it is."""
    stopping = {k: fields.pop(k) for k in list(fields) if k in StoppingOptions.__dataclass_fields__}
    sampling = {k: fields.pop(k) for k in list(fields) if k in SamplingOptions.__dataclass_fields__}
    return GenerationRequest(
        TextPrompt(prompt) if isinstance(prompt, str) else prompt,
        stopping=StoppingOptions(**stopping),
        sampling=SamplingOptions(**sampling),
        **fields,
    )


def hold(decoder: FakeDecoder, *, after_runs: int) -> threading.Event:
    """Let the model run so many times, then wait until the returned event is set."""
    gate = threading.Event()

    def wait_there(_: object) -> None:
        if len(decoder.runs) > after_runs:
            gate.wait(timeout=20)  # A failed test must not keep its engine from closing.

    decoder.before_run = wait_there
    return gate


async def stream(engine: GenerationEngine, asked: GenerationRequest) -> list[GenerationEvent]:
    async with aclosing(engine.generate(asked)) as events:
        return [event async for event in events]


def text_of(events: list[GenerationEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def finish_of(events: list[GenerationEvent]) -> GenerationFinish:
    assert isinstance(events[-1], GenerationFinish)
    return events[-1]


async def test_stream_is_prompt_info_then_text_then_finish(open_engine: OpenEngine) -> None:
    events = await stream(open_engine(), request())
    assert events[0] == PromptInfo((ord("g"), ord("o")), None)
    assert all(isinstance(event, TextDelta) for event in events[1:-1])
    assert text_of(events) == TEXT
    finish = finish_of(events)
    assert (finish.reason, finish.stop_token_id) == (FinishReason.EOS, END)
    assert (finish.usage.input_tokens, finish.usage.output_tokens) == (2, len(TEXT.encode()) + 1)


async def test_no_delta_ends_inside_a_character(open_engine: OpenEngine) -> None:
    events = await stream(open_engine(), request(output=OutputOptions(wants_token_ids=True)))
    deltas = [event for event in events if isinstance(event, TextDelta)]
    assert all(bytes(delta.token_ids).decode() == delta.text for delta in deltas)
    assert not any("\ufffd" in delta.text for delta in deltas)


async def test_joined_stream_equals_complete_for_every_stop_string(open_engine: OpenEngine) -> None:
    engine = open_engine()
    for start in range(len(TEXT)):
        for length in (1, 2, 5):
            stop = TEXT[start : start + length]
            for include in (False, True):
                asked = request(stop_strings=(stop,), include_stop_string=include)
                streamed, whole = await asyncio.gather(stream(engine, asked), engine.complete(asked))
                end = TEXT.index(stop)
                assert text_of(streamed) == whole.text == TEXT[: end + len(stop) if include else end]
                for finish in (finish_of(streamed), whole.finish):
                    assert (finish.reason, finish.stop_string) == (FinishReason.STOP_STRING, stop)
                    assert finish.usage.output_tokens == len(TEXT[: end + len(stop)].encode())


async def test_stop_string_wins_over_an_end_that_comes_with_it(open_engine: OpenEngine) -> None:
    asked = request("on", stop_strings=("xxx",), max_new_tokens=3)
    finish = finish_of(await stream(open_engine(), asked))
    assert (finish.reason, finish.stop_string, finish.usage.output_tokens) == (
        FinishReason.STOP_STRING,
        "xxx",
        3,
    )


async def test_possible_stop_string_is_released_when_the_text_ends(open_engine: OpenEngine) -> None:
    whole = await open_engine().complete(request(stop_strings=("of it!",)))
    assert (whole.text, whole.finish.reason) == (TEXT, FinishReason.EOS)


async def test_slot_is_free_before_the_reader_takes_the_finish(open_engine: OpenEngine) -> None:
    """After a stop string, a caller that does not read on must not hold a slot."""
    decoder = scripted_decoder({"go": "last words STOP" + ENDLESS})
    gate = hold(decoder, after_runs=20)
    engine = open_engine(decoder, max_positions=1024)
    async with aclosing(engine.generate(request(stop_strings=("STOP",), max_new_tokens=1000))) as events:
        async for event in events:
            if isinstance(event, GenerationFinish):
                break
        gate.set()
        await engine.drain()
        # Given up, and not run to its end while nobody looked.
        assert (engine.stats().num_cancelled, dict(engine.stats().num_finished)) == (1, {})


async def test_what_a_slow_reader_missed_comes_as_one_delta(open_engine: OpenEngine) -> None:
    decoder = scripted_decoder({"on": ENDLESS})
    gate = hold(decoder, after_runs=3)
    engine = open_engine(decoder, max_positions=1024)
    async with aclosing(engine.generate(request("on", max_new_tokens=500))) as events:
        assert isinstance(await anext(events), PromptInfo)
        gate.set()
        await engine.drain()
        first, rest, finish = [event async for event in events]
    assert isinstance(finish, GenerationFinish)
    assert isinstance(first, TextDelta)
    assert isinstance(rest, TextDelta)
    assert first.text + rest.text == "x" * 500


async def test_leaving_the_stream_early_frees_the_slot(open_engine: OpenEngine) -> None:
    decoder = scripted_decoder({"on": ENDLESS})
    gate = hold(decoder, after_runs=3)
    engine = open_engine(decoder, max_positions=1024)
    async with aclosing(engine.generate(request("on", max_new_tokens=1000))) as events:
        await anext(events)
    gate.set()
    await engine.drain()
    assert (engine.stats().num_slots_taken, engine.stats().num_cancelled) == (0, 1)


async def test_cancelling_the_task_frees_the_slot(open_engine: OpenEngine) -> None:
    decoder = scripted_decoder({"on": ENDLESS})
    gate = hold(decoder, after_runs=3)
    engine = open_engine(decoder, max_positions=1024)
    has_begun = asyncio.Event()

    async def read() -> None:
        async with aclosing(engine.generate(request("on", max_new_tokens=1000))) as events:
            async for _ in events:
                has_begun.set()

    task = asyncio.create_task(read())
    await has_begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    await engine.drain()
    assert (engine.stats().num_slots_taken, engine.stats().num_cancelled) == (0, 1)


async def test_eight_streams_at_once_equal_the_same_streams_alone(open_engine: OpenEngine) -> None:
    engine = open_engine(FakeDecoder(hashed_logits(VOCAB_SIZE)))
    requests = [
        request(f"prompt {n}" * (n + 1), max_new_tokens=40, temperature=n % 3 / 2, seed=n, ignore_eos=True)
        for n in range(8)
    ]
    together = await asyncio.gather(*(stream(engine, asked) for asked in requests))
    alone = [await stream(engine, asked) for asked in requests]
    assert [text_of(events) for events in together] == [text_of(events) for events in alone]
    assert len({text_of(events) for events in alone}) == 8


async def test_chosen_seed_is_returned_and_repeats_the_text(open_engine: OpenEngine) -> None:
    engine = open_engine(FakeDecoder(hashed_logits(VOCAB_SIZE)))
    first = await engine.complete(request(temperature=1.0, max_new_tokens=30, ignore_eos=True))
    seed = first.prompt_info.seed
    assert seed is not None
    again = await engine.complete(request(temperature=1.0, max_new_tokens=30, ignore_eos=True, seed=seed))
    other = await engine.complete(request(temperature=1.0, max_new_tokens=30, ignore_eos=True))
    assert again.prompt_info.seed == seed
    assert again.text == first.text
    assert other.prompt_info.seed != seed


async def test_greedy_text_has_no_seed(open_engine: OpenEngine) -> None:
    assert (await open_engine().complete(request(seed=7))).prompt_info.seed is None


async def test_what_the_request_leaves_open_is_the_models_default(open_engine: OpenEngine) -> None:
    engine = open_engine(sampling_defaults=SamplingOptions(temperature=1.0))
    assert (await engine.complete(request())).prompt_info.seed is not None
    assert (await engine.complete(request(temperature=0.0))).prompt_info.seed is None


async def test_token_ids_and_logprobs_come_only_when_asked_for(open_engine: OpenEngine) -> None:
    engine = open_engine()
    plain = await engine.complete(request())
    assert (plain.token_ids, plain.logprobs) == ((), ())
    full = await engine.complete(request(output=OutputOptions(True, True, num_top_logprobs=3)))
    assert bytes(full.token_ids) == TEXT.encode()
    assert [entry.token_id for entry in full.logprobs] == list(full.token_ids)
    assert all(len(entry.candidates) == 3 for entry in full.logprobs)


async def test_chat_is_laid_out_by_the_template(open_engine: OpenEngine) -> None:
    chat = ChatPrompt((ChatMessage("user", "hi"),))
    ids = await open_engine().tokenize(chat)
    assert byte_tokenizer().decode(list(ids), skip_special_tokens=False) == "<|start|>user:hi<|start|>"


async def test_prompt_that_leaves_no_room_is_refused_by_its_field(open_engine: OpenEngine) -> None:
    engine = open_engine(max_positions=16)
    prompts: list[TextPrompt | TokenPrompt] = [TextPrompt("a" * 16), TokenPrompt((1,) * 16)]
    for prompt, field in zip(prompts, ("text", "token_ids.ids"), strict=True):
        with pytest.raises(InputTooLong) as caught:
            await engine.complete(request(prompt))
        assert caught.value.field == field
        assert "at most 15" in caught.value.description


async def test_more_new_tokens_than_the_context_has_room_for_are_refused(open_engine: OpenEngine) -> None:
    engine = open_engine(max_positions=16)
    assert (await engine.complete(request("a" * 10, max_new_tokens=6))).text == ""
    with pytest.raises(InvalidField) as caught:
        await engine.complete(request("a" * 10, max_new_tokens=7))
    assert caught.value.violations[0].field == "stopping.max_new_tokens"
    assert "1 to 6" in caught.value.violations[0].description


async def test_default_bound_ends_where_the_context_is_full(open_engine: OpenEngine) -> None:
    whole = await open_engine(max_positions=16).complete(request("on"))
    assert (whole.text, whole.finish.reason) == ("x" * 14, FinishReason.CONTEXT_FULL)


async def test_default_bound_is_the_configured_one(open_engine: OpenEngine) -> None:
    whole = await open_engine(config=GenerationConfig(default_max_new_tokens=5)).complete(request("on"))
    assert (whole.text, whole.finish.reason) == ("xxxxx", FinishReason.MAX_NEW_TOKENS)


async def test_stop_token_ends_the_text_without_being_in_it(open_engine: OpenEngine) -> None:
    whole = await open_engine().complete(request(stop_token_ids=(ord("v"),)))
    assert (whole.text, whole.finish.reason) == ("naï", FinishReason.STOP_TOKEN)
    assert whole.finish.stop_token_id == ord("v")
    assert whole.finish.usage.output_tokens == len("naïv".encode())


async def test_ignored_end_of_text_leaves_no_trace_in_the_text(open_engine: OpenEngine) -> None:
    whole = await open_engine().complete(request(ignore_eos=True, max_new_tokens=60))
    assert whole.text == TEXT
    assert whole.finish.usage.output_tokens == 60


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"stop_token_ids": (1, VOCAB_SIZE)}, "stopping.stop_token_ids[1]"),
        ({"top_k": VOCAB_SIZE + 1}, "sampling.top_k"),
        ({"prompt": TokenPrompt((5, VOCAB_SIZE))}, "token_ids.ids[1]"),
    ],
)
async def test_what_this_model_cannot_do_names_its_field(
    open_engine: OpenEngine, fields: Any, field: str
) -> None:
    with pytest.raises(InvalidFields) as caught:
        await open_engine().complete(request(**fields))
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_time_limit_ends_the_text_and_keeps_it(open_engine: OpenEngine) -> None:
    asked = request("on", time_limit_s=0.05, max_new_tokens=8000, ignore_eos=True)
    whole = await open_engine(max_positions=8192).complete(asked)
    assert whole.finish.reason is FinishReason.TIME_LIMIT
    assert set(whole.text) <= {"x"}
    assert whole.finish.usage.output_tokens < 8000


async def test_deadline_that_has_passed_is_refused_before_anything_is_sent(open_engine: OpenEngine) -> None:
    with pytest.raises(DeadlineExceeded):
        await stream(open_engine(), request(deadline_s=0.0))


async def test_timings_add_up(open_engine: OpenEngine) -> None:
    for asked in (request(), request(stop_strings=("END",))):
        timings = (await open_engine().complete(asked)).finish.timings
        parts = timings.tokenize_ms + timings.queue_ms + timings.prefill_ms
        assert 0 < timings.tokenize_ms <= timings.time_to_first_token_ms <= timings.total_ms
        assert parts <= timings.time_to_first_token_ms + 1e-6
        assert parts + timings.decode_ms <= timings.total_ms + 1e-6


async def test_tokenize_and_detokenize_are_inverse(open_engine: OpenEngine) -> None:
    engine = open_engine()
    ids = await engine.tokenize(TextPrompt(TEXT))
    assert await engine.detokenize([*ids, END]) == TEXT
    assert await engine.detokenize([*ids, END], keep_special_tokens=True) == TEXT + "<|end|>"


async def test_tokenize_and_detokenize_refuse_nothing_and_the_unknown(open_engine: OpenEngine) -> None:
    engine = open_engine()
    for call in (engine.tokenize(None), engine.tokenize(TextPrompt("")), engine.detokenize([])):
        with pytest.raises(InvalidFields):
            await call
    with pytest.raises(InvalidField) as caught:
        await engine.detokenize([1, VOCAB_SIZE])
    assert caught.value.violations[0].field == "token_ids[1]"


class _HeldPrompts(PromptEncoder):
    """Tokenises only while `gate` is open."""

    def __init__(self) -> None:
        super().__init__(byte_tokenizer(), vocab_size=VOCAB_SIZE)
        self.gate = threading.Event()

    def encode(self, prompt: Prompt) -> NDArray[np.int64]:
        self.gate.wait()
        return super().encode(prompt)


async def test_prompts_beyond_the_bound_are_refused_while_others_are_tokenised(
    open_engine: OpenEngine,
) -> None:
    prompts = _HeldPrompts()
    config = GenerationConfig(num_tokenizer_threads=1, max_waiting_prompts=2, overload_retry_after_s=3)
    engine = open_engine(prompts=prompts, config=config)
    waiting = [asyncio.create_task(engine.complete(request())) for _ in range(2)]
    await asyncio.sleep(0)  # Both tasks run up to their thread.
    with pytest.raises(Overloaded) as caught:
        await engine.complete(request())
    assert caught.value.retry_after_s == 3
    prompts.gate.set()
    assert [whole.text for whole in await asyncio.gather(*waiting)] == [TEXT, TEXT]
    assert (await engine.complete(request())).text == TEXT


async def test_request_cancelled_while_tokenised_never_reaches_the_model(open_engine: OpenEngine) -> None:
    prompts = _HeldPrompts()
    engine = open_engine(prompts=prompts)
    task = asyncio.create_task(engine.complete(request()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    prompts.gate.set()
    await engine.drain()
    assert engine.stats().num_submitted == 0


async def test_draining_engine_takes_no_new_work(open_engine: OpenEngine) -> None:
    engine = open_engine()
    await engine.drain()
    with pytest.raises(Draining):
        await engine.complete(request())


async def test_limits_say_what_a_request_must_stay_within(open_engine: OpenEngine) -> None:
    engine = open_engine(max_positions=100, engine_config=EngineConfig(max_slots=3))
    assert (engine.limits.max_tokens, engine.limits.max_concurrent_sequences) == (100, 3)
    assert engine.execution_provider == "CPUExecutionProvider"


async def test_closing_twice_is_harmless_and_final(open_engine: OpenEngine) -> None:
    engine = open_engine()
    engine.close()
    engine.close()
    with pytest.raises(Draining):
        await engine.tokenize(TextPrompt("too late"))


@pytest.mark.parametrize("name", ["default_max_new_tokens", "num_tokenizer_threads", "max_waiting_prompts"])
def test_setting_that_would_serve_nobody_is_refused(name: str) -> None:
    with pytest.raises(BadConfig, match=name):
        GenerationConfig(**{name: 0})
