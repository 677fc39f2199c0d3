"""`GenerationService` over a real server: a real graph for what is said, a script for exact text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import pytest_asyncio
from aimass.errors import RpcError, error_of
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.generation.v1.generation_service_pb2_grpc import GenerationServiceStub
from aimass.model.v1 import model_service_pb2, model_service_pb2_grpc
from aimass.model.v1.manifest_pb2 import TASK_TEXT_GENERATION
from aimass_decoding.config import EngineConfig
from aimass_decoding.testing import FakeDecoder
from aimass_generation.__main__ import PLAN
from aimass_generation.engine import GenerationEngine
from aimass_generation.testing import fake_generation_engine, fake_plan, scripted_decoder
from aimass_serving.testing import running_service, write_bundle

if TYPE_CHECKING:
    from aimass.generation.v1.generation_service_pb2_grpc import GenerationServiceAsyncStub

TEXT = "naïve 東京 😀👍🏽 — END of it"
ENDLESS = "x" * 8000
PROMPTS = ["the river ran", "a small model reads", "1928", "def add(", "東京 😀", "\n\n", "x" * 90, "lamp"]
TINY, FAKE = "tiny-llama", "fake"
SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16 * 1024)]
"""A reader that falls behind blocks the writer after a few kilobytes, as a far and slow one would."""


class Client:
    """A channel to a running service, with the engine behind it at hand."""

    def __init__(self, channel: grpc.aio.Channel, engine: GenerationEngine, model: str) -> None:
        self.channel = channel
        self.engine = engine
        self.model = model
        self.stub: GenerationServiceAsyncStub = GenerationServiceStub(channel)

    async def complete(self, *, timeout_s: float = 60, **fields: Any) -> pb.CompleteResponse:
        return await self.stub.Complete(
            pb.CompleteRequest(**({"model": self.model} | fields)), timeout=timeout_s
        )

    def generate(self, *, timeout_s: float = 60, **fields: Any) -> Any:
        return self.stub.Generate(pb.GenerateRequest(**({"model": self.model} | fields)), timeout=timeout_s)

    async def stream(self, **fields: Any) -> list[pb.GenerateResponse]:
        return [event async for event in self.generate(**fields)]

    async def refusal(self, call: Any) -> RpcError:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call
        return error_of(failed.value, address="here")

    async def becomes_idle(self) -> None:
        """Wait until no slot is taken. The test's own time limit says when that took too long."""
        while self.engine.stats().num_slots_taken or self.engine.stats().num_waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def text_of(events: list[pb.GenerateResponse]) -> str:
    return "".join(event.delta.text for event in events)


@pytest_asyncio.fixture
async def tiny(tiny_llama_store: Path) -> AsyncIterator[Client]:
    """The real service on a real graph."""
    async with (
        running_service(PLAN, tiny_llama_store) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        yield Client(channel, service.registry.get(TINY).engine, TINY)


@pytest.fixture
def decoder() -> FakeDecoder:
    return scripted_decoder({"go": TEXT, "on": ENDLESS})


@pytest_asyncio.fixture
async def fake(tmp_path: Path, decoder: FakeDecoder) -> AsyncIterator[Client]:
    """The real service on a scripted decoder with a context of 8192 tokens."""
    write_bundle(tmp_path, FAKE, task=TASK_TEXT_GENERATION)
    engine = fake_generation_engine(decoder, max_positions=8192, engine_config=EngineConfig(max_len=8192))
    async with (
        running_service(fake_plan(engine), tmp_path) as service,
        grpc.aio.insecure_channel(service.address, options=SMALL_WINDOW) as channel,
    ):
        yield Client(channel, engine, FAKE)


async def test_stream_begins_with_what_was_understood_and_ends_with_why(tiny: Client) -> None:
    events = await tiny.stream(
        text="the river", stopping={"max_new_tokens": 12}, output={"prompt_token_ids": True}, request_id="r 1"
    )
    info = events[0].prompt_info
    assert (info.request_id, info.model, info.model_version) == ("r 1", TINY, "1")
    assert len(info.prompt_token_ids) == info.prompt_tokens > 0
    assert not info.HasField("seed")
    assert {event.WhichOneof("event") for event in events[1:-1]} <= {"delta"}
    finish = events[-1].finish
    assert finish.usage.input_tokens == info.prompt_tokens
    assert finish.usage.output_tokens <= 12
    assert finish.timings.total_ms >= finish.timings.time_to_first_token_ms > 0


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 11, "top_p": 0.9}])
async def test_joined_stream_equals_complete(tiny: Client, sampling: dict[str, Any]) -> None:
    for prompt in PROMPTS:
        fields: dict[str, Any] = {
            "text": prompt,
            "sampling": sampling,
            "stopping": {"max_new_tokens": 40},
            "output": {"token_ids": True, "logprobs": True},
        }
        events, whole = await asyncio.gather(tiny.stream(**fields), tiny.complete(**fields))
        assert text_of(events) == whole.text
        assert [token_id for event in events for token_id in event.delta.token_ids] == list(whole.token_ids)
        assert len(whole.logprobs) == len(whole.token_ids)
        assert events[-1].finish.usage.input_tokens == whole.finish.usage.input_tokens
        assert events[-1].finish.usage.output_tokens == whole.finish.usage.output_tokens
        assert events[-1].finish.reason == whole.finish.reason


