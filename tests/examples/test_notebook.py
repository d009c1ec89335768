"""The notebook runs from top to bottom, and what it shows is what comes out.

`python -m tests.examples.test_notebook --update` runs it and writes its outputs anew.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import sys
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib import pyplot

from sjepa_fast.runtime.files import write_text
from tests.test_house import ROOT

NOTEBOOK = ROOT / "examples" / "tour.ipynb"
Cell = dict[str, Any]


def outputs_of(source: str, names: dict[str, Any]) -> list[Cell]:
    """Run a cell and return what it printed and drew, as a notebook keeps it."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(source, names)
    found: list[Cell] = []
    if text := printed.getvalue():
        lines = text.splitlines(keepends=True)
        found.append({"name": "stdout", "output_type": "stream", "text": lines})
    for number in pyplot.get_fignums():
        raw = io.BytesIO()
        pyplot.figure(number).savefig(raw, format="png", dpi=80, metadata={"Software": None})
        picture = base64.b64encode(raw.getvalue()).decode()
        data = {"image/png": picture, "text/plain": ["<Figure>"]}
        found.append({"data": data, "metadata": {}, "output_type": "display_data"})
    pyplot.close("all")
    return found


def run() -> Cell:
    """Run all cells in one namespace, and return the notebook with their outputs."""
    notebook: Cell = json.loads(NOTEBOOK.read_text())
    names: dict[str, Any] = {"__name__": "__main__"}
    with mpl.rc_context({"backend": "Agg"}):
        code = (cell for cell in notebook["cells"] if cell["cell_type"] == "code")
        for count, cell in enumerate(code, 1):
            cell["execution_count"] = count
            cell["outputs"] = outputs_of("".join(cell["source"]), names)
    return notebook


def texts(notebook: Cell) -> list[list[str]]:
    """Return what each cell of code prints."""
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [[line for out in cell["outputs"] for line in out.get("text", [])] for cell in code]


@pytest.mark.slow
def test_the_notebook_shows_what_comes_out() -> None:
    shown, now = json.loads(NOTEBOOK.read_text()), run()
    assert len(texts(now)) >= 4 and any(texts(now))
    assert texts(shown) == texts(now), "run: python -m tests.examples.test_notebook --update"
    kinds = [[out["output_type"] for out in cell.get("outputs", [])] for cell in now["cells"]]
    assert kinds == [[o["output_type"] for o in c.get("outputs", [])] for c in shown["cells"]]
    assert sum(kind.count("display_data") for kind in kinds) >= 2
    assert NOTEBOOK.stat().st_size < 400_000


if __name__ == "__main__" and sys.argv[1:] == ["--update"]:
    write_text(NOTEBOOK, json.dumps(run(), indent=1) + "\n")
