"""Loads a Hugging Face folder with transformers: float32, no code of the folder's, no weight made up.

Must not know what the model is for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from aimass_exporters.errors import InvalidCheckpoint


def load_pretrained(
    loader: Any,
    folder: Path,
    *,
    kind: str = "",
    weights: str = "weights",
    may_lack: Callable[[str], bool] = lambda _name: False,
    attention: str | None = "eager",
) -> PreTrainedModel:
    """Return the folder's model as `loader`, a class of transformers, has it, in evaluation mode.

    `kind` and `weights` are how errors call the model and what it lacks; `may_lack` tells which weights may
    be missing, by name. `attention` is transformers' name of an implementation; None takes the model's own.
    Raises `InvalidCheckpoint`.
    """
    try:
        model, report = loader.from_pretrained(
            folder,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            attn_implementation=attention,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        loaded = f"transformers cannot load it{kind and f' as {kind}'}: {error}"
        raise InvalidCheckpoint(folder, detail=loaded) from error
    if missing := sorted(name for name in report["missing_keys"] if not may_lack(name)):
        detail = f"{len(missing)} {weights} are missing: {', '.join(missing[:5])}"
        raise InvalidCheckpoint(folder, detail=detail)
    return model.eval()  # type: ignore[no-any-return]  # from_pretrained is untyped
