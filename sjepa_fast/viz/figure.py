"""Makes figures and saves them atomically."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sjepa_fast.names import printable
from sjepa_fast.runtime.files import new_file


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of the given size in inches, drawn without a display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plotted(name: str, longest: int = 40) -> str:
    """Return a name as text of a picture: short, printable, and no formula where it has dollars."""
    shown = printable(name[: longest + 1])
    shown = shown if len(shown) <= longest else f"{shown[:longest]}..."
    return shown.replace("$", r"\$")


def save_figure(figure: Figure, out: Path) -> None:
    """Write the figure as PNG, atomically."""
    with new_file(out) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
