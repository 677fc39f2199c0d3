"""How a transformers folder wants its images, in the manifest's words. Must not load weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aimass.model.v1.image_spec_pb2 import (
    IMAGE_INTERPOLATION_BICUBIC,
    IMAGE_INTERPOLATION_BILINEAR,
    IMAGE_RESIZE_EXACT,
    IMAGE_RESIZE_SHORTER_SIDE,
    ImageClassificationSpec,
    ImageInterpolation,
)

from aimass_exporters.errors import InvalidCheckpoint, UnsupportedModel
from aimass_exporters.sources.json_file import read_object

_FILE = "preprocessor_config.json"
_RESAMPLING: Mapping[int, ImageInterpolation.ValueType] = {
    2: IMAGE_INTERPOLATION_BILINEAR,
    3: IMAGE_INTERPOLATION_BICUBIC,
}
_UNDISTORTED_BELOW = 384
"""ConvNeXt's processor crops below this size, and distorts from it on."""
_PIXEL_MAX = 255.0


def read_preprocessing(folder: Path, family: str) -> ImageClassificationSpec:
    """Return the spec without its labels. Raises `InvalidCheckpoint` or `UnsupportedModel`."""
    if not (folder / _FILE).is_file():
        raise InvalidCheckpoint(folder, detail=f"expected a {_FILE}, found none")
    config = read_object(folder / _FILE)
    resample = config.get("resample", 2)
    if not config.get("do_resize", True) or not config.get("do_rescale", True):
        raise UnsupportedModel(family, because="its images are not resized, or not scaled")
    if resample not in _RESAMPLING:
        raise UnsupportedModel(family, because=f"its interpolation is number {resample}")
    spec = _sizes(config, family)
    spec.interpolation = _RESAMPLING[resample]
    factor = float(config.get("rescale_factor", 1 / _PIXEL_MAX))
    is_normalised = config.get("do_normalize", True)
    mean = config.get("image_mean", [0.5] * 3) if is_normalised else [0.0] * 3
    std = config.get("image_std", [0.5] * 3) if is_normalised else [1.0] * 3
    spec.mean.extend(float(m) / factor for m in mean)
    spec.std.extend(float(s) / factor for s in std)
    return spec


def _sizes(config: Mapping[str, Any], family: str) -> ImageClassificationSpec:
    size = config.get("size", {})
    size = {"height": size, "width": size} if isinstance(size, int) else size
    if "shortest_edge" in size:
        return _proportional(int(size["shortest_edge"]), config)
    height, width = size.get("height"), size.get("width")
    if not isinstance(height, int) or height != width:
        raise UnsupportedModel(family, because=f"its images are {height} x {width}: expected squares")
    return ImageClassificationSpec(image_size=height, resize=IMAGE_RESIZE_EXACT, resize_to=height)


def _proportional(edge: int, config: Mapping[str, Any]) -> ImageClassificationSpec:
    if "crop_pct" in config and edge >= _UNDISTORTED_BELOW:
        return ImageClassificationSpec(image_size=edge, resize=IMAGE_RESIZE_EXACT, resize_to=edge)
    if "crop_pct" in config:
        resize_to, size = int(edge / config["crop_pct"]), edge
    else:
        crop = config.get("crop_size", edge) if config.get("do_center_crop", False) else edge
        resize_to, size = edge, int(crop["height"] if isinstance(crop, dict) else crop)
    return ImageClassificationSpec(image_size=size, resize=IMAGE_RESIZE_SHORTER_SIDE, resize_to=resize_to)
