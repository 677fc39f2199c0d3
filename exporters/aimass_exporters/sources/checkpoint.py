"""Converts pickled PyTorch weights to safetensors, on the user's explicit command.

Loads with `weights_only=True`: an unpickler that builds tensors and containers, and refuses everything else.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from aimass_exporters.errors import InvalidCheckpoint

OUTPUT_FILE = "model.safetensors"
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# What trainers leave beside the weights.
_NOT_WEIGHTS = frozenset(
    {"training_args.bin", "optimizer.pt", "scheduler.pt", "optimizer.bin", "rng_state.pth"}
)
_NESTED_UNDER = ("state_dict", "model_state_dict", "model_state", "model")


def weight_files(folder: Path) -> list[Path]:
    """Return the pickled weight files of a folder."""
    found = {p for pattern in PICKLE_PATTERNS for p in folder.glob(pattern)}
    return sorted(p for p in found if p.name not in _NOT_WEIGHTS)


def convert_checkpoint(folder: Path) -> Path:
    """Write the folder's pickled weights as `model.safetensors` beside them; return that file.

    Raises `InvalidCheckpoint` when there are none, when they hold more than tensors, or when safetensors
    exist.
    """
    if not folder.is_dir():
        raise InvalidCheckpoint(folder, detail="expected a folder")
    if existing := sorted(p.name for p in folder.glob("*.safetensors")):
        raise InvalidCheckpoint(folder, detail=f"it has safetensors already: {', '.join(existing)}")
    files = weight_files(folder)
    if not files:
        raise InvalidCheckpoint(
            folder, detail=f"expected weights in {', '.join(PICKLE_PATTERNS)}, found none"
        )
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        for name, tensor in _tensors(file):
            if name in tensors:
                raise InvalidCheckpoint(
                    folder, detail=f"{name} is in more than one file; keep one set of weights"
                )
            tensors[name] = tensor.detach().clone().contiguous()  # safetensors holds no shared memory
    target, unfinished = folder / OUTPUT_FILE, folder / f".{OUTPUT_FILE}"
    save_file(tensors, unfinished, metadata={"format": "pt"})
    return unfinished.rename(target)


def _tensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        detail = f"{file.name} holds something else than tensors, or is damaged; it was not loaded"
        raise InvalidCheckpoint(file.parent, detail=detail) from error
    for name, value in _state(loaded, file).items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise InvalidCheckpoint(file.parent, detail=f"{file.name}: {name!r} is no tensor")
        yield name, value


def _state(loaded: object, file: Path) -> Mapping[Any, Any]:
    """Return the weights of a state dict, also of one that a trainer nested under a usual name."""
    if not isinstance(loaded, Mapping):
        raise InvalidCheckpoint(file.parent, detail=f"{file.name} holds no dictionary of tensors")
    nested = [loaded[key] for key in _NESTED_UNDER if isinstance(loaded.get(key), Mapping)]
    return nested[0] if nested else loaded
