"""Where fetched packages and cached exports live on this machine; all of it can be deleted at any time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return aimass's folder among the user's caches: in `XDG_CACHE_HOME`, else in `~/.cache`."""
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aimass"
