"""Voices against what they came from: Piper's one graph, transformers' PyTorch model, hibari's own code."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from aimass_exporters.errors import UnsupportedModel
from aimass_exporters.progress import SilentProgress
from aimass_exporters.sources.source import resolve_source
from aimass_exporters.testing import cached_export
from aimass_exporters.voices.voice_bundle import load_voice
from aimass_exporters.voices.voice_model import RecordedNoise, VoiceModel
from aimass_serving.bundle import Bundle, read_bundle
from aimass_serving.errors import BadBundle
from aimass_serving.session import Device, SessionConfig
from aimass_speech.synthesis.alphabet import Alphabet
from aimass_speech.synthesis.bundled_voice import open_bundled_voice
from aimass_speech.synthesis.noise import SeededNoise
from aimass_speech.synthesis.reading import TextReader, joined
from aimass_speech.synthesis.voice import Manner, Speech, Voice
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import VitsConfig, VitsModel

Opened = tuple[Voice, Alphabet, TextReader]
CONFIG = SessionConfig(device=Device.CPU, num_threads=1)
LETTERS = " abcdefghijklmnopqrstuvwxyz'"


@pytest.fixture(scope="session")
def tiny_vits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as MMS-TTS has it, with small random weights."""
    folder = tmp_path_factory.mktemp("tiny-vits")
    torch.set_num_threads(1)
    torch.manual_seed(4)
    config = VitsConfig(
        vocab_size=len(LETTERS) + 1,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=16,
        flow_size=16,
        spectrogram_bins=33,
        upsample_initial_channel=16,
        upsample_rates=[8, 4],
        upsample_kernel_sizes=[16, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        prior_encoder_num_flows=2,
        prior_encoder_num_wavenet_layers=2,
        duration_predictor_num_flows=2,
        duration_predictor_filter_channels=16,
        initializer_range=0.1,
        architectures=["VitsModel"],
    )
    VitsModel(config).save_pretrained(folder)
    vocabulary = {"<pad>": 0} | {letter: number for number, letter in enumerate(LETTERS, 1)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    settings = {"add_blank": True, "language": "eng", "phonemize": False, "is_uroman": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def bundle_of(store: Path, name: str) -> Bundle:
    return read_bundle(store / name / "1")


def voice_model(source: str | Path) -> VoiceModel:
    return load_voice(resolve_source(str(source), SilentProgress()))


def stretched(speech: Speech, sizes: Sequence[int]) -> NDArray[np.float32]:
    """Compute a phrase in stretches of these sizes, over and over."""
    pieces: list[NDArray[np.float32]] = []
    start = 0
    for size in itertools.cycle(sizes):
        if start >= speech.num_frames:
            return np.concatenate(pieces)
        pieces.append(speech.render(start, min(start + size, speech.num_frames)))
        start += size
    raise AssertionError("a cycle does not end")


SENTENCES = ("Hi.", "She sells sea shells by the sea shore, and on Fridays she sells 27 more.")


def check_against_itself(opened: Opened, model: VoiceModel, *, bound: float) -> None:
    """Hold sentences, with noise and in stretches, to the voice as it came."""
    voice, alphabet, reader = opened
    for text in SENTENCES:
        ids = alphabet.encode(joined(reader.read(text, {}).words))
        noise = RecordedNoise(SeededNoise(11, 3))
        got = stretched(voice.begin(ids, Manner(), noise), [12, 24, 48, 96, 160])
        expected = model.expected(ids, noise.drawn, has_noise=True)
        assert got.shape == expected.shape
        assert float(np.abs(got - expected).max()) < bound
        assert float(np.abs(expected).max()) > 0.01


@pytest.fixture(scope="module")
def piper(piper_store: Path) -> Opened:
    return open_bundled_voice(bundle_of(piper_store, "piper-joe"), CONFIG)


def test_a_piper_voice_speaks_as_its_own_graph_does(piper: Opened) -> None:
    check_against_itself(piper, voice_model("piper-joe"), bound=1e-4)


@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4))
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
def test_stretches_of_any_size_are_the_whole(piper: Opened, sizes: list[int]) -> None:
    voice, alphabet, reader = piper
    ids = alphabet.encode(joined(reader.read("Hello there.", {}).words))
    whole = stretched(voice.begin(ids, Manner(), SeededNoise(1, 0)), [10_000])
    pieces = stretched(voice.begin(ids, Manner(), SeededNoise(1, 0)), sizes)
    assert pieces.shape == whole.shape
    assert float(np.abs(pieces - whole).max()) <= 1e-4


def test_hibari_speaks_as_its_own_package_does(hibari_store: Path) -> None:
    opened = open_bundled_voice(bundle_of(hibari_store, "hibari-heart"), CONFIG)
    check_against_itself(opened, voice_model("hibari-heart"), bound=1e-4)


def test_a_transformers_voice_speaks_as_pytorch_does(tiny_vits_folder: Path) -> None:
    store = cached_export(tiny_vits_folder, name="tiny-vits")
    opened = open_bundled_voice(bundle_of(store, "tiny-vits"), CONFIG)
    check_against_itself(opened, voice_model(tiny_vits_folder), bound=1e-4)
    assert opened[2].read("Ab ☃", {}).unpronounceable == ["☃"]


def test_a_voice_that_needs_espeak_is_refused(tiny_vits_folder: Path, tmp_path: Path) -> None:
    for file in tiny_vits_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"phonemize": True}))
    with pytest.raises(UnsupportedModel, match="espeak"):
        voice_model(tmp_path)


def test_a_bundle_whose_audio_or_symbols_changed_is_refused(hibari_store: Path, tmp_path: Path) -> None:
    bundle = bundle_of(hibari_store, "hibari-heart")
    golden = bundle.golden()
    changed = tmp_path / "changed"
    for name, value, problem in (
        ("audio", golden["audio"] + np.float32(0.2), "golden audio differs by 0.2"),
        ("text", np.array("Another sentence."), "read with other symbols"),
    ):
        changed.mkdir(exist_ok=True)
        for file in bundle.path.iterdir():
            if file.name != "golden.npz" and not (changed / file.name).exists():
                (changed / file.name).write_bytes(file.read_bytes())
        np.savez(changed / "golden.npz", **(dict(golden) | {name: value}))
        with pytest.raises(BadBundle, match=problem):
            open_bundled_voice(read_bundle(changed, allow_unverified=True), CONFIG)