async def test_greedy_tokens_equal_those_of_pytorch_alone_and_eight_at_once(
    tiny: Client, tiny_llama_model: Any
) -> None:
    expected = [pytorch_greedy(tiny_llama_model, prompt, num_tokens=12) for prompt in PROMPTS]
    calls: list[dict[str, Any]] = [
        {
            "text": prompt,
            "stopping": {"max_new_tokens": 12, "ignore_eos": True},
            "output": {"token_ids": True},
        }
        for prompt in PROMPTS
    ]
    alone = [list((await tiny.complete(**call)).token_ids) for call in calls]
    together = await asyncio.gather(*(tiny.complete(**call) for call in calls))
    assert alone == expected
    assert [list(whole.token_ids) for whole in together] == expected


def pytorch_greedy(oracle: Any, prompt: str, *, num_tokens: int) -> list[int]:
    import torch

    model, tokenizer = oracle
    ids = tokenizer.encode(prompt).ids
    for _ in range(num_tokens):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return list(ids[-num_tokens:])


async def test_chat_is_laid_out_as_the_model_was_trained(tiny: Client, tiny_llama_model: Any) -> None:
    chat: Any = {"messages": [{"role": "user", "content": "hello"}]}
    reply = await tiny.stub.Tokenize(pb.TokenizeRequest(model=TINY, chat=chat))
    _, tokenizer = tiny_llama_model
    expected = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert list(reply.token_ids) == tokenizer.encode(expected, add_special_tokens=False).ids
    whole = await tiny.complete(chat=chat, stopping={"max_new_tokens": 3}, output={"prompt_token_ids": True})
    assert whole.prompt_info.prompt_token_ids == reply.token_ids


async def test_tokenize_and_detokenize_are_inverse(tiny: Client) -> None:
    ids = (await tiny.stub.Tokenize(pb.TokenizeRequest(model=TINY, text=TEXT))).token_ids
    back = await tiny.stub.Detokenize(pb.DetokenizeRequest(model=TINY, token_ids=[*ids, 2]))
    kept = await tiny.stub.Detokenize(
        pb.DetokenizeRequest(model=TINY, token_ids=[*ids, 2], keep_special_tokens=True)
    )
    assert (back.text, kept.text) == (TEXT, TEXT + "<|im_end|>")


async def test_same_ids_give_the_same_text_as_their_prompt(tiny: Client) -> None:
    ids = (await tiny.stub.Tokenize(pb.TokenizeRequest(model=TINY, text="the mill"))).token_ids
    by_text = await tiny.complete(text="the mill", stopping={"max_new_tokens": 8})
    by_ids = await tiny.complete(token_ids={"ids": ids}, stopping={"max_new_tokens": 8})
    assert by_ids.text == by_text.text


