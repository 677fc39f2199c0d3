"""Answers that stand in contexts: which are wanted, and what a call returns. Knows no call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aimass.classification.v1 import question_answering_pb2 as pb
from aimass.classifications import Answers
from aimass.embeddings import item_error_of
from aimass.usage import reply_fields
from aimass.wire import set_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions:
    """Which answers to return. What is None takes the server's default."""

    top_k: int | None = None
    """At most this many answers of each question, best first."""
    max_answer_tokens: int | None = None
    """Longest answer in tokens."""
    allow_no_answer: bool = False
    """Whether "no answer" may be among the answers, with empty text."""
    overlap_tokens: int | None = None
    """Tokens of a long context that two windows share."""

    def message(self) -> pb.AnswerOptions:
        """Return the options as a message; raise `InvalidRequest` when a value fits no field."""
        options_pb = pb.AnswerOptions()
        names = ("top_k", "max_answer_tokens", "allow_no_answer", "overlap_tokens")
        set_fields(options_pb, self, names, path="options.")
        return options_pb


@dataclass(frozen=True, slots=True)
class Answer:
    """A piece of a context: `text == context[start:end]`."""

    text: str
    """Empty for "no answer"."""
    score: float
    start: int
    """First character, as Python counts."""
    end: int


@dataclass(frozen=True, slots=True)
class QuestionAnswers:
    """The answers to one question."""

    answers: Sequence[Answer]
    """Best first."""
    no_answer_score: float
    """Score of there being no answer, on the scale of the answers' scores."""
    tokens: int
    windows: int
    """Windows the context was read in; 1 when it fitted."""

    @property
    def best(self) -> Answer | None:
        """The answer with the highest score; None when there is none."""
        return self.answers[0] if self.answers else None


@dataclass(frozen=True, slots=True)
class AnsweredQuestions(Answers[QuestionAnswers]):
    """The answers to the questions of one call, in their order."""


def answered_questions_of(response_pb: pb.AnswerQuestionResponse) -> AnsweredQuestions:
    """Return the message as a value."""
    return AnsweredQuestions(
        results=[
            item_error_of(r.error) if r.HasField("error") else _answers_of(r.answered)
            for r in response_pb.results
        ],
        **reply_fields(response_pb),
    )


def _answers_of(answered_pb: pb.QuestionAnswers) -> QuestionAnswers:
    answers = [Answer(a.text, a.score, a.start, a.end) for a in answered_pb.answers]
    return QuestionAnswers(answers, answered_pb.no_answer_score, answered_pb.tokens, answered_pb.windows)
