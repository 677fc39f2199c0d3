"""The exported whisper-tiny.en against PyTorch on the same weights, on recorded speech, as a service runs
it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aimass_decoding.config import EngineConfig
from aimass_decoding.cross_attention import SourceEncoder, SourceMemory, cross_geometry_of
from aimass_decoding.engine import DecodingEngine
from aimass_decoding.golden import encoder_feeds
from aimass_decoding.request import SequenceRequest
from aimass_decoding.runner import geometry_of
from aimass_exporters.progress import SilentProgress
from aimass_exporters.sources.speech_samples import speech_samples
from aimass_exporters.speech.speech_model import SpeechModel
from aimass_exporters.speech.speech_parity import log_mel
from aimass_serving.bundle import Bundle, read_bundle
from aimass_serving.compute import ComputePermit
from aimass_serving.session import Device, SessionConfig, open_session
from numpy.typing import NDArray

CPU = SessionConfig(device=Device.CPU, allow_spinning=False)
MAX_NEW_TOKENS = 16


@dataclass(frozen=True)
class Served:
    bundle: Bundle
    encoder: SourceEncoder
    engine: DecodingEngine


@pytest.fixture(scope="module")
def served(whisper_tiny_store: Path) -> Iterator[Served]:
    bundle = read_bundle(whisper_tiny_store / "whisper-tiny.en" / "1")
    spec = bundle.manifest.decoder
    cross = cross_geometry_of(spec)
    assert cross is not None
    encoder = SourceEncoder(open_session(bundle.graph("encoder"), CPU), cross)
    session = open_session(bundle.graph("decoder"), CPU)
    config = EngineConfig(max_slots=4, max_len=64)
    engine = DecodingEngine(session, geometry_of(spec), config, model=bundle.ref, permit=ComputePermit())
    golden = bundle.golden()
    engine.replay_golden(golden, memory=encoder.encode(encoder_feeds(golden))[0])
    engine.start()
    yield Served(bundle, encoder, engine)
    engine.close()


@pytest.fixture(scope="module")
def mel(whisper_tiny_model: SpeechModel) -> NDArray[np.float32]:
    return log_mel(whisper_tiny_model, speech_samples(SilentProgress())[:3])


async def _write(engine: DecodingEngine, memory: SourceMemory, prompt: list[int], eos: int) -> list[int]:
    request = SequenceRequest(
        "r", np.array(prompt), MAX_NEW_TOKENS, eos_token_ids=frozenset({eos}), memory=memory
    )
    return [token_id async for delta in engine.generate(request) for token_id in delta.token_ids]


def _reference(speech: SpeechModel, mel: NDArray[np.float32]) -> list[int]:
    """Let transformers itself write, with its own cache and mask, the rules for its output turned off."""
    model: Any = speech.model
    ids = list(speech.prompt_ids)
    with torch.inference_mode():
        encoded = model.model.encoder(torch.from_numpy(mel)[None])
        while len(ids) < len(speech.prompt_ids) + MAX_NEW_TOKENS:
            logits = model(encoder_outputs=encoded, decoder_input_ids=torch.tensor([ids])).logits
            ids.append(int(logits[0, -1].argmax()))
            if ids[-1] == speech.spec.end_of_text_id:
                return ids[len(speech.prompt_ids) : -1]
    return ids[len(speech.prompt_ids) :]


async def test_clips_recognised_together_give_the_tokens_of_pytorch(
    served: Served, whisper_tiny_model: SpeechModel, mel: NDArray[np.float32]
) -> None:
    spec = served.bundle.manifest.speech_recognition
    memories = served.encoder.encode({"mel": mel})
    prompts = [whisper_tiny_model.prompt_ids] * len(mel)
    texts = await asyncio.gather(
        *(
            _write(served.engine, memory, prompt, spec.end_of_text_id)
            for memory, prompt in zip(memories, prompts, strict=True)
        )
    )
    assert texts == [_reference(whisper_tiny_model, clip) for clip in mel]
    words = whisper_tiny_model.text.tokenizer.decode(texts[1])
    assert words.strip().startswith("It was the best of times, it was the worst of times")


def test_a_shorter_window_is_the_model_on_fewer_positions(
    served: Served, whisper_tiny_model: SpeechModel, mel: NDArray[np.float32]
) -> None:
    model: Any = whisper_tiny_model.model
    short = np.ascontiguousarray(mel[:1, :, :1000])
    (memory,) = served.encoder.encode({"mel": short})
    encoder = model.model.encoder
    with torch.inference_mode():
        hidden = torch.nn.functional.gelu(encoder.conv1(torch.from_numpy(short)))
        hidden = torch.nn.functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[:500]
        for layer in encoder.layers:
            hidden = layer(hidden, None, None)[0]
        hidden = encoder.layer_norm(hidden)
        key = model.model.decoder.layers[0].encoder_attn.k_proj(hidden)[0]
    got = memory.arrays[0].transpose(1, 0, 2).reshape(500, -1)
    assert memory.length == 500
    assert np.abs(got - key.numpy()).max() < 1e-3 * float(key.std())


def test_the_aligner_gives_the_cross_attention_of_its_heads(
    served: Served, whisper_tiny_model: SpeechModel, mel: NDArray[np.float32]
) -> None:
    model: Any = whisper_tiny_model.model
    (memory,) = served.encoder.encode({"mel": mel[:1]})
    ids = [*whisper_tiny_model.prompt_ids, 632, 373, 262, 1266]
    aligner = open_session(served.bundle.graph("aligner"), CPU)
    names = [info.name for info in aligner.inputs if info.name.startswith("cross.")]
    feeds: dict[str, NDArray[Any]] = {
        name: array[None] for name, array in zip(names, memory.arrays, strict=False)
    }
    feeds |= {"input_ids": np.array([ids]), "cross_len": np.array([memory.length], np.int32)}
    scores = torch.from_numpy(aligner.run(feeds)["scores"])  # [1, heads, tokens, frames]
    with torch.inference_mode():
        output = model(
            torch.from_numpy(mel[:1]), decoder_input_ids=torch.tensor([ids]), output_attentions=True
        )
    heads = whisper_tiny_model.alignment_heads
    expected = torch.stack([output.cross_attentions[layer][0, head] for layer, head in heads])
    assert scores.shape == (1, len(heads), len(ids), 1500)
    assert (scores.softmax(-1)[0] - expected).abs().max() < 1e-4
