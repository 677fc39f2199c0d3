"""`ClassificationService`: translates between the wire and the engines, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aimass.classification.v1 import classification_service_pb2 as pb
from aimass.classification.v1 import fill_mask_pb2 as mask_pb
from aimass.classification.v1 import question_answering_pb2 as answer_pb
from aimass.classification.v1 import token_classification_pb2 as token_pb
from aimass.classification.v1.classification_service_pb2_grpc import ClassificationServiceServicer
from aimass.model.v1.manifest_pb2 import (
    TASK_FILL_MASK,
    TASK_NEXT_SENTENCE_PREDICTION,
    TASK_QUESTION_ANSWERING,
    TASK_TEXT_CLASSIFICATION,
    TASK_TOKEN_CLASSIFICATION,
)
from aimass_serving.errors import AimassError
from aimass_serving.registry import ModelRegistry

from aimass_encoder.answer_messages import answer_request, answer_response
from aimass_encoder.classification import ClassifiedText, ClassifyOptions, ClassifyRequest
from aimass_encoder.images.rpcs import ImageRpcs
from aimass_encoder.labels import LabelScore, ProblemType
from aimass_encoder.mask_filler import MaskFiller
from aimass_encoder.mask_messages import fill_request, fill_response
from aimass_encoder.messages import item_error_pb, reply_fields
from aimass_encoder.next_sentence import NextSentencePredictor
from aimass_encoder.pair_messages import (
    next_sentence_request,
    next_sentence_response,
    truncation_of,
    zero_shot_request,
)
from aimass_encoder.question_answerer import QuestionAnswerer
from aimass_encoder.served import TaskCalls
from aimass_encoder.tables.rpcs import TableRpcs
from aimass_encoder.task_engine import TaskEngine
from aimass_encoder.text_classifier import TextClassifier
from aimass_encoder.token_messages import tag_request, tag_response
from aimass_encoder.token_tagger import TokenTagger
from aimass_encoder.tokenization import TextInput
from aimass_encoder.zero_shot_classifier import classify_zero_shot

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ClassificationService"].full_name

_SCORE_KINDS: Mapping[ProblemType, pb.ScoreKind.ValueType] = {
    ProblemType.SINGLE_LABEL: pb.SCORE_KIND_SINGLE_LABEL,
    ProblemType.MULTI_LABEL: pb.SCORE_KIND_MULTI_LABEL,
    ProblemType.REGRESSION: pb.SCORE_KIND_REGRESSION,
}

_CLASSIFY_TEXT = TaskCalls("classify_text", TASK_TEXT_CLASSIFICATION, TextClassifier)
_CLASSIFY_ZERO_SHOT = TaskCalls("classify_zero_shot", TASK_TEXT_CLASSIFICATION, TextClassifier)
_CLASSIFY_TOKENS = TaskCalls("classify_tokens", TASK_TOKEN_CLASSIFICATION, TokenTagger)
_FILL_MASK = TaskCalls("fill_mask", TASK_FILL_MASK, MaskFiller)
_PREDICT_NEXT_SENTENCE = TaskCalls(
    "predict_next_sentence", TASK_NEXT_SENTENCE_PREDICTION, NextSentencePredictor
)
_ANSWER_QUESTION = TaskCalls("answer_question", TASK_QUESTION_ANSWERING, QuestionAnswerer)


class ClassificationServicer(ImageRpcs, TableRpcs, ClassificationServiceServicer):
    """Answers with the labels of the engines in the registry."""

    def __init__(self, registry: ModelRegistry[TaskEngine]) -> None:
        self._registry = registry

    async def ClassifyText(  # noqa: N802
        self, request: pb.ClassifyTextRequest, context: Any
    ) -> pb.ClassifyTextResponse:
        """Return the labels of each input, in order. One bad input fails its own result, not the call."""
        reply, served = await _CLASSIFY_TEXT.answer(
            self._registry,
            request,
            context,
            lambda engine, deadline_s: engine.classify(classify_request(request, deadline_s=deadline_s)),
        )
        return pb.ClassifyTextResponse(
            results=[classify_text_result_pb(result) for result in reply.results],
            score_kind=_SCORE_KINDS[reply.problem_type],
            **reply_fields(reply, served),
        )

    async def ClassifyZeroShot(  # noqa: N802
        self, request: pb.ClassifyZeroShotRequest, context: Any
    ) -> pb.ClassifyZeroShotResponse:
        """Score the caller's own labels for each text, in order."""
        reply, served = await _CLASSIFY_ZERO_SHOT.answer(
            self._registry,
            request,
            context,
            lambda engine, deadline_s: classify_zero_shot(
                engine, zero_shot_request(request, deadline_s=deadline_s)
            ),
        )
        return pb.ClassifyZeroShotResponse(
            results=[classify_text_result_pb(result) for result in reply.results],
            score_kind=_SCORE_KINDS[reply.problem_type],
            **reply_fields(reply, served),
        )

    async def ClassifyTokens(  # noqa: N802
        self, request: token_pb.ClassifyTokensRequest, context: Any
    ) -> token_pb.ClassifyTokensResponse:
        """Return the entities of each text, in order."""
        reply, served = await _CLASSIFY_TOKENS.answer(
            self._registry,
            request,
            context,
            lambda engine, deadline_s: engine.tag(tag_request(request, deadline_s=deadline_s)),
        )
        return tag_response(reply, request, served)

    async def FillMask(  # noqa: N802
        self, request: mask_pb.FillMaskRequest, context: Any
    ) -> mask_pb.FillMaskResponse:
        """Return words for the masks of each text, in order."""
        reply, served = await _FILL_MASK.answer(
            self._registry,
            request,
            context,
            lambda engine, deadline_s: engine.fill(fill_request(request, deadline_s=deadline_s)),
        )
        return fill_response(reply, served)

    async def PredictNextSentence(  # noqa: N802
        self, request: pb.PredictNextSentenceRequest, context: Any
    ) -> pb.PredictNextSentenceResponse:
        """Tell, for each pair, whether the second text follows the first."""
        reply, served = await _PREDICT_NEXT_SENTENCE.answer(
            self._registry,
            request,
            context,
            lambda engine, deadline_s: engine.predict(next_sentence_request(request, deadline_s=deadline_s)),
        )
        return next_sentence_response(reply, served)

    async def AnswerQuestion(  # noqa: N802
        self, request: answer_pb.AnswerQuestionRequest, context: Any
    ) -> answer_pb.AnswerQuestionResponse:
        """Return the answers to each question, in order."""
        reply, served = await _ANSWER_QUESTION.answer(
            self._registry,
            request,
            context,
            lambda engine, deadline_s: engine.answer(answer_request(request, deadline_s=deadline_s)),
        )
        return answer_response(reply, served)


