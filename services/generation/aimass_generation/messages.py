"""Protobuf to the engine's requests, and its results to protobuf. The only place where both worlds meet.

Translates only: ranges are checked where requests are constructed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from aimass.common.v1 import usage_pb2
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.generation.v1 import options_pb2, prompt_pb2
from aimass_decoding.request import TokenLogprob
from aimass_serving.errors import InvalidField

from aimass_generation.guidance import Guidance, GuidanceKind
from aimass_generation.request import (
    BeamOptions,
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
from aimass_generation.result import (
    Completion,
    Continuation,
    GenerationEvent,
    GenerationFinish,
    PromptInfo,
    TextDelta,
    Timings,
    Usage,
)


@dataclass(frozen=True, slots=True)
class Answerer:
    """What the first message says of the server's side, and what the caller wanted to see."""

    request_id: str
    model: str
    model_version: str
    wants_prompt_token_ids: bool


def generation_request(
    request_pb: pb.GenerateRequest | pb.CompleteRequest, *, request_id: str, deadline_s: float | None
) -> GenerationRequest:
    """Return what the engine is asked. Raises `InvalidFields` with every bad field."""
    limit_pb = request_pb.time_limit
    return GenerationRequest(
        prompt=prompt(request_pb),
        request_id=request_id,
        sampling=_sampling(request_pb.sampling),
        stopping=_stopping(request_pb.stopping),
        output=_output(request_pb.output),
        priority=request_pb.priority,
        time_limit_s=(limit_pb.seconds + limit_pb.nanos / 1e9 if request_pb.HasField("time_limit") else None),
        deadline_s=deadline_s,
        num_sequences=request_pb.num_sequences or 1,
        cache_salt=request_pb.cache_salt,
        guidance=_guidance(request_pb.guidance) if request_pb.HasField("guidance") else None,
        beams=BeamOptions(**{field.name: value for field, value in request_pb.beams.ListFields()}),
        adapter=request_pb.adapter,
    )


def prompt(request_pb: pb.GenerateRequest | pb.CompleteRequest | pb.TokenizeRequest) -> Prompt | None:
    """Return the prompt of a request; None when it has none."""
    match request_pb.WhichOneof("prompt"):
        case "text":
            return TextPrompt(request_pb.text)
        case "chat":
            return _chat(request_pb.chat)
        case "token_ids" if not isinstance(request_pb, pb.TokenizeRequest):
            return TokenPrompt(tuple(request_pb.token_ids.ids))
        case _:
            return None


def event_pb(event: GenerationEvent, answerer: Answerer) -> pb.GenerateResponse:
    """Return one event of the stream as it travels."""
    match event:
        case TextDelta():
            return _delta_response_pb(event)
        case PromptInfo():
            return pb.GenerateResponse(prompt_info=_prompt_info_pb(event, answerer))
        case GenerationFinish():
            return pb.GenerateResponse(finish=_finish_pb(event))
        case _:
            assert_never(event)


def completion_pb(completion: Completion, answerer: Answerer) -> pb.CompleteResponse:
    """Return a whole continuation as it travels."""
    return pb.CompleteResponse(
        prompt_info=_prompt_info_pb(completion.prompt_info, answerer),
        text=completion.text,
        token_ids=completion.token_ids,
        logprobs=_logprob_pbs(completion.logprobs),
        finish=_finish_pb(completion.finish),
        further=[_continuation_pb(continuation) for continuation in completion.further],
    )


def _continuation_pb(continuation: Continuation) -> pb.Continuation:
    return pb.Continuation(
        text=continuation.text,
        token_ids=continuation.token_ids,
        logprobs=_logprob_pbs(continuation.logprobs),
        finish=_finish_pb(continuation.finish),
    )


def _chat(chat_pb: prompt_pb2.ChatPrompt) -> ChatPrompt:
    turns = (
        ChatMessage(turn.role, turn.content, tuple(turn.tool_calls), turn.name) for turn in chat_pb.messages
    )
    return ChatPrompt(tuple(turns), tuple(chat_pb.tools))


def _sampling(options_pb: options_pb2.SamplingOptions) -> SamplingOptions:
    given = {field.name: value for field, value in options_pb.ListFields()}
    if options_pb.logit_bias:
        given["logit_bias"] = dict(options_pb.logit_bias)
    if options_pb.allowed_token_ids:
        given["allowed_token_ids"] = tuple(options_pb.allowed_token_ids)
    return SamplingOptions(**given)


