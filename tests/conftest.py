"""Real exported bundles for the tests, and the PyTorch models they came from: cached outside the repository.

The `tiny_*` models have random weights and export in seconds; `smollm2_*` and `minilm_*` are the real ones,
fetched from hash-pinned packages.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

    Oracle = tuple[PreTrainedModel, Tokenizer]


@pytest.fixture(scope="session")
def tiny_llama_folder() -> Path:
    """A Hugging Face folder of a two-layer Llama with random weights."""
    from aimass_exporters.testing import cached_checkpoint, tiny_config

    return cached_checkpoint(tiny_config("llama"))


@pytest.fixture(scope="session")
def tiny_gpt2_folder() -> Path:
    """A Hugging Face folder of a two-layer GPT-2 with random weights."""
    from aimass_exporters.testing import cached_checkpoint, tiny_config

    return cached_checkpoint(tiny_config("gpt2"))


@pytest.fixture(scope="session")
def tiny_llama_store(tiny_llama_folder: Path) -> Path:
    """A store with the model `tiny-llama`, fp32: 512 byte-level BPE tokens, 256 positions, a template."""
    return _store(tiny_llama_folder, "tiny-llama")


@pytest.fixture(scope="session")
def tiny_gpt2_store(tiny_gpt2_folder: Path) -> Path:
    """A store with the model `tiny-gpt2`, fp32, with the tokenizer of `tiny_llama_store`."""
    return _store(tiny_gpt2_folder, "tiny-gpt2")


@pytest.fixture(scope="session")
def smollm2_store() -> Path:
    """A store with the real `smollm2-135m-instruct`, fp32."""
    return _store("smollm2-135m-instruct", "smollm2-135m-instruct")


@pytest.fixture(scope="session")
def smollm2_drafted_store() -> Path:
    """A store with the real `smollm2-135m-instruct`, fp32, and an int8 graph that drafts for it."""
    from aimass_exporters.testing import cached_drafted_export

    return cached_drafted_export("smollm2-135m-instruct", name="smollm2-135m-instruct")


@pytest.fixture(scope="session")
def gpt2_folder() -> Path:
    """A Hugging Face folder of GPT-2 at its full size, 124M random parameters."""
    from aimass_exporters.testing import cached_checkpoint, gpt2_config

    return cached_checkpoint(gpt2_config())


@pytest.fixture(scope="session")
def gpt2_store(gpt2_folder: Path) -> Path:
    """A store with the model `gpt2-124m`, fp32, random weights, with the tokenizer of `tiny_llama_store`."""
    return _store(gpt2_folder, "gpt2-124m")


@pytest.fixture(scope="session")
def whisper_tiny_store() -> Path:
    """A store with the real `whisper-tiny.en`, fp32: 38M parameters, English only."""
    return _store("whisper-tiny.en", "whisper-tiny.en")


@pytest.fixture(scope="session")
def whisper_tiny_model() -> Any:
    """The PyTorch model behind `whisper_tiny_store`, with its tokenizer and special tokens: a
    `SpeechModel`.
    """
    from aimass_exporters.progress import SilentProgress
    from aimass_exporters.sources.source import resolve_source
    from aimass_exporters.speech.speech_model import load_speech_model

    return load_speech_model(resolve_source("whisper-tiny.en", SilentProgress()))


@pytest.fixture(scope="session")
def tiny_llama_model(tiny_llama_folder: Path) -> Oracle:
    """The PyTorch model behind `tiny_llama_store`, and its tokenizer."""
    return _causal_lm(tiny_llama_folder)


@pytest.fixture(scope="session")
def tiny_gpt2_model(tiny_gpt2_folder: Path) -> Oracle:
    """The PyTorch model behind `tiny_gpt2_store`, and its tokenizer."""
    return _causal_lm(tiny_gpt2_folder)


@pytest.fixture(scope="session")
def smollm2_model() -> Oracle:
    """The PyTorch model behind `smollm2_store`, and its tokenizer."""
    return _causal_lm("smollm2-135m-instruct")


def _store(source: str | Path, name: str, **options: Any) -> Path:
    from aimass_exporters.testing import cached_export

    return cached_export(source, name=name, **options)


def _calm_torch() -> None:
    """Let the oracles compute on one thread: two that spin crawl whenever another process has a core."""
    import torch

    torch.set_num_threads(1)


def _causal_lm(source: str | Path) -> Oracle:
    from aimass_exporters.decoders.causal_lm import load_causal_lm
    from aimass_exporters.progress import SilentProgress
    from aimass_exporters.sources.source import resolve_source

    _calm_torch()
    loaded = load_causal_lm(resolve_source(str(source), SilentProgress()))
    return loaded.model, loaded.text.tokenizer


@pytest.fixture(scope="session")
def minilm_store() -> Path:
    """A store with the real `all-minilm-l6-v2`, fp32."""
    return _store("all-minilm-l6-v2", "all-minilm-l6-v2")


@pytest.fixture(scope="session")
def minilm_model() -> Oracle:
    """The PyTorch model behind `minilm_store`, and its tokenizer without truncation. No pooling."""
    from aimass_exporters.encoders.sentence_encoder import load_sentence_encoder
    from aimass_exporters.progress import SilentProgress
    from aimass_exporters.sources.source import resolve_source

    _calm_torch()
    loaded = load_sentence_encoder(resolve_source("all-minilm-l6-v2", SilentProgress()))
    return loaded.model, loaded.text.tokenizer


@pytest.fixture(scope="session")
def silero_store() -> Path:
    """A store with the real `silero-vad`."""
    return _store("silero-vad", "silero-vad")


@pytest.fixture(scope="session")
def spoken() -> Any:
    """Eight seconds of a person reading Dickens, 16 kHz: from a recording that a package carries."""
    from aimass_exporters.sources.packages import fetch_package, pinned_packages
    from aimass_speech.audio import AudioFormat, decode_audio

    folder = fetch_package(pinned_packages()["moonshine-voice"])
    content = (folder / "moonshine_voice/assets/two_cities.wav").read_bytes()
    return decode_audio(content, AudioFormat(), max_audio_s=60)[int(0.7 * 16_000) : int(8.5 * 16_000)]


@pytest.fixture(scope="session")
def hibari_store() -> Path:
    """A store with the real voice `hibari-heart`: American English, 24 kHz, 8-bit weights."""
    return _store("hibari-heart", "hibari-heart")


@pytest.fixture(scope="session")
def piper_store() -> Path:
    """A store with the real voice `piper-joe`: American English, 22 kHz, a VITS voice in three graphs."""
    return _store("piper-joe", "piper-joe")