async def test_chosen_seed_comes_back_and_repeats_the_text(tiny: Client) -> None:
    fields: dict[str, Any] = {"text": "the lamp", "stopping": {"max_new_tokens": 20}}
    first = await tiny.complete(**fields, sampling={"temperature": 1.5})
    seed = first.prompt_info.seed
    again = await tiny.complete(**fields, sampling={"temperature": 1.5, "seed": seed})
    assert first.prompt_info.HasField("seed")
    assert again.text == first.text


async def test_model_service_tells_the_limits(tiny: Client) -> None:
    stub: Any = model_service_pb2_grpc.ModelServiceStub(tiny.channel)
    model = (await stub.GetModel(model_service_pb2.GetModelRequest(model=TINY))).model
    assert (model.limits.max_tokens, model.limits.max_concurrent_sequences) == (256, 16)
    assert model.verified


async def test_stop_string_at_every_place_of_the_text(fake: Client) -> None:
    for start in range(len(TEXT) - 1):
        stop = TEXT[start : start + 2]
        events = await fake.stream(text="go", stopping={"stop_strings": [stop]})
        finish = events[-1].finish
        assert text_of(events) == TEXT[: TEXT.index(stop)]
        assert finish.reason == pb.FINISH_REASON_STOP_STRING
        assert finish.stop_string == stop


async def test_finish_names_the_token_that_ended_the_text(fake: Client) -> None:
    whole = await fake.complete(text="go")
    assert (whole.text, whole.finish.reason, whole.finish.stop_token_id) == (TEXT, pb.FINISH_REASON_EOS, 256)
    whole = await fake.complete(text="go", stopping={"stop_token_ids": [ord("v")]})
    assert (whole.finish.reason, whole.finish.stop_token_id) == (pb.FINISH_REASON_STOP_TOKEN, ord("v"))


async def test_time_limit_keeps_what_was_generated(fake: Client) -> None:
    whole = await fake.complete(text="on", time_limit={"nanos": 50_000_000})
    assert whole.finish.reason == pb.FINISH_REASON_TIME_LIMIT
    assert 0 <= whole.finish.usage.output_tokens < 8000
    assert set(whole.text) <= {"x"}


@pytest.mark.parametrize(
    ("fields", "bad_field"),
    [
        ({}, "prompt"),
        ({"text": ""}, "text"),
        ({"token_ids": {}}, "token_ids.ids"),
        ({"token_ids": {"ids": [1, 2, 3, 999]}}, "token_ids.ids[3]"),
        ({"token_ids": {"ids": [-1]}}, "token_ids.ids[0]"),
        ({"chat": {}}, "chat.messages"),
        ({"chat": {"messages": [{"content": "x"}]}}, "chat.messages[0].role"),
        ({"text": "a", "sampling": {"temperature": -1}}, "sampling.temperature"),
        ({"text": "a", "sampling": {"temperature": float("nan")}}, "sampling.temperature"),
        ({"text": "a", "sampling": {"top_k": -1}}, "sampling.top_k"),
        ({"text": "a", "sampling": {"top_k": 259}}, "sampling.top_k"),
        ({"text": "a", "sampling": {"top_p": 0}}, "sampling.top_p"),
        ({"text": "a", "sampling": {"top_p": 1.5}}, "sampling.top_p"),
        ({"text": "a", "sampling": {"min_p": 1}}, "sampling.min_p"),
        ({"text": "a", "sampling": {"repetition_penalty": 0}}, "sampling.repetition_penalty"),
        ({"text": "a", "stopping": {"max_new_tokens": 0}}, "stopping.max_new_tokens"),
        ({"text": "a", "stopping": {"max_new_tokens": 8192}}, "stopping.max_new_tokens"),
        ({"text": "a", "stopping": {"min_new_tokens": -1}}, "stopping.min_new_tokens"),
        ({"text": "a", "stopping": {"max_new_tokens": 2, "min_new_tokens": 3}}, "stopping.min_new_tokens"),
        ({"text": "a", "stopping": {"stop_strings": [""]}}, "stopping.stop_strings[0]"),
        ({"text": "a", "stopping": {"stop_strings": ["x"] * 100}}, "stopping.stop_strings"),
        ({"text": "a", "stopping": {"stop_token_ids": [999]}}, "stopping.stop_token_ids[0]"),
        ({"text": "a", "output": {"top_logprobs": 21}}, "output.top_logprobs"),
        ({"text": "a", "priority": 101}, "priority"),
        ({"text": "a", "time_limit": {}}, "time_limit"),
        ({"text": "a", "time_limit": {"seconds": -5}}, "time_limit"),
        ({"text": "a", "request_id": "é"}, "request_id"),
        ({"text": "a", "request_id": "r" * 129}, "request_id"),
        ({"text": "a" * 8192}, "text"),
    ],
)
async def test_bad_input_names_its_field_in_both_rpcs(
    fake: Client, fields: dict[str, Any], bad_field: str
) -> None:
    for call in (fake.complete(**fields), fake.stream(**fields)):
        refused = await fake.refusal(call)
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.reason in ("INVALID_FIELD", "INPUT_TOO_LONG")
        assert [violation.field for violation in refused.violations] == [bad_field]
    assert (await fake.complete(text="go")).text == TEXT


