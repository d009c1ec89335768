"""The README's tables are those of the committed result files, and nothing else is in them."""

import json
from pathlib import Path

from benchmarks.tables import (
    RESULTS,
    ROOT,
    cold_start_line,
    condense,
    data_table,
    gpu_tables,
    memory_table,
    step_table,
    with_tables,
)


def test_readme_tables_are_generated() -> None:
    text = (ROOT / "README.md").read_text()
    assert with_tables(text) == text, "run: python -m benchmarks.tables readme"


def test_results_name_command_and_hardware_and_no_machine() -> None:
    for path in RESULTS.rglob("*.json"):
        result = json.loads(path.read_text())
        assert result["command"], path
        assert "node" not in result and "machine_info" not in result, path


def row(name: str, median: float, dtype: str) -> dict[str, object]:
    stats = {"min": median, "median": median, "max": median, "rounds": 5, "mean": 0}
    extra = {"row": name, "dtype": dtype, "peak_memory_mib": 10.0}
    return {"name": name, "group": "sjepa step", "stats": stats, "extra_info": extra}


def test_ratios_are_reference_over_ours() -> None:
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


def test_a_gpu_row_waits_until_a_report_is_there(tmp_path: Path) -> None:
    assert gpu_tables(tmp_path).count("awaiting a run") == 1
    (tmp_path / "gpu-toy").mkdir()
    step = {"row": "ours", "ms": 40.0, "ms_min": 39.0, "clips/s": 3200.0, "TFLOP/s": 250.0}
    report = {"device": "Toy", "torch": "2.11", "sections": {"steps": {"rows": [step]}}}
    (tmp_path / "gpu-toy" / "report.json").write_text(json.dumps(report))
    text = gpu_tables(tmp_path)
    assert "awaiting" not in text and "On Toy, torch 2.11" in text and "| ours | 40.00 |" in text


def test_smaller_tables_are_ratios_to_the_reference() -> None:
    data = [{"row": "feeder", "median": 0.5, "clips": 128}, {"row": "resident", "median": 0.04}]
    data[1]["clips"] = 128
    text = data_table({"rows": data})
    assert "feeder 256," in text and "clips 3200 (12.5x)" in text
    memory = [
        {"row": "ours", "peak_mib": 750.0, "step_mib": 450.0},
        {"row": "reference A", "peak_mib": 1500.0, "step_mib": 1200.0},
    ]
    assert "| ours | 750 | 0.50 | 450 | 0.38 |" in memory_table({"rows": memory})
    rows = [
        {"row": "empty cache", "first_step_s": 31.2},
        {"row": "filled cache", "first_step_s": 9},
    ]
    assert "empty cache 31 s, filled cache 9 s" in cold_start_line({"rows": rows})
