"""Python values become request messages, and those that fit no message are refused by field name."""

from __future__ import annotations

from typing import Any

import pytest
from aimass import ChatMessage, EmbeddingOptions, GenerationOptions, Truncation, VectorDtype
from aimass.embedding.v1 import embedding_service_pb2 as embedding_pb
from aimass.errors import InvalidRequest
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.prompt import Prompt, set_prompt


def request_of(prompt: Prompt) -> pb.GenerateRequest:
    request = pb.GenerateRequest()
    set_prompt(request, prompt)
    return request


def filled(options: GenerationOptions) -> pb.GenerateRequest:
    request = pb.GenerateRequest()
    options.fill(request)
    return request


def test_a_string_is_a_text_prompt() -> None:
    assert request_of("") == pb.GenerateRequest(text="")
    assert request_of("héllo 🙂").text == "héllo 🙂"


def test_whole_numbers_are_token_ids() -> None:
    assert list(request_of([1, 2, 3]).token_ids.ids) == [1, 2, 3]


def test_messages_and_pairs_are_the_same_conversation() -> None:
    assert request_of([("user", "hi"), ("assistant", "")]) == request_of(
        [ChatMessage("user", "hi"), ChatMessage("assistant", "")]
    )


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        ([], "prompt"),
        ("\udc80", "text"),
        ([1, 2**40], "token_ids.ids"),
        ([1, "two"], "token_ids.ids"),
        ([("user", "ok"), ("user", "\udc80")], "chat.messages[1]"),
        ([("user",)], "chat.messages[0]"),
    ],
)
def test_a_prompt_that_fits_no_message_is_refused_by_field(prompt: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        request_of(prompt)

    assert [violation.field for violation in refused.value.violations] == [field]


def test_unset_options_leave_the_choice_to_the_model() -> None:
    request = filled(GenerationOptions())

    assert request.sampling.ByteSize() == 0
    assert not request.stopping.HasField("max_new_tokens")
    assert not request.HasField("time_limit")


def test_options_that_are_set_arrive() -> None:
    request = filled(
        GenerationOptions(
            temperature=0.0,
            top_k=5,
            seed=2**63,
            max_new_tokens=7,
            stop_strings=["a", "b"],
            stop_token_ids=(3,),
            wants_logprobs=True,
            num_top_logprobs=2,
            typical_p=0.5,
            logit_bias={3: -1.5},
            allowed_token_ids=[3, 4],
            num_sequences=2,
            cache_salt="tenant",
            adapter="tone",
            priority=-3,
            time_limit_s=1.25,
            request_id="mine",
        )
    )

    assert request.sampling.HasField("temperature")
    assert (request.sampling.top_k, request.sampling.seed) == (5, 2**63)
    assert request.sampling.typical_p == 0.5
    assert not request.sampling.HasField("frequency_penalty")
    assert dict(request.sampling.logit_bias) == {3: -1.5}
    assert list(request.sampling.allowed_token_ids) == [3, 4]
    assert (request.num_sequences, request.cache_salt, request.adapter) == (2, "tenant", "tone")
    assert list(request.stopping.stop_strings) == ["a", "b"]
    assert list(request.stopping.stop_token_ids) == [3]
    assert (request.output.logprobs, request.output.top_logprobs) == (True, 2)
    assert (request.priority, request.request_id) == (-3, "mine")
    assert request.time_limit.ToMilliseconds() == 1250


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (GenerationOptions(seed=-1), "sampling.seed"),
        (GenerationOptions(top_k=2**40), "sampling.top_k"),
        (GenerationOptions(logit_bias={2**40: 1.0}), "sampling.logit_bias"),
        (GenerationOptions(allowed_token_ids=[2**40]), "sampling.allowed_token_ids"),
        (GenerationOptions(num_sequences=2**40), "num_sequences"),
        (GenerationOptions(max_new_tokens=-(2**40)), "stopping.max_new_tokens"),
        (GenerationOptions(stop_strings=["\udc80"]), "stopping.stop_strings"),
        (GenerationOptions(num_top_logprobs=2**40), "output.top_logprobs"),
        (GenerationOptions(priority=2**40), "priority"),
        (GenerationOptions(time_limit_s=float("nan")), "time_limit"),
        (GenerationOptions(time_limit_s=float("inf")), "time_limit"),
        (GenerationOptions(time_limit_s=1e300), "time_limit"),
    ],
)
def test_an_option_that_fits_no_field_is_refused_by_field(options: GenerationOptions, field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        filled(options)

    assert [violation.field for violation in refused.value.violations] == [field]
    assert refused.value.reason == "INVALID_FIELD"


def test_embedding_options_arrive() -> None:
    message = EmbeddingOptions(
        normalize=False,
        dimensions=8,
        dtype=VectorDtype.BINARY,
        truncation=Truncation.NONE,
        prompt_name="query",
    ).message()

    assert message == embedding_pb.EmbedOptions(
        normalize=False,
        dimensions=8,
        dtype=embedding_pb.VECTOR_DTYPE_BINARY,
        truncation=embedding_pb.TRUNCATION_NONE,
        prompt_name="query",
    )


def test_unset_embedding_options_leave_the_choice_to_the_model() -> None:
    message = EmbeddingOptions().message()

    assert not message.HasField("normalize")
    assert not message.HasField("dimensions")
