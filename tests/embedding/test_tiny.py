"""The model that comes with the package, and the face of `import sjepa_fast`."""

from __future__ import annotations

import doctest
import importlib
import re
from itertools import product

import pytest

import sjepa_fast
from sjepa_fast.embedding.loading import TINY
from tests.tiny import ROOT, run_python

MOST_BYTES = 10**6


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sjepa_fast, sys; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert run_python("-c", code).stdout == "False False\n"


def test_the_public_names_are_there_and_no_others() -> None:
    assert set(sjepa_fast.__all__) <= set(dir(sjepa_fast))
    assert sjepa_fast.load is importlib.import_module("sjepa_fast.embedding.loading").load
    assert sjepa_fast.Model.__name__ == "Model"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        sjepa_fast.nothing  # noqa: B018


@pytest.mark.parametrize("module", ["model", "loading"])
def test_examples_in_docstrings_run(module: str) -> None:
    tested = doctest.testmod(importlib.import_module(f"sjepa_fast.embedding.{module}"))
    assert tested.attempted > 0 and tested.failed == 0


def test_the_tiny_model_is_small_and_says_what_it_is() -> None:
    assert sum(file.stat().st_size for file in TINY.iterdir()) <= MOST_BYTES
    content = sjepa_fast.load("tiny", device="cpu").content
    assert content.trained_on["store"] == "ui_prmd" and content.dtype == "float32"
    encoders = {result["encoder"] for result in content.results}
    assert encoders == {"target", "random", "raw"}, "the card has the baselines"


def test_the_documented_scores_are_those_of_the_card() -> None:
    found: dict[str, list[str]] = {}
    for line in (ROOT / "docs/embedding.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and re.fullmatch(r"[0-9.]+", cells[1]):
            found[cells[0]] = cells[1:]
    scores: dict[str, list[str]] = {}
    results = sjepa_fast.load("tiny", device="cpu").content.results
    for data, protocol in product(("ui_prmd", "nucla"), ("knn", "linear")):
        for result in results:
            if (result["store"], result["protocol"]) == (data, protocol):
                name = {"raw": "raw coordinates", "random": "random encoder (own init)"}
                pool = f", {result['pool']}-pooled" if result["pool"] else ""
                row = name.get(result["encoder"], "`tiny`") + pool
                figure = next(v for k, v in result["figures"].items() if k.startswith("top1"))
                scores.setdefault(row, []).append(f"{figure:.1f}")
    assert found == scores and len(found) == 5
