"""How scripts learn that a command is ready: one line of JSON on standard output, or in a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Announcement:
    """Where to say it."""

    to_stdout: bool = False
    """Print the line on standard output."""
    file: Path | None = None
    """Write the line to this file, which appears whole: whoever waits for it never reads half of it."""

    def withdraw(self) -> None:
        """Remove what an earlier run said: to be called before the start."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)

    def make(self, facts: Mapping[str, Any]) -> None:
        """Say it."""
        line = json.dumps(facts) + "\n"
        if self.file is not None:
            draft = self.file.with_name(self.file.name + ".draft")
            draft.write_text(line)
            draft.replace(self.file)
        if self.to_stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
