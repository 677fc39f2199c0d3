"""Image files of every kind, and files that are none: pixels, or an error that names the field."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from aimass_encoder.images.decoding import Framing, decode_image, framed_image
from aimass_serving.errors import InvalidField
from numpy.typing import NDArray
from PIL import Image

EXACT = Framing(size=8, resize_to=8, keeps_proportions=False, interpolation=Image.Resampling.BILINEAR)
CROPPED = Framing(size=8, resize_to=10, keeps_proportions=True, interpolation=Image.Resampling.BILINEAR)
RED, WHITE = [255, 0, 0], [255, 255, 255]


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels_of(content: bytes, framing: Framing = EXACT) -> NDArray[np.uint8]:
    return decode_image(content, framing, field="images[0]").pixels


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims to be this large, with next to no data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_mode_that_a_format_has_becomes_red_green_and_blue(mode: str, kind: str) -> None:
    fits = {"PNG": mode != "CMYK", "JPEG": mode in ("RGB", "L", "CMYK"), "WEBP": mode in ("RGB", "RGBA")}
    image = Image.new("I;16", (20, 30), 65_535) if mode == "I;16" else Image.new("RGB", (20, 30), "white")
    content = file_of(
        (image if mode == "I;16" else image.convert(mode)) if fits[kind] else image.convert("L"), kind
    )
    decoded = decode_image(content, EXACT, field="images[0]")
    assert decoded.pixels.shape == (8, 8, 3)
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.min() >= 250
    assert (decoded.width, decoded.height) == (20, 30)


def test_what_is_transparent_is_laid_on_white() -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 4, 8))
    pixels = pixels_of(file_of(image))
    assert pixels[0, 0].tolist() == RED
    assert pixels[0, 7].tolist() == WHITE


def test_an_image_is_turned_as_its_exif_says() -> None:
    image = Image.new("RGB", (16, 8), "white")
    image.paste((255, 0, 0), (0, 0, 8, 8))  # red at the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: left becomes top
    decoded = decode_image(file_of(image, exif=exif), EXACT, field="images[0]")
    assert (decoded.width, decoded.height) == (8, 16)
    assert decoded.pixels[0, 0].tolist() == decoded.pixels[0, 7].tolist() == RED
    assert decoded.pixels[7, 0].tolist() == WHITE


def test_the_middle_is_cut_out_of_a_proportional_image() -> None:
    image = Image.new("RGB", (40, 10), "white")
    image.paste((255, 0, 0), (15, 0, 25, 10))
    assert (framed_image(image, CROPPED).size, np.asarray(framed_image(image, CROPPED)).tolist()) == (
        (8, 8),
        [[RED] * 8] * 8,
    )


def test_a_strip_a_million_times_longer_than_wide_takes_no_memory() -> None:
    assert pixels_of(file_of(Image.new("L", (2_000_000, 1), 255)), CROPPED).min() == 255


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no bytes"),
        (b"not an image", "cannot be decoded"),
        (file_of(Image.effect_noise((64, 64), 50))[:2000], "cannot be decoded"),
        (png_header(9_000, 9_000), "9000 x 9000 pixels"),
        (png_header(12_000, 12_000), "many more pixels"),
        (png_header(200_000, 200_000), "many more pixels"),
        (file_of(Image.new("RGB", (300, 300)), "JPEG")[:500], "cannot be decoded"),
        (file_of(Image.new("RGB", (30, 30)), "GIF"), "cannot be decoded"),
        (file_of(Image.new("RGB", (30, 30)), "TIFF"), "cannot be decoded"),
        (bytes(9 * 2**20), "9437184 bytes"),
    ],
    ids=["empty", "text", "cut", "large", "bomb", "larger bomb", "cut jpeg", "gif", "tiff", "bytes"],
)
def test_what_is_no_image_within_the_limits_is_refused_by_name(content: bytes, message: str) -> None:
    with pytest.raises(InvalidField, match=r"images\[3\]: expected a PNG, JPEG or WebP") as refused:
        decode_image(content, EXACT, field="images[3]")
    assert message in str(refused.value)
