"""Every public op has its file in `ops/` with every part, a self-check and a row in the README."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

import sjepa_kernels
from sjepa_kernels.selfcheck.checks import CHECKS
from tests.kernels.op_case import FOLDER, Absent, OpCase, all_cases, file_of

ROOT = Path(__file__).parents[2]
CASES = all_cases()
NOT_OPS = {
    "BlockMask": "what block_mask returns",
    "EmaPlan": "called with ema_update_",
    "FusedAdamWEma": "calls what adamw_ema_ does; tested in test_adamw_optimizer.py",
    "TokenMask": "what the masks return",
    "block_size": "host arithmetic, tested in test_block_masks.py",
    "use": "tested in test_dispatch.py",
}
# They hold the parameters or the center of an op; tested in test_modules*.py.
MODULES = {n for n in sjepa_kernels.__all__ if hasattr(getattr(sjepa_kernels, n), "forward")}
OPS = sorted(set(sjepa_kernels.__all__) - MODULES - set(NOT_OPS))
CHECKED = {name.split()[0] for key in CHECKS for name in key.split(", ")}
TABLE = (ROOT / "kernels" / "README.md").read_text().split("## Ops\n")[1].split("\n\n")[0]
LISTED = {
    name for row in TABLE.splitlines() for name in re.findall(r"`(\w+)`", row.split(" | ")[0])
}


def lacking(name: str, case: OpCase | None) -> list[str]:
    """What is still to do for a public op, in words."""
    problems = [] if name in LISTED else ["name it in the table of kernels/README.md"]
    if ((case and case.checked_with) or name) not in CHECKED:
        problems.append("name it in CHECKS of sjepa_kernels/selfcheck/checks.py")
    if case is None:
        return [*problems, f"write {file_of(name).relative_to(ROOT)}"]
    if not case.tests or not all((FOLDER.parent / file).exists() for file in case.tests):
        problems.append("name the files of its tests")
    if set(case.spoils) != set(case.arguments()) or not all(case.spoils.values()):
        problems.append("spoil each of its arguments")
    for part in ("uses", "launches", "fuzz"):
        value = getattr(case, part)
        if not value or (isinstance(value, Absent) and len(value.because.split()) < 3):
            problems.append(f"give its {part}, or say why it has none")
    return problems


@pytest.mark.parametrize("name", OPS)
def test_no_step_of_adding_an_op_is_left_out(name: str) -> None:
    assert lacking(name, CASES.get(name)) == []


def test_every_file_is_of_one_public_op() -> None:
    assert set(CASES) <= set(OPS)
    assert sorted(FOLDER.glob("[!_]*.py")) == sorted(map(file_of, CASES))
    for name, case in CASES.items():
        assert getattr(sjepa_kernels, name) is case.op
        assert case.checked_with in {"", *OPS}


def test_every_launch_has_a_name_of_its_own() -> None:
    names = [n for c in CASES.values() if not isinstance(c.launches, Absent) for n in c.launches]
    assert len(names) == len(set(names))


def test_what_is_left_out_is_named() -> None:
    assert lacking("new_op", None) == [
        "name it in the table of kernels/README.md",
        "name it in CHECKS of sjepa_kernels/selfcheck/checks.py",
        "write tests/kernels/ops/new_op.py",
    ]
    whole = CASES["pack_tokens"]
    half = dataclasses.replace(
        whole, tests=["test_new_op.py"], spoils={}, uses=[], launches={}, fuzz=Absent("")
    )
    assert lacking("pack_tokens", half) == [
        "name the files of its tests",
        "spoil each of its arguments",
        *(f"give its {part}, or say why it has none" for part in ("uses", "launches", "fuzz")),
    ]
