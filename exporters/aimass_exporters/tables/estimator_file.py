"""A scikit-learn estimator from a file into a bundle. Reads skops files only: a pickle can run code.

Knows the file formats of estimators and rows, and nothing of graphs.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import skops.io
from skops.io.exceptions import UntrustedTypesFoundException

from aimass_exporters.bundles.draft import derived_name
from aimass_exporters.errors import InvalidCheckpoint, InvalidExportOption, UntrustedEstimator
from aimass_exporters.tables.estimator_bundle import export_estimator

_SUFFIX = ".skops"


def export_file(
    file: Path,
    *,
    rows: Path,
    target: str | None,
    trusted: Sequence[str],
    store: Path,
    name: str | None = None,
) -> Path:
    """Export the estimator of a skops file, compared on the rows of a CSV file; return the bundle's folder.

    Raises `InvalidExportOption`, `UntrustedEstimator`, `InvalidCheckpoint`, and what `export_estimator` does.
    """
    estimator = read_estimator(file, trusted=trusted)
    columns, table, targets = read_rows(rows, target=target)
    return export_estimator(
        estimator,
        table,
        name=name or derived_name(file.stem),
        store=store,
        columns=columns,
        targets=targets,
    )


def read_estimator(file: Path, *, trusted: Sequence[str] = ()) -> Any:
    """Return the estimator of a skops file; types that skops does not know must be among `trusted`."""
    if not file.is_file() or file.suffix != _SUFFIX:
        expected = "a .skops file, as skops.io.dump(estimator, file) writes it; a pickle can run code"
        raise InvalidExportOption("FILE", expected=expected, got=str(file))
    try:
        unknown = sorted(set(skops.io.get_untrusted_types(file=file)) - set(trusted))
        if unknown:
            raise UntrustedEstimator(file, types=unknown)
        return skops.io.load(file, trusted=list(trusted))
    except UntrustedTypesFoundException as error:
        raise UntrustedEstimator(file, types=[str(error)]) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, BadZipFile) as error:
        raise InvalidCheckpoint(file, detail=f"skops cannot read it: {type(error).__name__}") from error


def read_rows(
    file: Path, *, target: str | None
) -> tuple[list[str], list[list[float | str]], list[str] | None]:
    """Return names of columns, rows, and the target's column of a CSV file with a header.

    A column is of numbers when each of its cells is one, or empty for a missing one.
    """
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            header, *lines = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InvalidExportOption("--rows", expected="a CSV file with a header", got=str(file)) from error
    for number, line in enumerate(lines, 2):
        if len(line) != len(header):
            raise InvalidExportOption(
                "--rows", expected=f"{len(header)} cells in line {number}", got=len(line)
            )
    if target is not None and target not in header:
        raise InvalidExportOption("--target", expected=f"one of {', '.join(header)}", got=target)
    by_name = {name: [line[place] for line in lines] for place, name in enumerate(header)}
    targets = by_name.pop(target) if target is not None else None
    columns = [_cells(cells) for cells in by_name.values()]
    return list(by_name), [list(row) for row in zip(*columns, strict=True)], targets


def _cells(cells: Sequence[str]) -> Sequence[float | str]:
    try:
        return [float(cell) if cell else float("nan") for cell in cells]
    except ValueError:
        return cells
