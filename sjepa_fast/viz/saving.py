# SPDX-License-Identifier: Apache-2.0
"""Pictures beside the scores of a command, which goes on without where they cannot be drawn.

The drawing is imported here when it is needed: matplotlib is in the extra viz.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sjepa_fast.extras import DRAWING, how_to_install

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_pictures(folder: Path, drawn: Mapping[str, Callable[[], Figure]]) -> str:
    """Draw pictures and write them into a folder, by the names of their files.

    Returns a line that says where they are, or how to install what draws them.
    """
    if command := how_to_install(*DRAWING):
        return f"no pictures: {command}"
    from sjepa_fast.viz.figure import save_figure

    for file, draw in drawn.items():
        save_figure(draw(), folder / file)
    return "pictures: " + ", ".join(str(folder / file) for file in drawn)
