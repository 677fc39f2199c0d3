"""Reads the JSON files of a checkpoint, which anybody may have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aimass_exporters.errors import InvalidCheckpoint


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object. Raises `InvalidCheckpoint` when the file holds anything else."""
    value = _read(file)
    if not isinstance(value, dict):
        raise InvalidCheckpoint(
            file.parent, detail=f"expected a JSON object in {file.name}, got a {type(value).__name__}"
        )
    return value


def read_objects(file: Path) -> list[dict[str, Any]]:
    """Read a JSON list of objects. Raises `InvalidCheckpoint` when the file holds anything else."""
    value = _read(file)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InvalidCheckpoint(file.parent, detail=f"expected a JSON list of objects in {file.name}")
    return value


def _read(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidCheckpoint(file.parent, detail=f"{file.name} cannot be read: {error}") from error
