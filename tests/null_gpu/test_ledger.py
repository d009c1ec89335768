"""A step costs no more than the ledger, and launches no kernel that is not compiled ahead.

Each case is counted in a process of its own; see `ledger.py`.
"""

from __future__ import annotations

import pytest
import torch

from tests.kernels import launches
from tests.null_gpu import ledger


@pytest.mark.slow
@pytest.mark.parametrize("group", ledger.GROUPS, ids=" ".join)
def test_costs_no_more_than_the_ledger(group: tuple[str, ...]) -> None:
    table = ledger.load()
    if torch.__version__ != table["torch"]:
        pytest.skip(f"the ledger is of torch {table['torch']}, this is {torch.__version__}")
    rows, variants = ledger.run_group(*group)
    problems = [
        problem
        for case, row in rows.items()
        for problem in ledger.worse(case, row, table["rows"].get(case))
    ]
    known = {variant.key for variant in launches.load()}
    seen = {variant.key for variant in (launches.Variant(**x) for x in variants)}
    problems += [f"launched, but not compiled ahead: {key}" for key in sorted(seen - known)]
    assert not problems, "\n".join([*problems, f"if this is meant: {ledger.UPDATE}"])
