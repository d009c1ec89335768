"""Which cases of the interpreted kernels `make test` has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.kernels.conftest import FEW, ONE_IN, thinned


def cases(test: str, count: int) -> list[Any]:
    return [SimpleNamespace(nodeid=f"tests/test_x.py::{test}[{k}-float32]") for k in range(count)]


def test_a_part_of_many_cases_is_kept_and_all_of_few_in_their_order() -> None:
    few, many, single = cases("few", FEW), cases("many", 20 * FEW), cases("one", 1)
    mixed = [*many[:3], *few, *many[3:], *single]
    kept = thinned(mixed)
    assert [item for item in mixed if item in kept] == kept
    assert all(item in kept for item in [*few, *single])
    of_many = [item for item in many if item in kept]
    assert len(of_many) == len(kept) - FEW - 1
    assert 0.8 < ONE_IN * len(of_many) / len(many) < 1.2
