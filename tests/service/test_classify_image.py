"""Image classification with the real EfficientNet-Lite0: server, client, command; PyTorch is the oracle."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from aimass import ClassificationClient, ImageLabels, ImageOptions, ItemError, LabelledImages
from aimass.cli.application import app
from aimass.errors import InvalidRequest
from aimass_encoder.__main__ import PLAN
from aimass_serving.testing import running_service
from PIL import Image
from typer.testing import CliRunner

MODEL = "efficientnet-lite0"
DAISY = 985


@pytest.fixture(scope="module")
def store() -> Path:
    from aimass_exporters.testing import cached_export

    return cached_export(MODEL, name=MODEL)


@pytest.fixture(scope="module")
def photographs() -> dict[str, Path]:
    """A Chinese palace and a flower."""
    import sklearn.datasets

    folder = Path(sklearn.datasets.__file__).parent / "images"
    return {name: folder / f"{name}.jpg" for name in ("china", "flower")}


@pytest.fixture
async def address(store: Path) -> AsyncIterator[str]:
    async with running_service(PLAN, store) as service:
        yield service.address


async def classify(
    address: str, images: Sequence[bytes], options: ImageOptions | None = None
) -> LabelledImages:
    def call() -> LabelledImages:
        with ClassificationClient(address) as client:
            return client.classify_images(images, model=MODEL, options=options, deadline_s=60)

    return await asyncio.to_thread(call)


async def test_photographs_show_what_people_see(address: str, photographs: dict[str, Path]) -> None:
    images = [photographs[name].read_bytes() for name in ("china", "flower")]
    china, flower = (await classify(address, images)).require_all()
    assert (china.labels[0].label, flower.labels[0].label) == ("palace", "daisy")
    assert (china.width, china.height, len(china.labels)) == (640, 427, 5)


async def test_scores_are_those_of_pytorch_on_the_same_pixels(
    address: str, photographs: dict[str, Path]
) -> None:
    import torch
    from aimass_exporters.images.image_model import load_image_model
    from aimass_exporters.progress import SilentProgress
    from aimass_exporters.sources.source import resolve_source

    torch.set_num_threads(1)
    model = load_image_model(resolve_source(MODEL, SilentProgress()))
    with Image.open(photographs["flower"]) as file:
        width, height = file.size
        resized = file.resize((int(width * 256 / height), 256), Image.Resampling.BICUBIC)
    left = (resized.width - 224) // 2
    pixels = np.asarray(resized.crop((left, 16, left + 224, 240)), np.float32)
    with torch.inference_mode():
        logits = model.module(torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1)[None])[0]
    (served,) = (
        await classify(address, [photographs["flower"].read_bytes()], ImageOptions(top_k=1000))
    ).require_all()
    scores = np.zeros(1000)
    scores[[label.index for label in served.labels]] = [label.score for label in served.labels]
    np.testing.assert_allclose(scores, logits.softmax(dim=0).numpy(), atol=1e-4)
    assert scores.argmax() == DAISY


async def test_bad_images_fail_alone_and_bad_options_the_call(
    address: str, photographs: dict[str, Path]
) -> None:
    flower = photographs["flower"].read_bytes()
    turned = io.BytesIO()
    with Image.open(photographs["flower"]) as image:
        image.convert("L").convert("CMYK").save(turned, "JPEG")
    images = [flower, b"PK\x03\x04 no image", b"", flower[:2000], turned.getvalue(), flower]
    found = await classify(address, images, ImageOptions(labels=("daisy", "bee"), top_k=2))
    errors = [r.violations[0].field for r in found.results if isinstance(r, ItemError)]
    assert errors == ["images[1]", "images[2]", "images[3]"]
    good = [r for r in found.results if isinstance(r, ImageLabels)]
    assert [label.label for label in good[0].labels] == ["daisy", "bee"]
    assert good[0] == good[2]  # equal images are computed once
    with pytest.raises(InvalidRequest, match=r"options\.labels\[0\]"):
        await classify(address, [flower], ImageOptions(labels=("unicorn of the sea",)))
    with pytest.raises(InvalidRequest, match="images: expected at least one"):
        await classify(address, [])
    with pytest.raises(InvalidRequest, match="images: expected at most 256"):
        await classify(address, [b"x"] * 300)


async def test_the_command_prints_one_json_object_or_a_table(
    address: str, photographs: dict[str, Path]
) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["classify-image", *arguments, "--address", address])
        assert result.exit_code == 0, result.output
        return result.stdout

    file = str(photographs["china"])
    printed = json.loads(await asyncio.to_thread(run, file, "--json", "--top-k", "2"))
    assert printed["results"][0]["labels"][0]["label"] == "palace"
    assert "palace" in await asyncio.to_thread(run, file)