def _stopping(options_pb: options_pb2.StoppingOptions) -> StoppingOptions:
    return StoppingOptions(
        max_new_tokens=_given(options_pb, "max_new_tokens"),
        min_new_tokens=options_pb.min_new_tokens,
        stop_strings=tuple(options_pb.stop_strings),
        stop_token_ids=tuple(options_pb.stop_token_ids),
        include_stop_string=options_pb.include_stop_string,
        ignore_eos=options_pb.ignore_eos,
    )


def _output(options_pb: options_pb2.OutputOptions) -> OutputOptions:
    return OutputOptions(
        wants_token_ids=options_pb.token_ids,
        wants_logprobs=options_pb.logprobs,
        num_top_logprobs=options_pb.top_logprobs,
        wants_prompt_token_ids=options_pb.prompt_token_ids,
        wants_prompt_logprobs=options_pb.prompt_logprobs,
    )


def _guidance(options_pb: options_pb2.GuidanceOptions) -> Guidance:
    form = options_pb.WhichOneof("form")
    match form:
        case None:
            expected = "one of json_schema, json_object, regex, choice and grammar"
            raise InvalidField("guidance", expected=expected, got=None)
        case "choice":
            return Guidance(GuidanceKind.CHOICE, choices=tuple(options_pb.choice.texts))
        case "json_object":
            if not options_pb.json_object:
                raise InvalidField("guidance.json_object", expected="true", got=False)
            return Guidance(GuidanceKind.JSON_OBJECT)
        case _:
            return Guidance(GuidanceKind(form), getattr(options_pb, form))


def _given(message_pb: Any, field_name: str) -> Any:
    return getattr(message_pb, field_name) if message_pb.HasField(field_name) else None


def _prompt_info_pb(info: PromptInfo, answerer: Answerer) -> pb.PromptInfo:
    return pb.PromptInfo(
        request_id=answerer.request_id,
        model=answerer.model,
        model_version=answerer.model_version,
        prompt_tokens=len(info.prompt_ids),
        seed=info.seed,
        prompt_token_ids=info.prompt_ids if answerer.wants_prompt_token_ids else (),
        prompt_logprobs=_logprob_pbs(info.prompt_logprobs),
        adapter=info.adapter,
    )


def _delta_response_pb(delta: TextDelta) -> pb.GenerateResponse:
    """Fill the message where it lies: one is made for each token, and a nested one would be copied."""
    response_pb = pb.GenerateResponse()
    delta_pb = response_pb.delta
    delta_pb.SetInParent()
    delta_pb.text = delta.text
    delta_pb.token_ids.extend(delta.token_ids)
    if delta.logprobs:
        delta_pb.logprobs.extend(_logprob_pbs(delta.logprobs))
    delta_pb.sequence_index = delta.index
    return response_pb


def _logprob_pbs(logprobs: Sequence[TokenLogprob]) -> list[pb.TokenLogprob]:
    return [
        pb.TokenLogprob(
            token_id=entry.token_id,
            logprob=entry.logprob,
            candidates=[pb.TokenCandidate(token_id=i, logprob=value) for i, value in entry.candidates],
        )
        for entry in logprobs
    ]


def _finish_pb(finish: GenerationFinish) -> pb.Finish:
    finish_pb = pb.Finish(
        reason=pb.FinishReason.Value(f"FINISH_REASON_{finish.reason.name}"),
        usage=_usage_pb(finish.usage),
        timings=_timings_pb(finish.timings),
        sequence_index=finish.index,
    )
    if finish.stop_string is not None:
        finish_pb.stop_string = finish.stop_string
    if finish.stop_token_id is not None:
        finish_pb.stop_token_id = finish.stop_token_id
    return finish_pb


def _usage_pb(usage: Usage) -> usage_pb2.Usage:
    return usage_pb2.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_input_tokens=usage.cached_input_tokens,
    )


def _timings_pb(timings: Timings) -> usage_pb2.Timings:
    return usage_pb2.Timings(
        tokenize_ms=timings.tokenize_ms,
        queue_ms=timings.queue_ms,
        prefill_ms=timings.prefill_ms,
        compute_ms=timings.decode_ms,
        time_to_first_token_ms=timings.time_to_first_token_ms,
        total_ms=timings.total_ms,
    )
