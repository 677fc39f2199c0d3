"""A report of tables that is no contest: loads, accuracies. Measures nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.machine import Machine
from bench.report import provenance
from bench.table import Panel, Table, draw


@dataclass(frozen=True, slots=True)
class Study:
    """Everything such a report needs."""

    name: str
    title: str
    command: str
    machine: Machine
    settings: Mapping[str, Any]
    tables: Sequence[Table]
    panels: Sequence[Panel]
    remarks: Sequence[str] = ()

    def markdown(self) -> str:
        """Return the report as Markdown."""
        lines = [
            f"# {self.title}",
            "",
            *(line for table in self.tables for line in table.markdown()),
            *(f"- {remark}" for remark in self.remarks),
            *provenance(self.command, self.machine, self.settings),
        ]
        return "\n".join(lines)

    def write(self, folder: Path) -> None:
        """Write `<name>.json`, `.md` and `.png` into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.json").write_text(json.dumps(self._record(), indent=1) + "\n")
        (folder / f"{self.name}.md").write_text(self.markdown())
        draw(self.title, self.panels, folder / f"{self.name}.png")

    def _record(self) -> dict[str, Any]:
        return {
            "command": self.command,
            "machine": asdict(self.machine),
            "settings": dict(self.settings),
            "tables": {table.heading: table.record() for table in self.tables},
            "remarks": list(self.remarks),
        }
