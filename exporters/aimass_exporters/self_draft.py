"""Exports a decoder with a second, cheaper graph of itself, whose guesses the first confirms when served.

Two exports, each measured as any other, become one bundle. What makes a bundle without a draft graph knows
nothing of this.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from aimass.model.v1.manifest_pb2 import Graph
from aimass_decoding.runner import DECODER_ROLE, DRAFT_ROLE
from aimass_serving.bundle import read_manifest

from aimass_exporters.bundles.draft import draft_folder, publish
from aimass_exporters.bundles.manifest_writer import describe_graph
from aimass_exporters.errors import InvalidExportOption
from aimass_exporters.precision import Precision
from aimass_exporters.progress import Progress
from aimass_exporters.sources.catalogue import TaskName
from aimass_exporters.sources.source import resolve_source

OPTION = "--draft"
FOLDER = "draft"
"""Of the second graph and its weights, inside the bundle."""


def export_with_draft(
    export_at: Callable[[str, Path], Path],
    source: str,
    *,
    draft: str,
    task: str | None,
    precision: str,
    store: Path,
    progress: Progress,
) -> Path:
    """Export a model with a draft graph; return the folder of its bundle.

    `export_at` exports it as it is at a precision into a store. Raises an `ExportError`, and then has written
    nothing: only decoders in fp32 are drafted for, and only by int8.
    """
    refuse_unfit(draft, task=task or resolve_source(source, progress).task, precision=precision)
    with draft_folder(store) as scratch:
        exact, guessing = (export_at(p, scratch) for p in (Precision.FP32, Precision.INT8))
        return join(exact, guessing, store)


def refuse_unfit(draft: str, *, task: str | None, precision: str) -> None:
    """Raise `InvalidExportOption` for a draft graph that could not be made, or would not be used."""
    if draft != Precision.INT8:
        raise InvalidExportOption(OPTION, expected=Precision.INT8, got=draft)
    if precision != Precision.FP32:
        expected = f"none beside --precision {precision}: a draft is confirmed in {Precision.FP32} only"
        raise InvalidExportOption(OPTION, expected=expected, got=draft)
    if task is not None and task != TaskName.TEXT_GENERATION:
        expected = f"none for {task}: drafts are for {TaskName.TEXT_GENERATION}"
        raise InvalidExportOption(OPTION, expected=expected, got=draft)


def join(exact: Path, guessing: Path, store: Path) -> Path:
    """Publish the bundle `exact` with the decoder of the bundle `guessing` as its draft graph."""
    manifest = read_manifest(exact)
    graph = _graph_of(guessing)
    with draft_folder(store) as folder:
        shutil.copytree(exact, folder, dirs_exist_ok=True)
        (folder / FOLDER).mkdir()
        for name in (graph.file, *graph.external_data):
            shutil.copyfile(guessing / name, folder / FOLDER / name)
        manifest.graphs.append(_described(folder / FOLDER / graph.file))
        del manifest.files[:]
        return publish(folder, manifest, store)


def _graph_of(bundle: Path) -> Graph:
    return next(graph for graph in read_manifest(bundle).graphs if graph.role == DECODER_ROLE)


def _described(file: Path) -> Graph:
    graph = describe_graph(DRAFT_ROLE, file)
    graph.file = f"{FOLDER}/{graph.file}"
    graph.external_data[:] = [f"{FOLDER}/{name}" for name in graph.external_data]
    return graph