def classify_request(request: pb.ClassifyTextRequest, *, deadline_s: float | None) -> ClassifyRequest:
    """Return the engine's request. Raises `InvalidField`."""
    inputs = [text_input(item) for item in request.inputs]
    return ClassifyRequest(inputs, classify_options(request.options), deadline_s=deadline_s)


def text_input(item: pb.TextInput) -> TextInput:
    """Return a text, or a pair of texts."""
    return (item.text, item.text_pair) if item.HasField("text_pair") else item.text


def classify_options(options: pb.ClassifyOptions) -> ClassifyOptions:
    """Return the engine's options. Raises `InvalidField`."""
    return ClassifyOptions(
        top_k=options.top_k if options.HasField("top_k") else None,
        threshold=options.threshold if options.HasField("threshold") else None,
        labels=tuple(options.labels),
        truncation=truncation_of(options.truncation, "options.truncation"),
        min_precision=options.min_precision if options.HasField("min_precision") else None,
    )


def classify_text_result_pb(result: ClassifiedText | AimassError) -> pb.ClassifyTextResult:
    """Return one input's result as it travels."""
    if isinstance(result, AimassError):
        return pb.ClassifyTextResult(error=item_error_pb(result))
    return pb.ClassifyTextResult(
        classification=pb.Classification(
            labels=[label_score_pb(label) for label in result.labels],
            tokens=result.num_tokens,
            truncated_tokens=result.num_truncated_tokens,
        )
    )


def label_score_pb(label: LabelScore) -> pb.LabelScore:
    """Return a label and its score as they travel."""
    return pb.LabelScore(label=label.label, score=label.score, index=label.index)