async def test_every_bad_field_of_a_request_is_named_at_once(fake: Client) -> None:
    refused = await fake.refusal(
        fake.complete(sampling={"temperature": -1, "top_p": 2}, stopping={"max_new_tokens": 0})
    )
    assert [violation.field for violation in refused.violations] == [
        "prompt",
        "sampling.temperature",
        "sampling.top_p",
        "stopping.max_new_tokens",
    ]


async def test_unknown_model_is_not_found(fake: Client) -> None:
    for model in ("nobody", "fake@7", ""):
        refused = await fake.refusal(fake.complete(model=model, text="go"))
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_tokenize_and_detokenize_refuse_bad_input(fake: Client) -> None:
    calls: list[tuple[Any, str]] = [
        (fake.stub.Tokenize(pb.TokenizeRequest(model=FAKE)), "prompt"),
        (fake.stub.Tokenize(pb.TokenizeRequest(model=FAKE, text="")), "text"),
        (fake.stub.Detokenize(pb.DetokenizeRequest(model=FAKE)), "token_ids"),
        (fake.stub.Detokenize(pb.DetokenizeRequest(model=FAKE, token_ids=[1, 258])), "token_ids[1]"),
    ]
    for call, field in calls:
        assert [violation.field for violation in (await fake.refusal(call)).violations] == [field]


@pytest.mark.parametrize(
    "message",
    [
        b"\x0a\x04fake\x12\x02\xff\xfe",  # `text` is not UTF-8
        b"\x0a\x04fake\x2a\xff",  # a field longer than the message
        b"\xff" * 64,
    ],
)
async def test_bytes_that_are_no_request_are_refused_as_such(fake: Client, message: bytes) -> None:
    path = f"/{pb.DESCRIPTOR.services_by_name['GenerationService'].full_name}"

    channel: Any = fake.channel

    async def stream() -> None:
        async for _ in channel.unary_stream(f"{path}/Generate")(message):
            pass

    for call in (channel.unary_unary(f"{path}/Complete")(message), stream()):
        refused = await fake.refusal(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")
    assert (await fake.complete(text="go")).text == TEXT


async def test_message_over_the_limit_is_refused_and_others_go_on(fake: Client) -> None:
    other = asyncio.create_task(fake.complete(text="on", stopping={"max_new_tokens": 300}))
    refused = await fake.refusal(fake.complete(text="x" * (10 * 2**20)))
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await other).text == "x" * 300


async def test_cancelled_call_frees_its_slot(fake: Client) -> None:
    call = fake.generate(text="on", stopping={"max_new_tokens": 8000})
    await call.read()
    call.cancel()
    await fake.becomes_idle()
    stats = fake.engine.stats()
    assert (stats.num_cancelled, dict(stats.num_finished)) == (1, {})


