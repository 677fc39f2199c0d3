"""The wire and the engine say the same things: no field, reason or default exists on one side only."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.generation.v1 import options_pb2
from aimass.model.v1 import manifest_pb2
from aimass_decoding import request as decoding
from aimass_generation.guidance import Guidance, GuidanceKind
from aimass_generation.messages import generation_request
from aimass_generation.request import (
    BeamOptions,
    ChatMessage,
    ChatPrompt,
    OutputOptions,
    SamplingOptions,
    StoppingOptions,
)
from aimass_generation.result import FinishReason
from aimass_serving.errors import InvalidFields
from google.protobuf.descriptor import Descriptor, FieldDescriptor


def shape_of(message: Descriptor) -> list[tuple[Any, ...]]:
    return [
        (
            field.name,
            field.number,
            field.type,
            field.is_repeated,
            field.has_presence,
            field.message_type.full_name if field.message_type else "",
            field.containing_oneof.name if field.containing_oneof else "",
        )
        for field in message.fields
    ]


def names_of(message: Descriptor) -> set[str]:
    return {field.name for field in message.fields}


def test_generate_and_complete_take_the_same_request() -> None:
    """A caller may switch between them by the name of the message alone: even the bytes are the same."""
    assert shape_of(pb.GenerateRequest.DESCRIPTOR) == shape_of(pb.CompleteRequest.DESCRIPTOR)


def test_every_sampling_option_of_the_wire_reaches_the_engine() -> None:
    wire = names_of(options_pb2.SamplingOptions.DESCRIPTOR)
    assert wire == {field.name for field in fields(SamplingOptions)}
    assert wire <= {field.name for field in fields(decoding.SamplingParams)}


def test_every_stopping_option_of_the_wire_reaches_the_engine() -> None:
    assert names_of(options_pb2.StoppingOptions.DESCRIPTOR) == {
        field.name for field in fields(StoppingOptions)
    }


def test_every_output_option_of_the_wire_reaches_the_engine() -> None:
    assert len(names_of(options_pb2.OutputOptions.DESCRIPTOR)) == len(fields(OutputOptions))


def test_every_beam_option_of_the_wire_reaches_the_engine() -> None:
    wire = names_of(options_pb2.BeamOptions.DESCRIPTOR)
    assert wire == {field.name for field in fields(BeamOptions)}
    assert wire <= {field.name for field in fields(decoding.BeamParams)}


def test_every_default_of_a_bundle_is_a_request_field() -> None:
    defaults = names_of(manifest_pb2.GenerationDefaults.DESCRIPTOR)
    assert defaults - {"max_new_tokens"} <= names_of(options_pb2.SamplingOptions.DESCRIPTOR)
    assert "max_new_tokens" in names_of(options_pb2.StoppingOptions.DESCRIPTOR)


def test_finish_reasons_are_the_same_on_the_wire_and_in_the_engine() -> None:
    wire = {name.removeprefix("FINISH_REASON_") for name in pb.FinishReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118
    assert wire == {reason.name for reason in FinishReason}


def test_every_reason_of_the_decoding_engine_has_a_name_here() -> None:
    names = {reason.name for reason in decoding.FinishReason}
    assert names | {"STOP_STRING"} == {reason.name for reason in FinishReason}
    assert all(FinishReason(reason.value).name == reason.name for reason in decoding.FinishReason)


@pytest.mark.parametrize("message", [pb.GenerateRequest, pb.CompleteRequest])
def test_a_full_request_arrives_with_every_field(message: Any) -> None:
    request_pb = message(
        model="m",
        chat={
            "messages": [{"role": "tool", "content": "hi", "tool_calls": ["{}"], "name": "t"}],
            "tools": ['{"a": 1}'],
        },
        sampling={
            "temperature": 0.5,
            "top_k": 7,
            "top_p": 0.25,
            "min_p": 0.125,
            "repetition_penalty": 1.5,
            "seed": 2**64 - 1,
            "typical_p": 0.75,
            "frequency_penalty": -0.5,
            "presence_penalty": 0.5,
            "logit_bias": {3: 1.5},
            "allowed_token_ids": [3, 4],
        },
        stopping={
            "max_new_tokens": 9,
            "min_new_tokens": 2,
            "stop_strings": ["a", "b"],
            "stop_token_ids": [3, 4],
            "include_stop_string": True,
            "ignore_eos": True,
        },
        output={
            "token_ids": True,
            "logprobs": True,
            "top_logprobs": 5,
            "prompt_token_ids": True,
            "prompt_logprobs": True,
        },
        priority=-3,
        time_limit={"seconds": 1, "nanos": 500_000_000},
        request_id="r",
        num_sequences=3,
        cache_salt="s",
        adapter="tone",
        beams={"num_beams": 1, "length_penalty": 0.5, "early_stopping": False, "no_repeat_ngram_size": 0},
    )
    not_together = {"guidance"}
    fields_pb = [field for field in message.DESCRIPTOR.fields if field.name not in not_together]
    assert all(_is_set(request_pb, field) for field in fields_pb)
    asked = generation_request(request_pb, request_id="r", deadline_s=12.5)
    assert asked.sampling == SamplingOptions(
        0.5, 7, 0.25, 0.125, 1.5, 2**64 - 1, 0.75, -0.5, 0.5, {3: 1.5}, (3, 4)
    )
    assert (asked.num_sequences, asked.cache_salt, asked.adapter) == (3, "s", "tone")
    assert asked.stopping == StoppingOptions(9, 2, ("a", "b"), (3, 4), True, True)
    assert asked.output == OutputOptions(True, True, 5, True, True)
    assert asked.prompt == ChatPrompt((ChatMessage("tool", "hi", ("{}",), "t"),), ('{"a": 1}',))
    assert asked.beams == BeamOptions(1, 0.5, False, 0)
    assert (asked.priority, asked.time_limit_s, asked.deadline_s, asked.request_id) == (-3, 1.5, 12.5, "r")


GUIDANCE: dict[str, tuple[dict[str, Any], Guidance]] = {
    "json_schema": ({"json_schema": "{}"}, Guidance(GuidanceKind.JSON_SCHEMA, "{}")),
    "regex": ({"regex": "a+"}, Guidance(GuidanceKind.REGEX, "a+")),
    "choice": ({"choice": {"texts": ["a", "b"]}}, Guidance(GuidanceKind.CHOICE, choices=("a", "b"))),
    "grammar": ({"grammar": 'start: "a"'}, Guidance(GuidanceKind.GRAMMAR, 'start: "a"')),
    "json_object": ({"json_object": True}, Guidance(GuidanceKind.JSON_OBJECT)),
}


def test_every_form_of_guidance_is_known_on_both_sides() -> None:
    assert names_of(options_pb2.GuidanceOptions.DESCRIPTOR) == set(GuidanceKind) == set(GUIDANCE)


@pytest.mark.parametrize("message", [pb.GenerateRequest, pb.CompleteRequest])
@pytest.mark.parametrize("form", GUIDANCE)
def test_each_form_of_guidance_arrives(message: Any, form: str) -> None:
    sent, guidance = GUIDANCE[form]
    asked = generation_request(message(text="a", guidance=sent), request_id="", deadline_s=None)
    assert asked.guidance == guidance


@pytest.mark.parametrize("sent", [{}, {"json_object": False}, {"choice": {}}, {"regex": ""}])
def test_guidance_without_a_form_is_refused_and_not_ignored(sent: dict[str, Any]) -> None:
    request_pb = pb.GenerateRequest(text="a", guidance=options_pb2.GuidanceOptions(**sent))
    with pytest.raises(InvalidFields, match="guidance"):
        generation_request(request_pb, request_id="", deadline_s=None)


def test_a_zero_that_was_sent_is_not_a_default() -> None:
    """Greedy decoding is temperature 0, which must not fall back to the model's own temperature."""
    asked = generation_request(
        pb.GenerateRequest(text="a", sampling=options_pb2.SamplingOptions(temperature=0, top_k=0)),
        request_id="",
        deadline_s=None,
    )
    params = asked.sampling.params(SamplingOptions(temperature=0.7, top_k=50, top_p=0.5))
    assert (params.temperature, params.top_k, params.top_p) == (0, 0, 0.5)


def _is_set(message: Any, field: FieldDescriptor) -> bool:
    """One form of the prompt can be set; the others count as set with it."""
    if field.containing_oneof is not None:
        return message.WhichOneof(field.containing_oneof.name) is not None
    return message.HasField(field.name) if field.has_presence else bool(getattr(message, field.name))
