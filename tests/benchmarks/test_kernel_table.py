"""The measured ratios in kernels/README.md are those of the committed result files."""

import copy
import json
from pathlib import Path

import pytest

from benchmarks import kernel_table
from benchmarks.tables import condense

RESULT = {
    "date": "2026-01-02",
    "rows": [
        {
            "group": "loss",
            "params": {"variant": variant, "shape": [64, 8]},
            "median": median,
            "device": "2 threads",
            "torch": "2.13.0",
            "GB/s": 3.0,
        }
        for variant, median in (("eager", 0.004), ("ours", 0.002), ("compiled", 0.001))
    ],
}


def test_readme_is_generated() -> None:
    text = kernel_table.README.read_text()
    assert text.count(kernel_table.BEGIN) == text.count(kernel_table.END) == 1
    assert kernel_table.with_measured(text) == text, "run: python -m benchmarks.kernel_table"


def test_ratios_are_theirs_over_ours_also_where_we_lose() -> None:
    lines = kernel_table.table(RESULT).splitlines()
    assert lines[2:] == ["| loss, 64 x 8 | 2.00 | 3.0 | eager 2.00x, compiled 0.50x |"]


def test_each_of_our_variants_has_a_line_and_a_group_without_ours_has_none() -> None:
    result = copy.deepcopy(RESULT)
    result["rows"][2]["params"]["variant"] = "ours packed"
    lines = kernel_table.table(result).splitlines()[2:]
    assert lines == [
        "| loss, 64 x 8 | 2.00 | 3.0 | eager 2.00x |",
        "| loss, 64 x 8: packed | 1.00 | 3.0 | eager 4.00x |",
    ]
    del result["rows"][1:]
    assert len(kernel_table.table(result).splitlines()) == 2


@pytest.mark.parametrize("machines", [[], ["cpu-2-cores"], ["cpu-2-cores", "gpu-x"]], ids=len)
def test_machines_that_were_not_measured_are_no_error(
    machines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_table, "RESULTS", tmp_path)
    monkeypatch.setattr(kernel_table, "ROOT", tmp_path)
    for machine in machines:
        (tmp_path / machine).mkdir()
        (tmp_path / machine / "kernels.json").write_text(json.dumps(RESULT))
    text = kernel_table.measured()
    assert text.count("| loss, 64 x 8 |") == len(machines)
    assert ("single ops not yet" in text) == ("gpu-x" not in machines)


def test_condensing_keeps_the_parameters() -> None:
    stats = {"min": 1, "median": 1, "max": 1, "rounds": 5}
    raw = {"name": "n", "group": "g", "stats": stats, "extra_info": {}, "params": {"variant": "a"}}
    rows = condense({"datetime": "2026-01-02T03:04:05", "benchmarks": [raw]})["rows"]
    assert rows[0]["params"] == {"variant": "a"}
