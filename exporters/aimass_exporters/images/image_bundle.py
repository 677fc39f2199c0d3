"""Fills a draft with an image classifier; measures it against PyTorch and describes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from aimass.model.v1.manifest_pb2 import ModelManifest, ParityRecord
from aimass_encoder.images.runner import PIXELS, ImageRow, ImageRunner
from aimass_encoder.runner import LOGITS
from aimass_serving.session import Device, SessionConfig, open_session
from numpy.typing import NDArray

from aimass_exporters.bundles.manifest_writer import describe_graph
from aimass_exporters.bundles.parity import ParityReport
from aimass_exporters.errors import InvalidExportOption
from aimass_exporters.graphs.tracing import Port, trace
from aimass_exporters.images.image_model import ImageModel
from aimass_exporters.precision import Precision
from aimass_exporters.progress import Progress

GRAPH_FILE, GOLDEN_FILE = "encoder.onnx", "golden.npz"
_NUM_IMAGES, _BATCH, _NUM_GOLDEN = 24, 8, 2
_MAX_DIFF_STD = 1e-3
"""Bound of the difference, as a share of the logits' standard deviation: float32 in another order."""
_MIN_AGREEMENT = 0.95
"""One of the 24 images may be a near-tie."""


def build_image_classifier(
    model: ImageModel, draft: Path, *, precision: Precision, progress: Progress
) -> ModelManifest:
    """Write the files of a bundle into `draft`; return the part of the manifest that speaks of them.

    Raises `InvalidExportOption` for a precision other than fp32, `UnsupportedModel` and `ParityFailed`.
    """
    if precision is not Precision.FP32:
        raise InvalidExportOption("--precision", expected="fp32 for image models", got=precision.value)
    size = model.spec.image_size
    progress.stage("export the graph")
    example = torch.zeros(2, 3, size, size)
    inputs = [Port(PIXELS, example, {0: torch.export.Dim("batch", min=1, max=4096)})]
    graph = trace(model.module, [*inputs], [LOGITS], draft / GRAPH_FILE, family=model.family)
    described = ModelManifest(family=model.family, image_classification=model.spec)
    described.graphs.append(describe_graph("encoder", graph))
    progress.stage("compare logits with PyTorch")
    session = open_session(graph, SessionConfig(device=Device.CPU, num_threads=1))
    runner = ImageRunner(session, mean=model.spec.mean, std=model.spec.std)
    described.parity.CopyFrom(_measure(model, runner, draft))
    return described


def _measure(model: ImageModel, runner: ImageRunner, draft: Path) -> ParityRecord:
    """Compare graph and PyTorch on batches of images, and single ones; write the golden images."""
    images = images_like_photographs(_NUM_IMAGES, model.spec.image_size)
    rows = [ImageRow(image) for image in images]
    pixels = runner.lay_out(rows, length=1).pixels
    with torch.inference_mode():
        expected = np.concatenate(
            [model.module(torch.from_numpy(part)).numpy() for part in np.split(pixels, _NUM_IMAGES // _BATCH)]
        )
    batches = [rows[:1], *(rows[i : i + _BATCH] for i in range(1, _NUM_IMAGES, _BATCH))]
    got = np.concatenate([runner.run(runner.lay_out(batch, length=1))[LOGITS] for batch in batches])
    spread, report = max(float(expected.std()), 1e-3), ParityReport()
    difference = float(np.abs(got - expected).max())
    report.at_most("max_abs_diff_logits", difference, bound=_MAX_DIFF_STD * spread, num_samples=_NUM_IMAGES)
    share = float((got.argmax(axis=1) == expected.argmax(axis=1)).mean())
    report.at_least("best_agreement", share, bound=_MIN_AGREEMENT, num_samples=_NUM_IMAGES)
    golden = {PIXELS: pixels[:_NUM_GOLDEN], LOGITS: got[:_NUM_GOLDEN]}
    np.savez(
        draft / GOLDEN_FILE, allow_pickle=False, **golden, tolerance=np.array(10 * _MAX_DIFF_STD * spread)
    )
    return report.record()


def images_like_photographs(count: int, size: int) -> NDArray[np.uint8]:
    """Return images [count, size, size, 3] of soft spots in many colours, and noise."""
    rng = np.random.default_rng(5)
    grid = np.linspace(-1, 1, size)
    images = rng.normal(0, 8, (count, size, size, 3))
    for image in images:
        for x, y, width in rng.uniform((-1, -1, 0.1), (1, 1, 0.8), (12, 3)):
            spot = np.exp(-((grid[:, None] - y) ** 2 + (grid[None] - x) ** 2) / width**2)
            image += spot[:, :, None] * rng.uniform(-40, 140, 3)
    return np.clip(images, 0, 255).astype(np.uint8)
