"""What the catalogue offers and what a store holds, as rows for a table or for a script."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aimass.model.v1.manifest_pb2 import (
    ModelManifest,
    ParityMeasure,
    ParityRecord,
    Precision,
    Task,
)
from aimass_serving.bundle import read_manifest
from aimass_serving.errors import BadBundle
from aimass_serving.store import open_store

from aimass_exporters.sources.catalogue import CATALOGUE


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One bundle of a store; only its name, version and problem are known when its manifest is unreadable."""

    name: str
    version: str
    task: str = ""
    family: str = ""
    precision: str = ""
    licence: str = ""
    source: str = ""
    size_bytes: int = 0
    adapters: tuple[str, ...] = ()
    """Names of the adapters that requests choose from."""
    problem: str = ""


def catalogue_rows() -> list[dict[str, str]]:
    """Return the catalogue's models."""
    return [
        {
            "name": entry.name,
            "task": entry.task.value,
            "family": entry.family,
            "licence": entry.licence,
            "package": f"{entry.package.name}=={entry.package.version}",
            "summary": entry.summary,
        }
        for entry in CATALOGUE.values()
    ]


def stored_models(store: Path) -> list[StoredModel]:
    """Return the bundles of a local store, by name, then newest first. Checks no checksum: `read_bundle`
    does.
    """
    if not store.is_dir():
        return []
    return [_stored(store, ref.name, ref.version) for ref in open_store(str(store)).list()]


def _stored(store: Path, name: str, version: str) -> StoredModel:
    try:
        manifest = read_manifest(store / name / version)
    except BadBundle as error:
        return StoredModel(name, version, problem=str(error))
    return StoredModel(
        name=name,
        version=version,
        task=task_name(manifest),
        family=manifest.family,
        precision=precision_name(manifest),
        licence=manifest.licence,
        source=manifest.source,
        size_bytes=bundle_bytes(manifest),
        adapters=tuple(adapter.name for adapter in manifest.adapters),
    )


def task_name(manifest: ModelManifest) -> str:
    """Return the task as the command line writes it."""
    return Task.Name(manifest.task).removeprefix("TASK_").lower().replace("_", "-")


def precision_name(manifest: ModelManifest) -> str:
    """Return the precision as the command line writes it."""
    return Precision.Name(manifest.precision).removeprefix("PRECISION_").lower()


def bundle_bytes(manifest: ModelManifest) -> int:
    """Return the size of all files of a bundle."""
    return sum(file.size_bytes for file in manifest.files)


def adapter_objects(manifest: ModelManifest) -> list[dict[str, object]]:
    """Return the adapters of a bundle, as scripts read them."""
    return [
        {
            "name": adapter.name,
            "rank": adapter.rank,
            "targets": list(adapter.targets),
            "licence": adapter.licence,
            "parity": measure_rows(adapter.parity),
        }
        for adapter in manifest.adapters
    ]


def measure_rows(parity: ParityRecord) -> list[dict[str, str | float | int]]:
    """Return what the export measured, with `at_most` or `at_least` as the side of the bound that is good."""
    return [
        {
            "name": measure.name,
            "value": measure.value,
            "comparison": ParityMeasure.Comparison.Name(measure.comparison)
            .removeprefix("COMPARISON_")
            .lower(),
            "bound": measure.bound,
            "num_samples": measure.num_samples,
        }
        for measure in parity.measures
    ]
