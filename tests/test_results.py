"""The README's tables are those of the committed result files, and nothing else is in them."""

import json

from benchmarks.tables import RESULTS, ROOT, condense, step_table, with_tables


def test_readme_tables_are_generated():
    text = (ROOT / "README.md").read_text()
    assert with_tables(text) == text, "run: python -m benchmarks.tables readme"


def test_results_name_command_and_hardware_and_no_machine():
    for path in RESULTS.rglob("*.json"):
        result = json.loads(path.read_text())
        assert result["command"], path
        assert "node" not in result and "machine_info" not in result, path


def row(name: str, median: float, dtype: str) -> dict[str, object]:
    stats = {"min": median, "median": median, "max": median, "rounds": 5, "mean": 0}
    extra = {"row": name, "dtype": dtype, "peak_memory_mib": 10.0}
    return {"name": name, "group": "sjepa step", "stats": stats, "extra_info": extra}


def test_ratios_are_reference_over_ours():
    raw = {
        "machine_info": {"node": "secret"},
        "datetime": "2026-01-02T03:04:05",
        "benchmarks": [
            row("reference_A", 2.0, "float32"),
            row("ours_eager", 0.5, "bfloat16"),
        ],
    }
    result = condense(raw)
    assert "secret" not in json.dumps(result) and result["date"] == "2026-01-02"
    lines = step_table(result).splitlines()
    assert lines[2].split("|")[2:4] == [" 2000 ", " 1.00x "]
    assert lines[3].split("|")[1:4] == [" ours eager, bfloat16 ", " 500 ", " 4.00x "]
