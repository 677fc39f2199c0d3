"""An image classifier in PyTorch, float32, and what the service must know to show it images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from aimass.model.v1.image_spec_pb2 import (
    IMAGE_INTERPOLATION_BICUBIC,
    IMAGE_INTERPOLATION_BILINEAR,
    IMAGE_RESIZE_SHORTER_SIDE,
    ImageClassificationSpec,
)
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageClassification

from aimass_exporters.errors import InvalidCheckpoint, UnsupportedModel
from aimass_exporters.images.alexnet import AlexNet
from aimass_exporters.images.efficientnet_lite import VARIANTS, EfficientNetLite
from aimass_exporters.images.preprocessing import read_preprocessing
from aimass_exporters.sources.catalogue import Reader
from aimass_exporters.sources.json_file import read_object
from aimass_exporters.sources.pretrained import load_pretrained
from aimass_exporters.sources.source import Source

ALEXNET, EFFICIENTNET_LITE = "alexnet", "efficientnet-lite"
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_EFFICIENTNET_MARGIN = 32
"""Pixels that TensorFlow's evaluation of EfficientNet-Lite cuts off the resized image."""


@dataclass(frozen=True, slots=True)
class ImageModel:
    """A module in evaluation mode that gives logits: also the reference that parity is measured against."""

    module: nn.Module
    spec: ImageClassificationSpec
    family: str


class _Logits(nn.Module):
    """A transformers classifier that gives its logits and nothing else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._model(pixel_values=pixel_values).logits
        return logits


def load_image_model(source: Source) -> ImageModel:
    """Load a folder of transformers, AlexNet or EfficientNet-Lite, or the catalogue's EfficientNet-Lite.

    Raises `InvalidCheckpoint` or `UnsupportedModel`.
    """
    if source.reader is Reader.EFFICIENTNET_LITE:
        return _packaged_efficientnet(source.path)
    config = read_object(source.path / "config.json")
    family = str(config.get("model_type", "unknown"))
    if family == ALEXNET:
        return _alexnet(source.path, config)
    if family == EFFICIENTNET_LITE:
        return _efficientnet(source.path, config)
    return _transformers(source.path, family)


def _transformers(folder: Path, family: str) -> ImageModel:
    spec = read_preprocessing(folder, family)
    model = load_pretrained(AutoModelForImageClassification, folder, attention=None)
    spec.labels.extend(_labels(model.config.id2label, folder))
    spec.is_multi_label = model.config.problem_type == "multi_label_classification"
    return ImageModel(_Logits(model).eval(), spec, family)


def _alexnet(folder: Path, config: Mapping[str, Any]) -> ImageModel:
    labels = _labels(config.get("id2label"), folder)
    module = AlexNet(len(labels), num_units=int(config.get("num_units", 4096)))
    spec = _imagenet_spec(224, resize_to=256, labels=labels)
    return ImageModel(_with_weights(module, _tensors(folder), folder), spec, ALEXNET)


def _efficientnet(folder: Path, config: Mapping[str, Any]) -> ImageModel:
    variant = str(config.get("variant"))
    if variant not in VARIANTS:
        raise UnsupportedModel(EFFICIENTNET_LITE, because=f"its variant is {variant!r}")
    return _efficientnet_model(variant, _labels(config.get("id2label"), folder), _tensors(folder), folder)


def _packaged_efficientnet(folder: Path) -> ImageModel:
    """Read the weights and ImageNet's names, which two packages carry."""
    (file,) = folder.glob("efficientnet-lite0-*.pth")
    weights = torch.load(file, map_location="cpu", weights_only=True)
    return _efficientnet_model("lite0", imagenet_labels(folder), weights, folder)


def _efficientnet_model(
    variant: str, labels: list[str], weights: Mapping[str, torch.Tensor], folder: Path
) -> ImageModel:
    shape = VARIANTS[variant]
    module = EfficientNetLite(shape, len(labels))
    spec = ImageClassificationSpec(
        image_size=shape.image_size,
        resize=IMAGE_RESIZE_SHORTER_SIDE,
        resize_to=shape.image_size + _EFFICIENTNET_MARGIN,
        interpolation=IMAGE_INTERPOLATION_BICUBIC,
        mean=[127.0] * 3,
        std=[128.0] * 3,
        labels=labels,
    )
    return ImageModel(_with_weights(module, weights, folder), spec, EFFICIENTNET_LITE)


def imagenet_labels(folder: Path) -> list[str]:
    """Return the thousand names of ImageNet in order; a name that two classes share tells its synset too."""
    synsets = (folder / "imagenet_synsets.txt").read_text(encoding="utf-8").split()
    lines = (folder / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    names = dict(line.split("\t", 1) for line in lines)
    counts = Counter(names[synset] for synset in synsets)
    return [names[s] if counts[names[s]] == 1 else f"{names[s]} ({s})" for s in synsets]


def _imagenet_spec(image_size: int, *, resize_to: int, labels: list[str]) -> ImageClassificationSpec:
    return ImageClassificationSpec(
        image_size=image_size,
        resize=IMAGE_RESIZE_SHORTER_SIDE,
        resize_to=resize_to,
        interpolation=IMAGE_INTERPOLATION_BILINEAR,
        mean=[255 * mean for mean in _IMAGENET_MEAN],
        std=[255 * std for std in _IMAGENET_STD],
        labels=labels,
    )


def _labels(names: object, folder: Path) -> list[str]:
    if not isinstance(names, Mapping) or not names:
        raise InvalidCheckpoint(folder, detail="expected labels in id2label of config.json")
    by_number = {int(number): str(name) for number, name in names.items()}
    if sorted(by_number) != list(range(len(by_number))):
        raise InvalidCheckpoint(folder, detail="expected id2label to number its labels from 0")
    return [by_number[number] for number in range(len(by_number))]


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def _with_weights(module: nn.Module, weights: Mapping[str, torch.Tensor], folder: Path) -> nn.Module:
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise InvalidCheckpoint(folder, detail=f"its weights are not this network's: {detail}") from error
    return module.float().eval()
