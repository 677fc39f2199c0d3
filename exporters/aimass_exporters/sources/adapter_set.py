"""Several LoRA adapters of one model, each under the name that requests will choose it by. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aimass_serving.bundle import NAME_PATTERN

from aimass_exporters.errors import InvalidExportOption
from aimass_exporters.sources.lora_adapter import LoraAdapter, read_adapter
from aimass_exporters.sources.source import licence_of

OPTION = "--adapters"


@dataclass(frozen=True, slots=True)
class NamedAdapter:
    """An adapter, and what a bundle says of it."""

    name: str
    adapter: LoraAdapter
    licence: str


def read_adapters(folders: Sequence[tuple[str, Path]]) -> tuple[NamedAdapter, ...]:
    """Read adapters, each a name and a folder.

    Raises `InvalidExportOption` for a name that is no name or stands twice, and as `read_adapter` does.
    """
    names = [name for name, _ in folders]
    for name in names:
        if not NAME_PATTERN.fullmatch(name):
            expected = "names of up to 128 lower-case letters, digits, '.', '_' and '-'"
            raise InvalidExportOption(OPTION, expected=expected, got=name)
        if names.count(name) > 1:
            raise InvalidExportOption(OPTION, expected="a name of its own for each", got=f"{name} twice")
    return tuple(NamedAdapter(name, read_adapter(folder), licence_of(folder)) for name, folder in folders)
