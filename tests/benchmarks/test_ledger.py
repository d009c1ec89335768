"""The committed ledger of a step's costs is whole and agrees with itself; needs no null GPU."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sjepa_fast.config.presets import PRESETS
from tests.null_gpu import ledger

TABLE = ledger.load()
ROWS: dict[str, dict[str, Any]] = TABLE["rows"]
OURS = [case for case in ROWS if not case.startswith("reference")]


def test_table_has_the_cases_of_known_presets_one_a_line() -> None:
    assert sorted(ledger.cases()) == list(ROWS), ledger.UPDATE
    assert {case.split()[0] for case in OURS} <= set(PRESETS)
    assert len(ledger.PATH.read_text().splitlines()) == len(ROWS) + 5
    assert json.loads(ledger.PATH.read_text()) == TABLE


@pytest.mark.parametrize("case", ROWS)
def test_parts_add_up(case: str) -> None:
    row = ROWS[case]
    assert sum(row["launches"].values()) == row["nodes"]
    assert sum(row["gb_by_pass"].values()) == pytest.approx(row["gb"], abs=0.01)
    assert sum(row["gb_by_class"].values()) == pytest.approx(row["gb"], abs=0.01)
    for name, sized in (("gemm", "gemms"), ("attention", "attentions")):
        total = sum(size[-1] for size in row[sized])
        assert total == pytest.approx(row["gb_by_class"][name], abs=0.01) or "triton" in case


@pytest.mark.parametrize("case", OURS)
def test_a_captured_step_is_two_launches_and_waits_for_nothing(case: str) -> None:
    row = ROWS[case]
    assert row["replay"] == {"copy": 1, "graph": 1}
    assert (row["syncs"], row["host_bytes"]) == (0, 0)
    assert row["mallocs"] <= 2
    assert sum(size[4] for size in row["gemms"]) == row["launches"]["gemm"]


@pytest.mark.parametrize("group", ledger.OURS, ids=" ".join)
def test_ways_of_compiling(group: tuple[str, str]) -> None:
    """The default compiles all blocks, none, or those that gain by it."""
    default, off, on = (ROWS[" ".join([*group, way])] for way in ledger.WAYS)
    assert off["launches"]["inductor"] == 0 < on["launches"]["inductor"]
    assert default["launches"]["inductor"] or default == off


@pytest.mark.parametrize("case", ROWS)
def test_counted_products_are_those_of_the_formula(case: str) -> None:
    """The count of `--profile`, from the configuration alone, has two products for a backward."""
    row = ROWS[case]
    sizes = row["gemms"] + row["gemms_of_ours"]
    products = sum(2 * batch * m * n * k * count for batch, m, n, k, count, _ in sizes)
    attention = sum(
        (8 if backward else 4) * heads * queries * keys * width * count
        for heads, queries, keys, width, backward, count, _ in row["attentions"]
    )
    assert products + attention == pytest.approx(1e12 * row["tflop"], rel=0.01)


ROW = {
    "nodes": 900,
    "gb": 100.0,
    "gb_by_pass": {"teacher": 30.0, "data": 0.05},
    "peak_gb": 7.0,
    "syncs": 0,
    "mallocs": 0,
    "replay": {"copy": 1, "graph": 1},
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nodes": 910}, "nodes 900 -> 910"),
        ({"gb": 101.0}, "gb 100.0 -> 101.0"),
        ({"gb_by_pass": {"teacher": 31.0}}, "gb of teacher 30.0 -> 31.0"),
        ({"gb_by_pass": {"new": 1.0}}, "gb of new 0.0 -> 1.0"),
        ({"peak_gb": 7.2}, "peak_gb 7.0 -> 7.2"),
        ({"syncs": 1}, "syncs 0 -> 1"),
        ({"mallocs": 3}, "mallocs 0 -> 3"),
        ({"replay": {"graph": 2}}, "replay {'copy': 1, 'graph': 1} -> {'graph': 2}"),
        ({"nodes": 905, "gb": 90.0, "gb_by_pass": {"data": 0.06}, "peak_gb": 1.0}, None),
    ],
    ids=str,
)
def test_what_counts_as_worse(change: dict[str, Any], words: str | None) -> None:
    assert ledger.worse("a", ROW | change, ROW) == ([f"a: {words}"] if words else [])
    assert ledger.worse("new", ROW, None) == ["new: not in the table"]


def test_table_can_be_read_by_people() -> None:
    text = ledger.show()
    assert all(case in text for case in ROWS)
