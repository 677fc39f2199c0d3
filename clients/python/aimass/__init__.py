"""Typed client of the aimass services: text generation, embeddings and model metadata over gRPC.

Everything a caller needs is here. `aimass.errors` holds the error tree, `aimass.testing` fakes of the
services, `aimass.<domain>.v1` the generated messages and stubs (also for `grpc.aio`).
"""

from aimass.channel import Connection, ConnectionOptions, Tls
from aimass.classification_client import ClassificationClient
from aimass.classification_options import ClassifyOptions
from aimass.classifications import LabelScore, ScoreKind, TextClass, TextClasses
from aimass.completion import (
    Completion,
    Continuation,
    Delta,
    Finish,
    FinishReason,
    PromptInfo,
    TokenCandidate,
    TokenLogprob,
)
from aimass.deadline import downstream_deadline_s
from aimass.embedding_client import EmbeddingClient, EmbeddingStream
from aimass.embedding_options import EmbeddingOptions, Truncation
from aimass.embeddings import EmbeddedText, Embeddings, ItemError, TextRefused
from aimass.entities import Aggregation, Entities, Entity, EntityOptions, TextEntities
from aimass.errors import RpcError
from aimass.feature_answers import EstimatorKind, FeatureAnswer, FeatureAnswers, FeatureOptions
from aimass.filled_masks import FilledMask, FilledText, FilledTexts, FillMaskOptions, MaskWord
from aimass.generation_client import GenerationClient
from aimass.generation_options import GenerationOptions
from aimass.health_check import HealthStatus, health
from aimass.image_labels import ImageLabels, ImageOptions, LabelledImages
from aimass.keyword_stream import Keyword, KeywordStream, SpottedKeyword
from aimass.model_client import Adapter, Model, ModelClient, ModelLimits, ModelState, ParityMeasure
from aimass.next_sentences import NextSentence, NextSentences
from aimass.prompt import ChatMessage, ChatPrompt, Prompt
from aimass.question_answers import Answer, AnsweredQuestions, AnswerOptions, QuestionAnswers
from aimass.rankings import (
    RankedDocument,
    Ranking,
    RankingMethod,
    RelevanceScore,
    RerankOptions,
    Similarities,
    SimilarityMetric,
    SimilarityOptions,
    TextOutcome,
)
from aimass.recognition_client import Flush, RecognitionClient, RecognitionStream
from aimass.recognition_options import AudioEncoding, AudioFormat, RecognitionOptions
from aimass.sparse_embeddings import SparseEmbeddings, SparseText
from aimass.spoken_audio import (
    SpeechChunk,
    SpeechEnd,
    SpeechInfo,
    SpeechTiming,
    SpokenAudio,
    TimingKind,
    Voice,
)
from aimass.synthesis_client import SpeechStream, SynthesisClient
from aimass.synthesis_options import SynthesisOptions
from aimass.token_embeddings import TextTokenEmbeddings, TokenEmbeddingOptions, TokenEmbeddings
from aimass.token_stream import TokenStream
from aimass.tracing import TracingInterceptor, export_spans
from aimass.transcripts import (
    Alternative,
    Final,
    Flushed,
    Interim,
    PhraseScore,
    RecognitionEvent,
    Segment,
    SpeechActivity,
    Transcript,
    Word,
)
from aimass.usage import Timings, Usage
from aimass.vectors import VectorDtype
from aimass.zero_shot_options import ZeroShotOptions

__all__ = [
    "Adapter",
    "Aggregation",
    "Alternative",
    "Answer",
    "AnswerOptions",
    "AnsweredQuestions",
    "AudioEncoding",
    "AudioFormat",
    "ChatMessage",
    "ChatPrompt",
    "ClassificationClient",
    "ClassifyOptions",
    "Completion",
    "Connection",
    "ConnectionOptions",
    "Continuation",
    "Delta",
    "EmbeddedText",
    "EmbeddingClient",
    "EmbeddingOptions",
    "EmbeddingStream",
    "Embeddings",
    "Entities",
    "Entity",
    "EntityOptions",
    "EstimatorKind",
    "FeatureAnswer",
    "FeatureAnswers",
    "FeatureOptions",
    "FillMaskOptions",
    "FilledMask",
    "FilledText",
    "FilledTexts",
    "Final",
    "Finish",
    "FinishReason",
    "Flush",
    "Flushed",
    "GenerationClient",
    "GenerationOptions",
    "HealthStatus",
    "ImageLabels",
    "ImageOptions",
    "Interim",
    "ItemError",
    "Keyword",
    "KeywordStream",
    "LabelScore",
    "LabelledImages",
    "MaskWord",
    "Model",
    "ModelClient",
    "ModelLimits",
    "ModelState",
    "NextSentence",
    "NextSentences",
    "ParityMeasure",
    "PhraseScore",
    "Prompt",
    "PromptInfo",
    "QuestionAnswers",
    "RankedDocument",
    "Ranking",
    "RankingMethod",
    "RecognitionClient",
    "RecognitionEvent",
    "RecognitionOptions",
    "RecognitionStream",
    "RelevanceScore",
    "RerankOptions",
    "RpcError",
    "ScoreKind",
    "Segment",
    "Similarities",
    "SimilarityMetric",
    "SimilarityOptions",
    "SparseEmbeddings",
    "SparseText",
    "SpeechActivity",
    "SpeechChunk",
    "SpeechEnd",
    "SpeechInfo",
    "SpeechStream",
    "SpeechTiming",
    "SpokenAudio",
    "SpottedKeyword",
    "SynthesisClient",
    "SynthesisOptions",
    "TextClass",
    "TextClasses",
    "TextEntities",
    "TextOutcome",
    "TextRefused",
    "TextTokenEmbeddings",
    "TimingKind",
    "Timings",
    "Tls",
    "TokenCandidate",
    "TokenEmbeddingOptions",
    "TokenEmbeddings",
    "TokenLogprob",
    "TokenStream",
    "TracingInterceptor",
    "Transcript",
    "Truncation",
    "Usage",
    "VectorDtype",
    "Voice",
    "Word",
    "ZeroShotOptions",
    "downstream_deadline_s",
    "export_spans",
    "health",
]
