"""Traces a PyTorch module into an ONNX file, with names for what goes in and out. Knows no model."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aimass_exporters.errors import UnsupportedModel

OPSET = 23


@dataclass(frozen=True, slots=True)
class Port:
    """An input of a graph: example value, and a name for each axis that varies."""

    name: str
    example: torch.Tensor
    axes: dict[int, Any]


@dataclass(frozen=True, slots=True)
class PortList:
    """A run of inputs that the module takes as one list."""

    ports: list[Port]


def trace(
    module: torch.nn.Module, inputs: list[Port | PortList], outputs: list[str], path: Path, *, family: str
) -> Path:
    """Write the graph of `module` to `path` and its weights beside it; return `path`.

    Raises `UnsupportedModel` when PyTorch cannot trace it.
    """
    try:
        with torch.no_grad(), quiet_tracing():
            program = torch.onnx.export(
                module.eval(),
                tuple(_each(item, lambda port: port.example) for item in inputs),
                dynamo=True,
                opset_version=OPSET,
                input_names=[port.name for item in inputs for port in _ports(item)],
                output_names=outputs,
                dynamic_shapes=tuple(_each(item, lambda port: port.axes or None) for item in inputs),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        because = f"PyTorch could not trace it: {_first_line(error)}"
        raise UnsupportedModel(family, because=because) from error
    assert program is not None
    program.save(str(path), external_data=True)
    return path


def _ports(item: Port | PortList) -> list[Port]:
    return [item] if isinstance(item, Port) else item.ports


def _each(item: Port | PortList, read: Any) -> Any:
    return read(item) if isinstance(item, Port) else [read(port) for port in item.ports]


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[0] if lines else type(cause).__name__


@contextmanager
def quiet_tracing() -> Iterator[None]:
    """Keep the tools' chatter off the terminal, where a progress bar lives. Their errors still show."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
