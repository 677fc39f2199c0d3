"""Decoders with smoothed norms against the graphs they were made from: the same logits in float.

Tolerance: float32 with other roundings, over two random layers whose logits reach about 10.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from aimass_exporters.decoders.decoder_export import decoder_shape
from aimass_exporters.decoders.random_sequences import random_sequences
from aimass_exporters.graphs.external_file import save_graph
from aimass_exporters.graphs.norm_smoothing import smooth_norms
from aimass_exporters.testing import cached_checkpoint, cached_export, tiny_config, write_adapter
from aimass_serving.store import open_store
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-4
NUM_SMOOTHED = {"llama": 4, "gpt2": 4, "qwen2": 4, "mistral": 4, "gpt_neox": 2, "opt": 4}
"""Norms of two layers that are read by products alone. In GPT-NeoX both of a layer are one here."""


def _copied(store: Path, folder: Path) -> Path:
    models = open_store(str(store))
    graph = models.open(models.list()[0]).graph("decoder")
    for name in (graph.name, f"{graph.name}.data"):
        shutil.copy(graph.with_name(name), folder)
    return folder / graph.name


def _logits(path: Path, feeds: list[dict[str, NDArray[Any]]]) -> NDArray[np.float32]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([np.asarray(session.run(["logits"], feed)[0]) for feed in feeds])


def _at_all_positions(feed: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return feed | {"last_idx": feed["position_ids"]}


@pytest.mark.parametrize("family", NUM_SMOOTHED)
def test_a_smoothed_decoder_gives_the_same_logits(family: str, tmp_path: Path) -> None:
    config = tiny_config(family)
    path = _copied(cached_export(cached_checkpoint(config), name=f"tiny-{family}"), tmp_path)
    sequences = random_sequences(decoder_shape(config), has_adapters=False)
    smooth = smooth_norms(path, sequences)
    smoothed = {t.name.split(".smoothed.")[0] for t in smooth.graph.initializer if ".smoothed." in t.name}
    assert len(smoothed) == NUM_SMOOTHED[family]
    feeds = [_at_all_positions(feed) for feed in sequences]
    found = _logits(save_graph(smooth, tmp_path / "smooth.onnx"), feeds)
    assert np.abs(found - _logits(path, feeds)).max() <= TOLERANCE


@pytest.mark.parametrize(("family", "targets"), [("llama", ("q_proj", "gate_proj")), ("gpt2", ("c_attn",))])
def test_adapters_beside_smoothed_products_give_the_same_logits(
    family: str, targets: tuple[str, ...], tmp_path: Path
) -> None:
    config = tiny_config(family)
    folder = cached_checkpoint(config)
    adapter = write_adapter(
        AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter", targets=targets, seed=4
    )
    path = _copied(cached_export(folder, name=f"smooth-{family}", adapters=[("tone", adapter)]), tmp_path)
    sequences = random_sequences(decoder_shape(config), has_adapters=True)
    smooth = save_graph(smooth_norms(path, sequences), tmp_path / "smooth.onnx")
    plain, chosen = (
        [_at_all_positions(feed) | {"adapter": np.array([number])} for feed in sequences] for number in (0, 1)
    )
    assert np.abs(_logits(path, chosen) - _logits(path, plain)).max() > 1
    for feeds in (plain, chosen):
        assert np.abs(_logits(smooth, feeds) - _logits(path, feeds)).max() <= TOLERANCE
