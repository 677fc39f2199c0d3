"""The classification service in Python. Knows the RPCs and their messages, and nothing of connections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeAlias

from aimass.channel import Connection, ConnectionOptions, ServiceClient
from aimass.classification.v1 import classification_service_pb2 as pb
from aimass.classification.v1 import classification_service_pb2_grpc as pb_grpc
from aimass.classification.v1 import fill_mask_pb2 as mask_pb
from aimass.classification.v1 import question_answering_pb2 as answer_pb
from aimass.classification.v1 import token_classification_pb2 as token_pb
from aimass.classification_options import ClassifyOptions, truncation_pb
from aimass.classifications import TextClasses, text_classes_of
from aimass.embedding_options import Truncation
from aimass.entities import Entities, EntityOptions, entities_of
from aimass.feature_answers import Cell, FeatureAnswers, FeatureOptions, feature_answers_of, feature_row
from aimass.filled_masks import FilledTexts, FillMaskOptions, filled_texts_of
from aimass.image_labels import ImageOptions, LabelledImages, labelled_images_of
from aimass.next_sentences import NextSentences, next_sentences_of
from aimass.question_answers import AnsweredQuestions, AnswerOptions, answered_questions_of
from aimass.wire import extend_texts, refusing, set_model
from aimass.zero_shot_options import ZeroShotOptions

TextOrPair: TypeAlias = str | tuple[str, str]
"""A text, or a pair of texts that the model reads together."""


class ClassificationClient(ServiceClient):
    """Tells what texts are. Thread-safe; close it, or use it in a `with` block.

    Every method raises `aimass.errors.RpcError` or one of its kinds. `deadline_s` counts from the call, in
    seconds, and replaces the one of the connection's options.
    """

    DEFAULT_ADDRESS: ClassVar[str] = "localhost:50052"

    def __init__(
        self, target: str | Connection | None = None, options: ConnectionOptions | None = None
    ) -> None:
        super().__init__(target, options)
        self._stub = pb_grpc.ClassificationServiceStub(self._connection.channel)

    def classify(
        self,
        inputs: Sequence[TextOrPair],
        *,
        model: str,
        options: ClassifyOptions | None = None,
        request_id: str = "",
        deadline_s: float | None = None,
    ) -> TextClasses:
        """Return the labels of each text, or pair of texts, and why some may have none."""
        request = pb.ClassifyTextRequest(options=(options or ClassifyOptions()).message())
        set_model(request, model, request_id)
        for index, item in enumerate([inputs] if isinstance(inputs, str) else inputs):
            with refusing(f"inputs[{index}]"):
                request.inputs.append(text_input_pb(item))
        return text_classes_of(self._connection.call(self._stub.ClassifyText, request, deadline_s=deadline_s))

    def classify_zero_shot(
        self,
        texts: Sequence[str],
        labels: Sequence[str],
        *,
        model: str,
        options: ZeroShotOptions | None = None,
        request_id: str = "",
        deadline_s: float | None = None,
    ) -> TextClasses:
        """Return how well labels of your own fit each text, by a model that tells what a text entails."""
        request = pb.ClassifyZeroShotRequest(options=(options or ZeroShotOptions()).message())
        set_model(request, model, request_id)
        extend_texts(request.texts, texts, "texts")
        extend_texts(request.labels, labels, "labels")
        response = self._connection.call(self._stub.ClassifyZeroShot, request, deadline_s=deadline_s)
        return text_classes_of(response)

    def entities(
        self,
        texts: Sequence[str],
        *,
        model: str,
        options: EntityOptions | None = None,
        request_id: str = "",
        deadline_s: float | None = None,
    ) -> Entities:
        """Return the entities of each text: names, parts of speech, segments."""
        request = token_pb.ClassifyTokensRequest(options=(options or EntityOptions()).message())
        set_model(request, model, request_id)
        extend_texts(request.texts, texts, "texts")
        return entities_of(self._connection.call(self._stub.ClassifyTokens, request, deadline_s=deadline_s))

    def fill_mask(
        self,
        texts: Sequence[str],
        *,
        model: str,
        options: FillMaskOptions | None = None,
        request_id: str = "",
        deadline_s: float | None = None,
    ) -> FilledTexts:
        """Return words for the masked places of each text."""
        request = mask_pb.FillMaskRequest(options=(options or FillMaskOptions()).message())
        set_model(request, model, request_id)
        extend_texts(request.texts, texts, "texts")
        return filled_texts_of(self._connection.call(self._stub.FillMask, request, deadline_s=deadline_s))

    def predict_next_sentence(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        model: str,
        truncation: Truncation = Truncation.END,
        request_id: str = "",
        deadline_s: float | None = None,
    ) -> NextSentences:
        """Return, for each pair, how probable it is that the second text follows the first."""
        request = pb.PredictNextSentenceRequest(truncation=truncation_pb(truncation))
        set_model(request, model, request_id)
        for index, (text, next_text) in enumerate(pairs):
            with refusing(f"pairs[{index}]"):
                request.pairs.append(pb.SentencePair(text=text, next_text=next_text))
        response = self._connection.call(self._stub.PredictNextSentence, request, deadline_s=deadline_s)
        return next_sentences_of(response)

    def answer(
        self,
        inputs: Sequence[tuple[str, str]],
        *,
        model: str,
        options: AnswerOptions | None = None,
        request_id: str = "",
        deadline_s: float | None = None,
    ) -> AnsweredQuestions:
        """Return the answers to each question in its context; an input is `(question, context)`."""
        request = answer_pb.AnswerQuestionRequest(options=(options or AnswerOptions()).message())
        set_model(request, model, request_id)
        for index, (question, context) in enumerate(inputs):
            with refusing(f"inputs[{index}]"):
                request.inputs.append(answer_pb.QuestionInput(question=question, context=context))
        response = self._connection.call(self._stub.AnswerQuestion, request, deadline_s=deadline_s)
        return answered_questions_of(response)

    def classify_images(
        self,
        images: Sequence[bytes],
        *,
        model: str,
        options: ImageOptions | None = None,
        request_id: str = "",
        deadline_s: float | None = None,
    ) -> LabelledImages:
        """Return the labels of each image, the bytes of a PNG, JPEG or WebP file."""
        request = pb.ClassifyImageRequest(options=(options or ImageOptions()).message())
        set_model(request, model, request_id)
        for index, image in enumerate([images] if isinstance(images, bytes) else images):
            with refusing(f"images[{index}]"):
                request.images.append(image)
        return labelled_images_of(
            self._connection.call(self._stub.ClassifyImage, request, deadline_s=deadline_s)
        )

    def classify_features(
        self,
        rows: Sequence[Sequence[Cell]],
        *,
        model: str,
        columns: Sequence[str] = (),
        options: FeatureOptions | None = None,
        request_id: str = "",
        deadline_s: float | None = None,
    ) -> FeatureAnswers:
        """Return what a model of tables says of each row: numbers and texts in the order of `columns`.

        Without `columns` they stand in the model's own order.
        """
        request = pb.ClassifyFeaturesRequest(options=(options or FeatureOptions()).message())
        set_model(request, model, request_id)
        for index, name in enumerate(columns):
            with refusing(f"columns[{index}]"):
                request.columns.append(name)
        for index, cells in enumerate(rows):
            with refusing(f"rows[{index}]"):
                request.rows.append(feature_row(cells))
        return feature_answers_of(
            self._connection.call(self._stub.ClassifyFeatures, request, deadline_s=deadline_s)
        )


def text_input_pb(item: TextOrPair) -> pb.TextInput:
    """Return a text, or a pair of texts, as it travels."""
    return pb.TextInput(text=item) if isinstance(item, str) else pb.TextInput(text=item[0], text_pair=item[1])
