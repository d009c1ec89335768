"""The recipes of CONTRIBUTING.md: their files exist, are as few as it says, and none is silent."""

from __future__ import annotations

import ast
import re
from functools import partial
from pathlib import Path

import pytest

from sjepa_fast.build import OBJECTIVES
from sjepa_fast.data.readers import READERS
from sjepa_fast.evaluation.protocols import PROTOCOLS
from tests.kernels.op_case import all_cases

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
TARGETS = {"An op": 8, "An objective": 6, "A reader": 4, "A protocol": 4}
TOPS = ("kernels", "sjepa_fast", "csrc", "benchmarks", "docs", "tests", "examples")
# Their time is in the row of another op; the average over a center is one line of PyTorch.
TIMED_WITH = {
    "Augmentation": "augment_clips",
    "SkeletonTables": "augment_clips",
    "adamw_ema_": "FusedAdamWEma",
    "accumulate_normalized_": "ContextualizedTargets",
    "attention": "self_attention",
    "crop_resize": "augment_clips",
    "ema_update_": "EmaPlan",
    "philox4x32": "random_mask",
    "uniform": "random_mask",
    "update_center_": "centered_softmax_cross_entropy",
}


def paths(text: str) -> list[str]:
    """Return what stands in backticks and is a file or folder of the tree, patterns too."""
    named = [word.split("::")[0] for word in re.findall(r"`([^`\s]+)`", text)]
    inside = [word for word in named if word.split("/")[0] in TOPS]
    return inside + [word for word in named if "/" not in word and word.endswith(".md")]


def recipes() -> dict[str, tuple[int, str]]:
    """Return each recipe's own count and text, by its title."""
    part = TEXT.split("## Recipes\n")[1].split("\n## ")[0]
    found = re.findall(r"^### ([^:\n]+): (\d+) files\n(.*?)(?=^### |\Z)", part, re.M | re.S)
    return {title: (int(count), text) for title, count, text in found}


def steps(text: str) -> list[str]:
    """Return the numbered steps of a recipe, each with the lines that go on with it."""
    return re.findall(r"^\d+\. (.*(?:\n   .*)*)", text, re.M)


def test_every_named_file_exists() -> None:
    commands = {word for line in re.findall(r"^.*pytest .*$", TEXT, re.M) for word in line.split()}
    named = {*paths(TEXT), *(word.strip("`") for word in commands if word.startswith("tests/"))}
    assert len(named) > 40
    missing = [name for name in named if "<" not in name and not any(ROOT.glob(name))]
    assert missing == []


@pytest.mark.parametrize("title", TARGETS)
def test_recipe_has_its_count_of_files(title: str) -> None:
    count, text = recipes()[title]
    listed = steps(text)
    files = [paths(step)[0] for step in listed]
    assert len(files) == len(set(files)) == count <= TARGETS[title]
    assert [int(n) for n in re.findall(r"^(\d+)\. ", text, re.M)] == list(range(1, count + 1))
    for step, file in zip(listed, files, strict=True):
        assert step.startswith(f"`{file}`: ")
        # What is new has a finished example of the same form beside it.
        if "<" in file:
            form = re.escape(re.sub(r"<\w+>", "<>", file)).replace("<>", r"[\w]+")
            assert any(re.fullmatch(form, other) for other in paths(step)[1:]), step


def test_there_are_no_other_recipes() -> None:
    assert set(recipes()) == set(TARGETS)


def names_in(path: Path) -> set[str]:
    """Return every name that a file's code uses."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return names | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def test_every_op_is_timed() -> None:
    used = set().union(*map(names_in, (ROOT / "benchmarks").glob("bench_*.py")))
    ops = set(all_cases())
    assert {op for op in ops if TIMED_WITH.get(op, op) not in used} == set()
    assert set(TIMED_WITH) <= ops and not set(TIMED_WITH) & used - {"uniform"}


def opener(name: str) -> str:
    """Return the name of a reader's open function."""
    found = READERS[name]
    found = found.func if isinstance(found, partial) else found
    return found.__name__


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("tests/objectives", [f'"{kind}"' for kind in OBJECTIVES]),
        ("tests/data/readers", [opener(name) for name in READERS]),
        ("tests/evaluation", [f'"{name}"' for name in PROTOCOLS]),
    ],
)
def test_every_row_has_tests_of_its_own(folder: str, words: list[str]) -> None:
    text = "".join(file.read_text() for file in (ROOT / folder).rglob("test_*.py"))
    assert [word for word in words if word not in text] == []