async def test_cancelled_unary_call_frees_its_slot(fake: Client, decoder: FakeDecoder) -> None:
    loop, is_running = asyncio.get_running_loop(), asyncio.Event()

    def tell(_: object) -> None:
        loop.call_soon_threadsafe(is_running.set)

    decoder.before_run = tell
    stopping: Any = {"max_new_tokens": 8000}
    call: Any = fake.stub.Complete(pb.CompleteRequest(model=FAKE, text="on", stopping=stopping))
    await is_running.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await fake.becomes_idle()
    assert fake.engine.stats().num_cancelled == 1


async def test_passed_deadline_ends_the_call_and_frees_its_slot(fake: Client) -> None:
    refused = await fake.refusal(fake.complete(text="on", stopping={"max_new_tokens": 8000}, timeout_s=0.2))
    assert refused.code is grpc.StatusCode.DEADLINE_EXCEEDED
    await fake.becomes_idle()
    assert not fake.engine.stats().num_finished


async def test_client_that_never_reads_holds_nobody_up_and_loses_nothing(fake: Client) -> None:
    """Its slot is free as soon as its text is complete, and what the network refuses to take is kept."""
    silent = fake.generate(
        text="on", stopping={"max_new_tokens": 2000}, output={"logprobs": True, "top_logprobs": 20}
    )
    await silent.initial_metadata()
    quick = await asyncio.gather(*(fake.complete(text="go") for _ in range(4)))
    assert [whole.text for whole in quick] == [TEXT] * 4
    await fake.becomes_idle()
    events = [event async for event in silent]
    assert text_of(events) == "x" * 2000
    assert sum(len(event.delta.logprobs) for event in events) == 2000


async def test_what_waits_for_a_slow_reader_goes_out_as_one_message(fake: Client) -> None:
    """Tokens that are ready at once are not sent one by one."""
    slow = fake.generate(
        text="on", stopping={"max_new_tokens": 2000}, output={"logprobs": True, "top_logprobs": 20}
    )
    await slow.initial_metadata()
    await fake.becomes_idle()
    events = [event async for event in slow]
    assert max(len(event.delta.logprobs) for event in events) > 1000


async def test_eight_streams_at_once_share_runs_of_the_graph(fake: Client, decoder: FakeDecoder) -> None:
    calls = [fake.generate(text="on", stopping={"max_new_tokens": 8000}) for _ in range(8)]
    for call in calls:
        for _ in range(3):  # what was understood, the first token, and one of a step that all take part in
            await call.read()
    for call in calls:
        call.cancel()
    await fake.becomes_idle()
    assert max(rows for rows, seq in decoder.runs if seq == 1) == 8


async def test_overloaded_queue_answers_when_to_come_back(tmp_path: Path) -> None:
    write_bundle(tmp_path, FAKE, task=TASK_TEXT_GENERATION)
    config = EngineConfig(max_len=1024, max_slots=1, max_queue_tokens=4)
    engine = fake_generation_engine(
        scripted_decoder({"on": ENDLESS}), max_positions=1024, engine_config=config
    )
    async with (
        running_service(fake_plan(engine), tmp_path) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        client = Client(channel, engine, FAKE)
        running = client.generate(text="on", stopping={"max_new_tokens": 1000})
        await running.read()
        queued = [
            asyncio.create_task(client.complete(text="on", stopping={"max_new_tokens": 1000}))
            for _ in range(8)
        ]
        done, _ = await asyncio.wait(queued, return_when=asyncio.FIRST_EXCEPTION)
        failed = [task.exception() for task in done if task.exception()]
        assert isinstance(failed[0], grpc.aio.AioRpcError)
        refused = error_of(failed[0], address="here")
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert refused.retry_after_s is not None
        running.cancel()
        for task in queued:
            task.cancel()
        await asyncio.gather(*queued, return_exceptions=True)
