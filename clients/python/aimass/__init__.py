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
from aimass.errors import RpcError
from aimass.generation_client import GenerationClient
from aimass.generation_options import GenerationOptions
from aimass.health_check import HealthStatus, health
from aimass.model_client import Model, ModelClient, ModelLimits, ModelState, ParityMeasure
from aimass.prompt import ChatMessage, Prompt
from aimass.recognition_client import Flush, RecognitionClient, RecognitionStream
from aimass.recognition_options import AudioEncoding, AudioFormat, RecognitionOptions
from aimass.sparse_embeddings import SparseEmbeddings, SparseText
from aimass.token_stream import TokenStream
from aimass.tracing import TracingInterceptor, export_spans
from aimass.transcripts import (
    Alternative,
    Final,
    Flushed,
    Interim,
    RecognitionEvent,
    Segment,
    SpeechActivity,
    Transcript,
    Word,
)
from aimass.usage import Timings, Usage
from aimass.vectors import VectorDtype

__all__ = [
    "Alternative",
    "AudioEncoding",
    "AudioFormat",
    "ChatMessage",
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
    "Final",
    "Finish",
    "FinishReason",
    "Flush",
    "Flushed",
    "GenerationClient",
    "GenerationOptions",
    "HealthStatus",
    "Interim",
    "ItemError",
    "LabelScore",
    "Model",
    "ModelClient",
    "ModelLimits",
    "ModelState",
    "ParityMeasure",
    "Prompt",
    "PromptInfo",
    "RecognitionClient",
    "RecognitionEvent",
    "RecognitionOptions",
    "RecognitionStream",
    "RpcError",
    "ScoreKind",
    "Segment",
    "SparseEmbeddings",
    "SparseText",
    "SpeechActivity",
    "TextClass",
    "TextClasses",
    "TextRefused",
    "Timings",
    "Tls",
    "TokenCandidate",
    "TokenLogprob",
    "TokenStream",
    "TracingInterceptor",
    "Transcript",
    "Truncation",
    "Usage",
    "VectorDtype",
    "Word",
    "downstream_deadline_s",
    "export_spans",
    "health",
]
