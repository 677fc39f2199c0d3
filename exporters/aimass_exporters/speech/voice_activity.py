"""Packs Silero's detector, which comes as ONNX graphs, and holds them to its TorchScript."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import torch
from aimass.model.v1.manifest_pb2 import ModelManifest, VoiceActivitySpec
from aimass_serving.session import Device, SessionConfig, open_session
from aimass_speech.detector_loader import FRAME_ROLE, SEQUENCE_ROLE
from aimass_speech.vad import DetectorShape, FrameCutter, VoiceActivityRunner
from numpy.typing import NDArray

from aimass_exporters.bundles.manifest_writer import describe_graph
from aimass_exporters.bundles.parity import ParityReport
from aimass_exporters.errors import InvalidExportOption
from aimass_exporters.precision import Precision
from aimass_exporters.progress import Progress

_GRAPHS = {FRAME_ROLE: "silero_vad_16k_op15.onnx", SEQUENCE_ROLE: "silero_vad_16k_sequence.onnx"}
_TORCHSCRIPT = "silero_vad.jit"
_SHAPE = DetectorShape()
_NUM_FRAMES = 400
_MAX_DIFFERENCE = 1e-4
"""Probabilities are numbers up to 1; float32 in another order stays far below."""


def build_detector(folder: Path, draft: Path, *, precision: Precision, progress: Progress) -> ModelManifest:
    """Write the files of a detector bundle into `draft`; return the part of the manifest that speaks of them.

    Raises `InvalidExportOption` for a precision the graphs do not come in, and `ParityFailed`.
    """
    if precision is not Precision.FP32:
        raise InvalidExportOption("--precision", expected="fp32 for this model", got=precision.value)
    for role, file in _GRAPHS.items():
        shutil.copyfile(folder / file, draft / f"{role}.onnx")
    described = ModelManifest(
        family="silero-vad",
        voice_activity=VoiceActivitySpec(
            sample_rate_hz=_SHAPE.sample_rate_hz,
            frame_samples=_SHAPE.frame_samples,
            context_samples=_SHAPE.context_samples,
            state_size=_SHAPE.state_size,
        ),
    )
    described.graphs.extend(describe_graph(role, draft / f"{role}.onnx") for role in _GRAPHS)
    progress.stage("measure against PyTorch")
    _measure(draft, folder / _TORCHSCRIPT, described)
    return described


def _measure(draft: Path, torchscript: Path, described: ModelManifest) -> None:
    """Compare both graphs with TorchScript, frame by frame; write the golden frames."""
    config = SessionConfig(device=Device.CPU, num_threads=1)
    sessions = [open_session(draft / f"{role}.onnx", config) for role in _GRAPHS]
    runner = VoiceActivityRunner(sessions[0], sessions[1], _SHAPE)
    samples = speech_like(_NUM_FRAMES * _SHAPE.frame_samples)
    frames = FrameCutter(_SHAPE).feed(samples)
    expected = _reference(torchscript, samples)
    together, _ = runner.sequence(frames, runner.new_state())
    report = ParityReport()
    for name, got in (("sequence", together), ("frame", _frame_by_frame(runner, frames))):
        report.at_most(
            f"max_abs_diff_probability_{name}",
            float(np.abs(got - expected).max()),
            bound=_MAX_DIFFERENCE,
            num_samples=len(expected),
        )
    described.parity.CopyFrom(report.record())
    np.savez(draft / "golden.npz", frames=frames[:64], probabilities=together[:64], tolerance=_MAX_DIFFERENCE)


def _frame_by_frame(runner: VoiceActivityRunner, frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the probabilities [n] of the frame graph, two streams in one batch; the second one is silent."""
    states, probabilities = np.stack([runner.new_state()] * 2, axis=1), []
    for frame in frames:
        both, states = runner.step(np.stack([frame, np.zeros_like(frame)]), states)
        probabilities.append(both[0])
    return np.array(probabilities, np.float32)


def _reference(torchscript: Path, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    with warnings.catch_warnings():
        # The weights come as TorchScript, which PyTorch would rather not see any more.
        warnings.simplefilter("ignore", DeprecationWarning)
        model = torch.jit.load(str(torchscript), map_location="cpu").eval()
    model.reset_states()
    pieces = torch.from_numpy(samples).split(_SHAPE.frame_samples)
    with torch.no_grad():
        return np.array([model(piece[None], _SHAPE.sample_rate_hz).item() for piece in pieces], np.float32)


def speech_like(num_samples: int) -> NDArray[np.float32]:
    """Return buzzes with moving formants in noise: a detector takes some of it for speech."""
    rng = np.random.default_rng(3)
    seconds = np.arange(num_samples) / _SHAPE.sample_rate_hz
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * seconds)
    phase = 2 * np.pi * np.cumsum(pitch) / _SHAPE.sample_rate_hz
    formants = 600 + 250 * np.sin(2 * np.pi * 2.3 * seconds), 1500 + 600 * np.sin(2 * np.pi * 1.9 * seconds)
    voice = sum(
        np.sin(number * phase)
        * sum(np.exp(-(((number * pitch - formant) / 180) ** 2)) for formant in formants)
        for number in range(1, 30)
    )
    is_voiced = (np.sin(2 * np.pi * 0.4 * seconds) > 0) * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * seconds))
    samples = 0.25 * voice * is_voiced + 0.003 * rng.standard_normal(num_samples)
    return np.asarray(samples, np.float32)
