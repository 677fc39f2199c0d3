"""A request that exists is in range; one that is not names every bad field at once."""

from __future__ import annotations

from typing import Any

import pytest
from aimass_generation.request import (
    ChatMessage,
    ChatPrompt,
    GenerationRequest,
    OutputOptions,
    SamplingOptions,
    StoppingOptions,
    TextPrompt,
    TokenPrompt,
)
from aimass_serving.errors import InvalidFields

PROMPT = TextPrompt("a")
NAN, INFINITY = float("nan"), float("inf")


def refused_fields(**fields: Any) -> list[str]:
    with pytest.raises(InvalidFields) as caught:
        GenerationRequest(**({"prompt": PROMPT} | fields))
    return [violation.field for violation in caught.value.violations]


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (None, "prompt"),
        (TextPrompt(""), "text"),
        (TokenPrompt(()), "token_ids.ids"),
        (ChatPrompt(()), "chat.messages"),
        (ChatPrompt((ChatMessage("user", "a"), ChatMessage("", "b"))), "chat.messages[1].role"),
    ],
)
def test_empty_prompt_is_refused(prompt: Any, field: str) -> None:
    assert refused_fields(prompt=prompt) == [field]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-0.1, 10.5, NAN, INFINITY]),
        ("top_k", [-1]),
        ("top_p", [0.0, -1.0, 1.01, NAN]),
        ("min_p", [-0.1, 1.0, NAN]),
        ("repetition_penalty", [0.0, -1.0, 10.5, NAN]),
        ("typical_p", [0.0, -1.0, 1.01, NAN]),
        ("frequency_penalty", [-2.1, 2.1, NAN]),
        ("presence_penalty", [-2.1, 2.1, NAN]),
        ("logit_bias", [dict.fromkeys(range(1025), 1.0)]),
        ("allowed_token_ids", [tuple(range(4097))]),
    ],
)
def test_sampling_out_of_range_names_its_field(name: str, values: list[Any]) -> None:
    for value in values:
        assert refused_fields(sampling=SamplingOptions(**{name: value})) == [f"sampling.{name}"]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_new_tokens": 0}, "stopping.max_new_tokens"),
        ({"max_new_tokens": -5}, "stopping.max_new_tokens"),
        ({"min_new_tokens": -1}, "stopping.min_new_tokens"),
        ({"max_new_tokens": 3, "min_new_tokens": 4}, "stopping.min_new_tokens"),
        ({"stop_strings": ("a",) * 17}, "stopping.stop_strings"),
        ({"stop_strings": ("a", "")}, "stopping.stop_strings[1]"),
        ({"stop_strings": ("a" * 257,)}, "stopping.stop_strings[0]"),
        ({"stop_token_ids": tuple(range(65))}, "stopping.stop_token_ids"),
    ],
)
def test_stopping_out_of_range_names_its_field(options: dict[str, Any], field: str) -> None:
    assert refused_fields(stopping=StoppingOptions(**options)) == [field]


@pytest.mark.parametrize("bias", [-100.5, 101, NAN, INFINITY])
def test_a_bias_out_of_range_names_its_token(bias: float) -> None:
    refused = refused_fields(sampling=SamplingOptions(logit_bias={3: 0.0, 7: bias}))
    assert refused == ["sampling.logit_bias[7]"]


@pytest.mark.parametrize("count", [-1, 0, 17])
def test_a_number_of_sequences_out_of_range_is_refused(count: int) -> None:
    assert refused_fields(num_sequences=count) == ["num_sequences"]


def test_a_salt_that_is_too_long_is_refused() -> None:
    assert refused_fields(cache_salt="s" * 257) == ["cache_salt"]
    assert refused_fields(adapter="a" * 129) == ["adapter"]


@pytest.mark.parametrize("count", [-1, 21])
def test_top_logprobs_out_of_range_is_refused(count: int) -> None:
    assert refused_fields(output=OutputOptions(num_top_logprobs=count)) == ["output.top_logprobs"]


@pytest.mark.parametrize("priority", [-101, 101])
def test_priority_out_of_range_is_refused(priority: int) -> None:
    assert refused_fields(priority=priority) == ["priority"]


@pytest.mark.parametrize("limit_s", [0.0, -1.0, NAN])
def test_time_limit_must_be_more_than_nothing(limit_s: float) -> None:
    assert refused_fields(time_limit_s=limit_s) == ["time_limit"]


def test_all_bad_fields_are_named_together() -> None:
    fields = refused_fields(
        prompt=None,
        sampling=SamplingOptions(temperature=-1, top_p=2),
        stopping=StoppingOptions(max_new_tokens=0, stop_strings=("",)),
        priority=1000,
    )
    assert fields == [
        "prompt",
        "sampling.temperature",
        "sampling.top_p",
        "stopping.max_new_tokens",
        "stopping.stop_strings[0]",
        "priority",
    ]


def test_edges_of_every_range_are_accepted() -> None:
    for temperature, top_p, min_p in [(0, 1, 0), (10, 1e-6, 0.999)]:
        sampling = SamplingOptions(
            temperature=temperature, top_k=0, top_p=top_p, min_p=min_p, repetition_penalty=10
        )
        stopping = StoppingOptions(
            max_new_tokens=1,
            min_new_tokens=1,
            stop_strings=("a" * 256,) * 16,
            stop_token_ids=tuple(range(64)),
        )
        GenerationRequest(
            PROMPT,
            sampling=sampling,
            stopping=stopping,
            output=OutputOptions(num_top_logprobs=20),
            priority=-100,
        )


def test_what_the_caller_left_open_takes_the_models_default() -> None:
    defaults = SamplingOptions(temperature=0.5, top_k=7)
    params = SamplingOptions(temperature=0.0, top_p=0.9).params(defaults)
    assert (params.temperature, params.top_k, params.top_p) == (0.0, 7, 0.9)
