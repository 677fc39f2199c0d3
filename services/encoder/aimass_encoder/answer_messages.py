"""Questions and answers as they travel: between messages and the engine's own words."""

from __future__ import annotations

from aimass.classification.v1 import question_answering_pb2 as pb
from aimass_serving.errors import AimassError
from aimass_serving.registry import ServedModel

from aimass_encoder.answering import AnsweredQuestion, AnswerOptions, AnswerReply, AnswerRequest
from aimass_encoder.messages import item_error_pb, reply_fields
from aimass_encoder.task_engine import TaskEngine

_DEFAULTS = AnswerOptions()


def answer_request(request: pb.AnswerQuestionRequest, *, deadline_s: float | None) -> AnswerRequest:
    """Return the engine's request. Raises `InvalidField`."""
    options = request.options
    return AnswerRequest(
        [(item.question, item.context) for item in request.inputs],
        AnswerOptions(
            top_k=options.top_k if options.HasField("top_k") else _DEFAULTS.top_k,
            max_answer_tokens=options.max_answer_tokens
            if options.HasField("max_answer_tokens")
            else _DEFAULTS.max_answer_tokens,
            allow_no_answer=options.allow_no_answer,
            overlap_tokens=options.overlap_tokens if options.HasField("overlap_tokens") else None,
        ),
        deadline_s=deadline_s,
    )


def answer_response(reply: AnswerReply, served: ServedModel[TaskEngine]) -> pb.AnswerQuestionResponse:
    """Return the reply as it travels."""
    return pb.AnswerQuestionResponse(
        results=[_result(result) for result in reply.results],
        **reply_fields(reply, served),
    )


def _result(result: AnsweredQuestion | AimassError) -> pb.AnswerQuestionResult:
    if isinstance(result, AimassError):
        return pb.AnswerQuestionResult(error=item_error_pb(result))
    return pb.AnswerQuestionResult(
        answered=pb.QuestionAnswers(
            answers=[pb.Answer(text=a.text, score=a.score, start=a.start, end=a.end) for a in result.answers],
            no_answer_score=result.no_answer_score,
            tokens=result.num_tokens,
            windows=result.num_windows,
        )
    )
