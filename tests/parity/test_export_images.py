"""Image classifiers of random weights through the export, which holds each to PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from aimass_encoder.images.decoding import framed_image
from aimass_encoder.images.loader import framing_of
from aimass_encoder.images.runner import ImageRow, ImageRunner
from aimass_serving.bundle import read_bundle
from aimass_serving.session import Device, SessionConfig, open_session
from PIL import Image

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAMES = {number: f"class {number}" for number in range(7)}


def vit() -> PreTrainedModel:
    from transformers import ViTConfig, ViTForImageClassification

    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = ViTConfig(**sizes, intermediate_size=64, image_size=32, patch_size=8, id2label=NAMES)
    return ViTForImageClassification(config)


def resnet() -> PreTrainedModel:
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes: dict[str, Any] = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 2]}
    return ResNetForImageClassification(ResNetConfig(**sizes, id2label=NAMES))


def processor(family: str) -> Any:
    from transformers import ConvNextImageProcessor, ViTImageProcessor

    if family == "vit":
        return ViTImageProcessor(size={"height": 32, "width": 32})
    return ConvNextImageProcessor(size={"shortest_edge": 56}, crop_pct=0.875)


@pytest.mark.parametrize(("family", "build"), [("vit", vit), ("resnet", resnet)])
def test_a_transformers_model_gives_its_logits_for_files(
    family: str, build: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    import torch
    from aimass_exporters.exporter import export_model

    torch.manual_seed(2)
    torch.set_num_threads(1)
    model = build().eval()
    model.save_pretrained(tmp_path / "model")
    processor(family).save_pretrained(tmp_path / "model")
    bundle = read_bundle(export_model(str(tmp_path / "model"), store=tmp_path / "store", name=family))
    spec = bundle.manifest.image_classification
    assert [m.name for m in bundle.manifest.parity.measures] == ["max_abs_diff_logits", "best_agreement"]
    assert list(spec.labels) == list(NAMES.values())

    noise = np.random.default_rng(1).integers(0, 255, (90, 120, 3), np.uint8)
    image = Image.fromarray(noise).resize((240, 180))
    with torch.inference_mode():
        expected = model(**processor(family)(image, return_tensors="pt")).logits.numpy()
    session = open_session(bundle.graph("encoder"), SessionConfig(device=Device.CPU, num_threads=1))
    runner = ImageRunner(session, mean=spec.mean, std=spec.std)
    pixels = np.asarray(framed_image(image, framing_of(spec, bundle.ref)))
    got = runner.run(runner.lay_out([ImageRow(pixels)], length=1))["logits"]
    np.testing.assert_allclose(got, expected, atol=2e-3 * expected.std() + 1e-4)


def test_alexnet_gives_the_logits_of_pytorch(tmp_path: Path) -> None:
    import torch
    from aimass_exporters.exporter import export_model
    from aimass_exporters.images.alexnet import AlexNet
    from safetensors.torch import save_file

    torch.manual_seed(2)
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(AlexNet(7, num_units=64).state_dict(), folder / "model.safetensors")
    config = {
        "model_type": "alexnet",
        "architectures": ["AlexNetForImageClassification"],
        "num_units": 64,
        "id2label": NAMES,
    }
    (folder / "config.json").write_text(json.dumps(config))
    bundle = read_bundle(export_model(str(folder), store=tmp_path / "store", name="alexnet"))
    spec = bundle.manifest.image_classification
    assert (bundle.manifest.family, spec.image_size, spec.resize_to) == ("alexnet", 224, 256)
    assert bundle.manifest.parity.measures[0].value < 1e-4


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    from aimass_exporters.errors import InvalidCheckpoint
    from aimass_exporters.exporter import export_model

    resnet().save_pretrained(tmp_path)
    config = {"model_type": "efficientnet-lite", "variant": "lite0", "id2label": NAMES}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidCheckpoint, match="weights are not this network's"):
        export_model(str(tmp_path), task="image-classification", store=tmp_path / "store", name="x")
