"""`aimass export`, `aimass models` and `aimass convert-checkpoint`. Progress goes to standard error.

Registered with every start of the `aimass` command: imports nothing heavy until a command runs.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from aimass_serving.errors import AimassError

if TYPE_CHECKING:
    from aimass.model.v1.manifest_pb2 import ModelManifest, ParityRecord
    from rich.table import Table

Store = Annotated[
    Path, typer.Option("--store", envvar="AIMASS_STORE", show_envvar=True, help="Folder of the models.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
DEFAULT_STORE = Path("models")


def register(app: typer.Typer) -> None:
    """Add the exporters' commands to the `aimass` command."""
    app.command("export")(export)
    app.command("models")(models)
    app.command("convert-checkpoint")(convert)
    app.command("export-estimator")(export_estimator_file)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn an error of ours into one line on standard error and exit code 1."""
    try:
        yield
    except AimassError as error:
        typer.echo(f"aimass: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from None


def export(
    source: Annotated[
        str, typer.Argument(help="A folder, a .gguf file, a hub id, or a name of `aimass models`.")
    ],
    *,
    task: Annotated[
        str | None, typer.Option(help="text-generation or embedding; read from the model when omitted.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="fp32 or int8 for the CPU, int4 for small memory, fp16 for CUDA.")
    ] = "fp32",
    store: Store = DEFAULT_STORE,
    name: Annotated[
        str | None, typer.Option(help="Name to serve it under; taken from SOURCE when omitted.")
    ] = None,
    eval_text: Annotated[
        Path | None,
        typer.Option(help="Text that int8 and int4 are judged on, paragraphs apart by an empty line."),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(help="Folder of a LoRA adapter to merge: adapter_config.json and safetensors."),
    ] = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="A LoRA adapter that requests choose by name, beside the model itself; may be repeated.",
        ),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(
            help="int8: add a graph that guesses tokens for an fp32 decoder, whose texts stay its own."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export a model into a verified bundle. Outside its tolerance it fails, and writes nothing."""
    start = time.monotonic()
    with _one_line_errors():
        bundle = _run_export(
            source, task, precision, store, name, eval_text, adapter, _named_folders(adapters), draft
        )
        _report(bundle, seconds=time.monotonic() - start, as_json=as_json)


def _named_folders(given: list[str] | None) -> list[tuple[str, Path]]:
    """Return names and folders of `NAME=DIR`."""
    named = []
    for text in given or ():
        name, sign, folder = text.partition("=")
        if not (name and sign and folder):
            raise typer.BadParameter(f"expected NAME=DIR, got {text!r}", param_hint="--adapters")
        named.append((name, Path(folder)))
    return named


def _run_export(
    source: str,
    task: str | None,
    precision: str,
    store: Path,
    name: str | None,
    eval_text: Path | None,
    adapter: Path | None,
    adapters: list[tuple[str, Path]],
    draft: str | None,
) -> Path:
    from rich.console import Console

    from aimass_exporters.export_progress import TerminalProgress
    from aimass_exporters.sources.source import resolve_source

    with TerminalProgress(Console(stderr=True)) as progress:
        resolve_source(
            source, progress
        )  # what cannot be found is said before PyTorch takes its seconds to start
        progress.stage("start PyTorch")
        export_model = _load_exporter()

        def export_at(precision: str, store: Path) -> Path:
            return export_model(
                source,
                task=task,
                precision=precision,
                store=store,
                name=name,
                eval_text=eval_text,
                adapter=adapter,
                adapters=adapters,
                progress=progress,
            )

        if draft is None:
            return export_at(precision, store)
        from aimass_exporters.self_draft import export_with_draft

        return export_with_draft(
            export_at, source, draft=draft, task=task, precision=precision, store=store, progress=progress
        )


