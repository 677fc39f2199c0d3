"""Questions and contexts in, answers out. Must not know the wire."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from aimass_serving.errors import AimassError, InputTooLong, InvalidField
from numpy.typing import NDArray

from aimass_encoder.answer_spans import CONTEXT, Answer, merged_answers, window_answers
from aimass_encoder.answering import AnsweredQuestion, AnswerOptions, AnswerReply, AnswerRequest
from aimass_encoder.head import TokenHead
from aimass_encoder.request import Truncation
from aimass_encoder.task_engine import TextTaskEngine
from aimass_encoder.text_encoder import TextCall, TextEncoder
from aimass_encoder.tokenization import TokenizedText
from aimass_encoder.windowed_texts import WindowedText, encode_windows
from aimass_encoder.windows import Window, cut_windows, window_room

START_LOGITS, END_LOGITS = "start_logits", "end_logits"
DEFAULT_OVERLAP = 128
_LEAST_ROOM_SHARE = 4
"""A question leaves this part of the model to the context: less would make countless windows."""
_SPARE_CANDIDATES = 10
"""Candidates beside twice the answers asked for: words that are put together may read alike."""


class QuestionAnswerer(TextTaskEngine):
    """One question-answering model."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__(encoder)
        self._head = TokenHead((START_LOGITS, END_LOGITS), encoder.model)

    async def answer(self, request: AnswerRequest) -> AnswerReply:
        """Return one result for each input, in order; a bad input has an error in its place.

        Raises `InvalidField` for too many inputs, `Overloaded`, `DeadlineExceeded`, `Draining`.
        """
        with self._encoder.measured("answer_question"):
            call = TextCall(
                request.inputs,
                lambda index: f"inputs[{index}]",
                "inputs",
                truncation=Truncation.WINDOWS,
                deadline_s=request.deadline_s,
                needs_spans=True,
                part_fields=(".question", ".context"),
            )

            def cut(index: int, text: TokenizedText) -> Sequence[Window] | AimassError:
                return self._windows(index, text, request)

            encoded = await encode_windows(self._encoder, call, cut, self._head)
            results = await asyncio.to_thread(_answered_all, request, encoded.results)
            return AnswerReply(results, encoded.num_tokens, encoded.timings)

    def _windows(
        self, index: int, text: TokenizedText, request: AnswerRequest
    ) -> Sequence[Window] | AimassError:
        max_tokens, asked = self._encoder.max_tokens, request.options.overlap_tokens
        room = window_room(text, max_tokens=max_tokens, part=CONTEXT)
        assert text.spans is not None, "the call asked for spans"
        if not (text.spans.parts == CONTEXT).any():
            context = request.inputs[index][1]
            return InvalidField(f"inputs[{index}].context", expected="a text with a token", got=context)
        largest = max_tokens - max_tokens // _LEAST_ROOM_SHARE
        if max_tokens - room > largest:
            field = f"inputs[{index}].question"
            return InputTooLong(field, num_tokens=max_tokens - room, max_tokens=largest)
        if asked is not None and asked > room // 2:
            expected = f"at most {room // 2}, half of the tokens that fit beside question {index}"
            return InvalidField("options.overlap_tokens", expected=expected, got=asked)
        overlap = min(DEFAULT_OVERLAP, room // 2) if asked is None else asked
        return cut_windows(text, max_tokens=max_tokens, overlap=overlap, part=CONTEXT)


def _answered_all(
    request: AnswerRequest, results: Sequence[WindowedText[NDArray[np.float32]] | AimassError]
) -> Sequence[AnsweredQuestion | AimassError]:
    return [
        result if isinstance(result, AimassError) else _answered(result, context, request.options)
        for result, (_, context) in zip(results, request.inputs, strict=True)
    ]


def _answered(
    encoded: WindowedText[NDArray[np.float32]], context: str, options: AnswerOptions
) -> AnsweredQuestion:
    assert encoded.text.spans is not None, "the call asked for spans"
    read = [
        window_answers(
            window,
            logits,
            count=2 * options.top_k + _SPARE_CANDIDATES,
            max_answer_tokens=options.max_answer_tokens,
        )
        for window, logits in zip(encoded.windows, encoded.readings, strict=True)
    ]
    candidates = [candidate for window in read for candidate in window.candidates]
    answers = merged_answers(candidates, encoded.text.spans, context)
    no_answer = min(window.no_answer_score for window in read)
    if options.allow_no_answer:
        answers = sorted([*answers, Answer("", no_answer, 0, 0)], key=lambda answer: -answer.score)
    return AnsweredQuestion(answers[: options.top_k], no_answer, encoded.num_tokens, len(encoded.windows))
