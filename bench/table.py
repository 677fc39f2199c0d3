"""Tables and bars that every report is made of. Measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

OURS_COLOUR, PEER_COLOUR = "#c2410c", "#94a3b8"
OUR_PREFIX = "aimass"
"""Names of our contenders begin so; their bars have a colour of their own."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a heading; the first column names them."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]

    def markdown(self) -> list[str]:
        """Return the lines of the table."""
        return [
            f"## {self.heading}",
            "",
            "| " + " | ".join(self.columns) + " |",
            "|---" * len(self.columns) + "|",
            *("| " + " | ".join(map(shown, row)) + " |" for row in self.rows),
            "",
        ]

    def record(self) -> list[dict[str, str | float]]:
        """Return the rows for a JSON record, each by column."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def shown(value: str | float) -> str:
    """Return a cell as a reader wants it: three figures that mean something."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.4g}" if abs(value) < 1 else f"{value:.2f}"


@dataclass(frozen=True, slots=True)
class Panel:
    """One group of bars of a picture."""

    heading: str
    unit: str
    bars: Mapping[str, float]


def draw(title: str, panels: Sequence[Panel], file: Path) -> None:
    """Draw the panels side by side, one bar a name."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    height = 1.2 + 0.34 * max(len(panel.bars) for panel in panels)
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), height), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        names, values = list(panel.bars), list(panel.bars.values())
        colours = [OURS_COLOUR if name.startswith(OUR_PREFIX) else PEER_COLOUR for name in names]
        bars = axis.barh(names, values, color=colours)
        axis.bar_label(bars, labels=[shown(float(value)) for value in values], padding=3, fontsize=8)
        axis.set(title=panel.heading, xlabel=panel.unit, xlim=(0, 1.22 * max(*values, 1e-9)))
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
        if axis is not axes[0][0] and names == list(panels[0].bars):
            axis.set_yticklabels([])
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(file, dpi=120, metadata={"Software": ""})
    plt.close(figure)