def _load_exporter() -> Callable[..., Path]:
    """Import what takes seconds, with the libraries' own bars and warnings off."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from aimass_exporters.exporter import export_model

    return export_model


def _report(bundle: Path, *, seconds: float, as_json: bool) -> None:
    from aimass_serving.bundle import read_manifest

    manifest = read_manifest(bundle)
    if as_json:
        typer.echo(json.dumps(_export_object(bundle, manifest, seconds), ensure_ascii=False))
        return
    from rich.console import Console

    Console().print(_export_table(bundle, manifest, seconds))


def _export_object(bundle: Path, manifest: ModelManifest, seconds: float) -> dict[str, object]:
    from aimass_exporters.listing import (
        adapter_objects,
        bundle_bytes,
        measure_rows,
        precision_name,
        task_name,
    )

    return {
        "name": manifest.name,
        "version": manifest.version,
        "task": task_name(manifest),
        "precision": precision_name(manifest),
        "adapter": manifest.adapter or None,
        "folder": str(bundle),
        "size_bytes": bundle_bytes(manifest),
        "seconds": round(seconds, 1),
        "parity": measure_rows(manifest.parity),
        "adapters": adapter_objects(manifest),
    }


def _export_table(bundle: Path, manifest: ModelManifest, seconds: float) -> Table:
    from rich.table import Table

    from aimass_exporters.listing import bundle_bytes, precision_name

    size = f"{bundle_bytes(manifest) / 1e6:.1f} MB"
    title = f"{manifest.name}@{manifest.version}  {precision_name(manifest)}  {size}  {seconds:.0f} s"
    caption = f"{bundle}\nmeasured against {manifest.parity.reference}"
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for column in ("measure", "value", "bound", "samples"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    _add_measures(table, manifest.parity)
    for adapter in manifest.adapters:
        _add_measures(table, adapter.parity, subject=f"{adapter.name}: ")
    return table


def _add_measures(table: Table, parity: ParityRecord, *, subject: str = "") -> None:
    from aimass_exporters.listing import measure_rows

    for row in measure_rows(parity):
        sign = "≤" if row["comparison"] == "at_most" else "≥"
        name, bound = f"{subject}{row['name']}", f"{sign} {row['bound']:.6g}"
        table.add_row(name, f"{row['value']:.6g}", bound, str(row["num_samples"]))


def models(*, store: Store = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """List the models that can be exported by name, and those in the store."""
    from aimass_exporters.listing import catalogue_rows, stored_models

    with _one_line_errors():
        catalogue, stored = catalogue_rows(), stored_models(store)
    if as_json:
        typer.echo(
            json.dumps({"catalogue": catalogue, "store": [asdict(m) for m in stored]}, ensure_ascii=False)
        )
        return
    from rich.console import Console

    console = Console()
    console.print(_table("Catalogue", ["name", "task", "licence", "summary"], catalogue))
    rows = [
        {**asdict(m), "size": f"{m.size_bytes / 1e6:.1f} MB", "adapters": ", ".join(m.adapters)}
        for m in stored
    ]
    columns = ["name", "version", "task", "precision", "size", "adapters", "licence", "problem"]
    console.print(_table(f"Store {store}", columns, rows) if rows else f"Store {store}: no models yet")


def _table(title: str, columns: list[str], rows: list[dict[str, str]]) -> Table:
    from rich.table import Table

    shown = [column for column in columns if any(row[column] for row in rows)]
    table = Table(*shown, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(str(row[column]) for column in shown))
    return table


def export_estimator_file(
    file: Annotated[Path, typer.Argument(help="A fitted scikit-learn estimator, written by skops.io.dump.")],
    *,
    rows: Annotated[
        Path, typer.Option(help="CSV file with a header: the rows on which graph and estimator must agree.")
    ],
    target: Annotated[
        str | None, typer.Option(help="Column of the CSV file with the right answers; not a feature.")
    ] = None,
    trust: Annotated[
        list[str] | None,
        typer.Option(help="A type in the file that you know to be harmless; may be repeated."),
    ] = None,
    store: Store = DEFAULT_STORE,
    name: Annotated[
        str | None, typer.Option(help="Name to serve it under; taken from FILE when omitted.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export a scikit-learn estimator into a verified bundle."""
    start = time.monotonic()
    with _one_line_errors():
        from aimass_exporters.tables.estimator_file import export_file

        bundle = export_file(file, rows=rows, target=target, trusted=trust or (), store=store, name=name)
        _report(bundle, seconds=time.monotonic() - start, as_json=as_json)


def convert(
    folder: Annotated[Path, typer.Argument(help="Folder with pickled weights (*.bin, *.pt, *.pth, *.ckpt).")],
) -> None:
    """Convert pickled weights to safetensors, refusing anything in them that is not a tensor."""
    with _one_line_errors():
        from aimass_exporters.sources.checkpoint import convert_checkpoint

        typer.echo(f"wrote {convert_checkpoint(folder)}")
