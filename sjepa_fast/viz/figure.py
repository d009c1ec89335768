# SPDX-License-Identifier: Apache-2.0
"""Makes still and moving figures, and saves them atomically in the format of the file's ending."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from sjepa_fast.names import printable
from sjepa_fast.runtime.files import new_file
from sjepa_fast.viz.page import page

STILL = (".png", ".svg", ".pdf")
MOVING = (".gif", ".html")
# Letters stay letters in PDF, which publishers ask for, and equal figures are equal files.
_SETTINGS: Any = {"pdf.fonttype": 42, "svg.hashsalt": "sjepa_fast"}
_NO_DATE: dict[str, dict[str, None]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


@dataclass(frozen=True)
class Movie:
    """A figure that shows one frame of several at a time."""

    figure: Figure
    frames: int
    show: Callable[[int], None]
    """Changes the figure to a frame, counted from 0."""
    rate: float = 15.0
    """Frames per second."""


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


def save_figure(picture: Figure | Movie, out: Path) -> None:
    """Write a figure as PNG, SVG or PDF, or a movie as GIF or HTML, atomically."""
    with new_file(out) as temporary:
        write_figure(picture, temporary, out.suffix)


def write_figure(picture: Figure | Movie, path: Path, ending: str) -> None:
    """Write a figure (`STILL` endings) or a movie (`MOVING`) to a file that may have any name."""
    with rc_context(_SETTINGS):
        if isinstance(picture, Figure):
            picture.savefig(path, format=ending[1:], dpi=120, metadata=_NO_DATE.get(ending, {}))
        elif ending == ".gif":
            first, *others = [Image.open(frame) for frame in _frames(picture, dpi=80)]
            pause = round(1000 / picture.rate)
            first.save(path, "GIF", save_all=True, append_images=others, duration=pause, loop=0)
        else:
            frames = [frame.getvalue() for frame in _frames(picture, dpi=100)]
            path.write_text(page(frames, picture.rate), encoding="utf-8")


def _frames(movie: Movie, dpi: int) -> Iterator[io.BytesIO]:
    """Yield the frames of a movie as PNG."""
    for frame in range(movie.frames):
        movie.show(frame)
        if frame == 0:
            # The places of all parts, found once: they would move with the frames, and take time.
            movie.figure.draw_without_rendering()
            movie.figure.set_layout_engine("none")
        buffer = io.BytesIO()
        movie.figure.savefig(buffer, format="png", dpi=dpi)
        yield buffer
