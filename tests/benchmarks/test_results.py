"""The documents' tables are those of the committed result files, and nothing else is in them."""

import json
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.conftest import bfloat16_by
from benchmarks.tables import (
    PAGES,
    RESULTS,
    ROOT,
    cold_start_line,
    condense,
    cpu_folder,
    data_table,
    gpu_tables,
    keep,
    memory_table,
    other_cpu_tables,
    step_table,
    with_tables,
)


@pytest.mark.parametrize("name", PAGES)
def test_tables_are_generated(name: str) -> None:
    text = (ROOT / name).read_text()
    assert text.count("\n| ") > 15
    assert with_tables(name) == text, "run: python -m benchmarks.tables pages"


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


@pytest.mark.parametrize(
    ("device", "unit", "threads", "folder"),
    [
        ("Intel(R) Xeon(R) Processor", "AMX", 2, "cpu-intel-xeon-amx-2-cores"),
        ("Intel(R) Xeon(R) CPU @ 2.60GHz", "AVX-512", 4, "cpu-intel-xeon-avx-512-4-cores"),
        ("AMD EPYC 9R14", "AVX512_CORE_BF16", 1, "cpu-amd-epyc-9r14-avx512-core-bf16-1-cores"),
    ],
)
def test_a_folder_names_what_was_measured(
    device: str, unit: str, threads: int, folder: str
) -> None:
    assert cpu_folder({"device": device, "bfloat16_by": unit, "threads": threads}) == folder


def test_results_of_two_cpus_stand_beside_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    for device, unit, median in (("Xeon", "AMX", 2.0), ("Xeon", "AVX-512", 3.0)):
        raw = {"datetime": "2026-01-02", "benchmarks": [row("reference_A", median, "float32")]}
        facts = {"device": device, "bfloat16_by": unit, "threads": 2, "torch": "2.13"}
        raw["benchmarks"][0]["extra_info"] |= facts
        path = keep(raw, "step", "benchmarks/bench_step.py")
        assert path == tmp_path / cpu_folder(facts) / "step.json"
    assert json.loads(path.read_text())["command"].startswith("pytest benchmarks/bench_step.py")
    heading, table = other_cpu_tables(tmp_path, "cpu-xeon-amx-2-cores")
    assert "AVX-512 multiplies bfloat16, torch 2.13" in heading and "| 3000 |" in table
    assert len(other_cpu_tables(tmp_path, "none")) == 4


def test_a_limit_of_the_multiplying_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert bfloat16_by() in ("AMX", "AVX-512", "nothing")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    assert bfloat16_by() == "AVX512_CORE_BF16"


def test_a_gpu_row_waits_until_a_report_is_there(tmp_path: Path) -> None:
    waiting = gpu_tables(tmp_path)
    assert "| measured | awaiting a run |" in waiting
    assert "| GB moved a step | counted |" in waiting and "| ms on an H100 | modelled |" in waiting
    (tmp_path / "gpu-toy").mkdir()
    step = {"row": "ours", "ms": 40.0, "ms_min": 39.0, "clips/s": 3200.0, "TFLOP/s": 250.0}
    report = {"device": "Toy", "torch": "2.11", "sections": {"steps": {"rows": [step]}}}
    (tmp_path / "gpu-toy" / "report.json").write_text(json.dumps(report))
    text = gpu_tables(tmp_path)
    assert "counted" in text and "awaiting" not in text
    assert "On Toy, torch 2.11" in text and "| ours | 40.00 |" in text


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
