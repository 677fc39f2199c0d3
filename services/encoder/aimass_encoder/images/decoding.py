"""Bytes of an image file to the pixels that a model takes. Must not know models, requests or queues.

Files come from strangers: nothing is decoded before its size is known, and only by three decoders.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from aimass_serving.errors import InvalidField
from numpy.typing import NDArray
from PIL import Image, ImageOps

MAX_IMAGE_BYTES = 8 * 2**20
MAX_IMAGE_PIXELS = 50_000_000
"""Decoded, such an image takes 200 MB for a moment."""
FORMATS = ("PNG", "JPEG", "WEBP")
_ALLOWED = f"a PNG, JPEG or WebP image of at most {MAX_IMAGE_BYTES} bytes and {MAX_IMAGE_PIXELS} pixels"
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, OverflowError, KeyError)
"""What Pillow raises of files that are not what they say."""
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True, slots=True)
class Framing:
    """How an image is brought to the size that a model takes."""

    size: int
    """Width and height of the result."""
    resize_to: int
    """At least `size`."""
    keeps_proportions: bool
    """Whether the shorter side becomes `resize_to` and the middle is cut out; else both sides do."""
    interpolation: Image.Resampling


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image as a model takes it."""

    pixels: NDArray[np.uint8]  # [size, size, 3], red, green and blue
    width: int
    """Of the whole image, as it is looked at."""
    height: int


def decode_image(content: bytes, framing: Framing, *, field: str) -> DecodedImage:
    """Return the pixels of a file, turned as its EXIF says, transparent parts on white.

    Raises `InvalidField`, which names `field`, for anything but a whole image within the limits.
    """
    if not content:
        raise InvalidField(field, expected=_ALLOWED, got="no bytes")
    if len(content) > MAX_IMAGE_BYTES:
        raise InvalidField(field, expected=_ALLOWED, got=f"{len(content)} bytes")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise InvalidField(field, expected=_ALLOWED, got=f"{image.width} x {image.height} pixels")
            image.load()
            upright = ImageOps.exif_transpose(image)
            framed = framed_image(opaque(upright), framing)
            return DecodedImage(np.asarray(framed), upright.width, upright.height)
    except _BOMBS as error:
        raise InvalidField(field, expected=_ALLOWED, got="many more pixels") from error
    except _BROKEN as error:
        got = f"bytes that cannot be decoded ({_why(error)})"
        raise InvalidField(field, expected=_ALLOWED, got=got) from error


def opaque(image: Image.Image) -> Image.Image:
    """Return an image of any mode as red, green and blue; what is transparent is laid on white."""
    if image.mode in _DEEP_MODES:
        depth = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255)  # 16 bits a pixel
        return Image.fromarray(depth.astype(np.uint8)).convert("RGB")
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    background = Image.new("RGBA", layered.size, "white")
    return Image.alpha_composite(background, layered).convert("RGB")


def framed_image(image: Image.Image, framing: Framing) -> Image.Image:
    """Return the part of an image that the model sees, at its size."""
    target = framing.resize_to
    if not framing.keeps_proportions:
        return image.resize((target, target), framing.interpolation)
    scale = target / min(image.size)
    width, height = (max(target, int(side * scale)) for side in image.size)
    box = _strip(image.size, framing) if max(width, height) > 4 * target else None
    if box is not None:  # a strip a thousand times longer than wide would be scaled up whole
        return image.crop(box).resize((framing.size, framing.size), framing.interpolation)
    resized = image.resize((width, height), framing.interpolation)
    left, top = (width - framing.size) // 2, (height - framing.size) // 2
    return resized.crop((left, top, left + framing.size, top + framing.size))


def _strip(size: tuple[int, int], framing: Framing) -> tuple[int, int, int, int]:
    """Return the middle of the whole image that the crop would show."""
    side = max(1, round(min(size) * framing.size / framing.resize_to))
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return left, top, left + side, top + side


def _why(error: Exception) -> str:
    return "truncated" if "truncated" in str(error) else type(error).__name__
