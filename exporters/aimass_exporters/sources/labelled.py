"""Labelled texts that a model was not trained on, beside its weights: `labelled.jsonl`, one object a line.

A folder that carries them is calibrated and measured on them. For a text classifier a line is
`{"text": "...", "label": "..."}`, for a token classifier `{"words": ["..."], "labels": ["..."]}`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from aimass_exporters.errors import InvalidCheckpoint

LABELLED_FILE = "labelled.jsonl"


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text and its label."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class LabelledWords:
    """The words of a text and a label for each."""

    words: tuple[str, ...]
    labels: tuple[str, ...]


def write_labelled(folder: Path, examples: Iterable[LabelledText | LabelledWords]) -> None:
    """Write the file into a folder."""
    lines = [json.dumps({name: getattr(e, name) for name in e.__slots__}) for e in examples]
    (folder / LABELLED_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def labelled_texts(folder: Path) -> list[LabelledText]:
    """Return the folder's labelled texts; none when it carries none. Raises `InvalidCheckpoint`."""
    return [LabelledText(str(line["text"]), str(line["label"])) for line in _lines(folder, "text", "label")]


def labelled_words(folder: Path) -> list[LabelledWords]:
    """Return the folder's labelled words; none when it carries none. Raises `InvalidCheckpoint`."""
    found = _lines(folder, "words", "labels")
    return [LabelledWords(tuple(line["words"]), tuple(line["labels"])) for line in found]


def _lines(folder: Path, *keys: str) -> list[dict[str, list[str]]]:
    file = folder / LABELLED_FILE
    if not file.is_file():
        return []
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise InvalidCheckpoint(folder, detail=f"{LABELLED_FILE} is not JSON a line: {error}") from error
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict) or not all(key in line for key in keys):
            detail = f"line {number} of {LABELLED_FILE} has no {' and '.join(keys)}"
            raise InvalidCheckpoint(folder, detail=detail)
    return lines
