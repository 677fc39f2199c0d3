"""What can go wrong while a model is exported. Every error names what was expected, what was got, and what
to do.

AimassError └── ExportError
    ├── UnknownSource           not a folder, a file, a hub id or a catalogue name
    ├── SourceUnavailable       a package or a hub repository could not be fetched
    ├── InvalidCheckpoint       files missing or not what they should be
    ├── PickleRefused           weights that can run code when they are loaded
    ├── UntrustedEstimator      an estimator's file names types that could run code when it is loaded
    ├── UnsupportedModel        an architecture, or a property of one, that the export does not cover
    ├── InvalidExportOption     an option outside its range
    ├── QuantizationIncomplete  a matrix product was left unquantised
    └── ParityFailed            the graph does not agree with the model it was made from
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from aimass_serving.errors import AimassError, shown


class ExportError(AimassError):
    """Root of the errors of an export. Nothing has been written when one is raised."""

    reason = "EXPORT_FAILED"


class UnknownSource(ExportError):
    """The source is none of the things a model can come from."""

    def __init__(self, source: str, *, catalogue: Iterable[str]) -> None:
        super().__init__(
            f"source {shown(source)} is not a folder, a .gguf file, a hub id (owner/name) or a catalogue name"
            f"; the catalogue has: {', '.join(sorted(catalogue))}"
        )


class SourceUnavailable(ExportError):
    """A package or a repository could not be fetched."""

    def __init__(self, source: str, *, detail: str, advice: str) -> None:
        super().__init__(f"could not fetch {source}: {detail}; {advice}")


class InvalidCheckpoint(ExportError):
    """A checkpoint lacks files, or they are not what they should be."""

    def __init__(self, source: Path | str, *, detail: str) -> None:
        super().__init__(f"checkpoint {source}: {detail}")


class PickleRefused(ExportError):
    """The weights are pickled: loading them can run code."""

    def __init__(self, source: Path | str, *, files: Sequence[str]) -> None:
        super().__init__(
            f"{source} holds pickled weights only ({', '.join(files)}), and a pickle can run code when"
            " it is loaded; to read nothing but tensors from it, convert it first:"
            f" aimass convert-checkpoint {shown(str(source))}"
        )


class UntrustedEstimator(ExportError):
    """The file of an estimator names types that are not known to be harmless."""

    def __init__(self, file: Path, *, types: Sequence[str]) -> None:
        super().__init__(
            f"{file} names types that could run code when they are loaded: {', '.join(types)};"
            " if you know where they come from, name each with --trust"
        )


class UnsupportedModel(ExportError):
    """An architecture, or a property of one, that the export does not cover."""

    def __init__(self, family: str, *, because: str) -> None:
        super().__init__(f"models of family {family!r} are not supported, because {because}")


class InvalidExportOption(ExportError):
    """An option of the export is outside its range."""

    def __init__(self, option: str, *, expected: str, got: object) -> None:
        super().__init__(f"{option}: expected {expected}, got {shown(got)}")


class QuantizationIncomplete(ExportError):
    """Matrix products were left unquantised."""

    def __init__(self, *, left: Sequence[str]) -> None:
        names = ", ".join(left[:5]) + (", ..." if len(left) > 5 else "")
        super().__init__(f"{len(left)} matrix products were left unquantised: {names}")


class ParityFailed(ExportError):
    """The exported graph does not agree with the model it was made from."""

    def __init__(self, *, failures: Sequence[str]) -> None:
        super().__init__(
            f"the exported graph does not agree with its model: {'; '.join(failures)}; nothing was written"
        )
