"""The model of a step's milliseconds: by hand, and fitted back to times that it made itself."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_report import complete
from benchmarks.report import fit
from benchmarks.report.fit import CONSTANTS, Constants, assumed, fitted, predicted, work_of
from benchmarks.report.page import page

# 4 products of 1024^3 x 2, once more with few FLOP for their bytes; attention of 64 heads; one
# product in a kernel of ours, whose bytes are in its class.
COUNTED = {
    "nodes": 900,
    "gb": 90.0,
    "gb_by_pass": {"teacher": 30.0, "backward": 60.0},
    "gb_by_class": {"gemm": 41.0, "attention": 7.0, "inductor": 30.0, "ours": 2.0},
    "gemms": [[2, 1024, 1024, 1024, 4, 1.0], [1, 1000, 10, 10, 5, 40.0]],
    "gemms_of_ours": [[1, 1000, 1000, 1000, 1, 1.5]],
    "attentions": [[64, 750, 750, 32, 0, 10, 2.0], [64, 750, 750, 32, 1, 5, 5.0]],
}


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our two ways of compiling: the eager step moves three times as much outside of products."""
    classes = {**COUNTED["gb_by_class"], "inductor": 90.0}  # type: ignore[dict-item]
    eager = {**COUNTED, "gb_by_class": classes, "nodes": 1200}
    rows = {f"sjepa-ntu60-xsub bf16 {way}": COUNTED for way in ("default", "on")}
    rows |= {"sjepa-ntu60-xsub bf16 off": eager, "reference-C bf16": eager}
    path = tmp_path / "ledger.json"
    path.write_text(json.dumps({"clips": 128, "rows": rows}))
    monkeypatch.setattr(fit, "LEDGER", path)


CARD = Constants(3000.0, 700.0, 200.0, 150.0, 2.0)


def test_the_model_is_the_sum_that_its_docstring_writes() -> None:
    work = work_of("ours")
    assert work is not None
    # 2 x 2 x 1024^3 x 4 FLOP at 700 TFLOP/s take longer than 1 GB at 3 TB/s? No: 0.0245 < 0.333.
    flop = 2 * 2 * 1024**3 * 4
    products = max(flop / 700e12, 1e9 / 3e12) + max(1e6 / 700e12, 40e9 / 3e12)
    attention = 4 * 64 * 750 * 750 * 32 * 10 / 200e12 + 10 * 64 * 750 * 750 * 32 * 5 / 150e12
    ours = max(2e9 / 700e12, 1.5e9 / 3e12)
    seconds = products + ours + attention + 30.5e9 / 3e12 + 900 * 2e-6
    assert work.ms(CARD) == pytest.approx(1000 * seconds, rel=1e-9)
    # With little bandwidth asked for, products take what they multiply.
    fast = replace(CARD, bandwidth=1e9)
    assert work.ms(fast) == pytest.approx(
        1000 * ((flop + 1e6 + 2e9) / 700e12 + attention) + 1.8, rel=1e-4
    )


def test_what_was_not_counted_has_no_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    row: dict[str, Any] = {"row": "ours", "clips": 128}
    assert predicted("NVIDIA H200", row) is not None
    assert predicted("NVIDIA H200", {**row, "clips": 64}) is None
    assert predicted("NVIDIA H200", {"row": "reference A", "clips": 128}) is None
    assert predicted("AMD EPYC", row) is None
    monkeypatch.setattr(fit, "LEDGER", Path("absent.json"))
    assert predicted("NVIDIA H200", row) is None


def test_committed_constants_say_where_they_are_from() -> None:
    committed = json.loads(CONSTANTS.read_text())
    assert committed["source"]
    for card, values in committed["cards"].items():
        assert assumed(f"NVIDIA {card} 80GB") == Constants(**values)
    slow, fast = assumed("NVIDIA H100 PCIe"), assumed("NVIDIA H200")
    assert slow is not None and fast is not None and slow.bandwidth < fast.bandwidth


def report(constants: Constants, copy: float, product: float) -> dict[str, Any]:
    """A finished report of a card with these constants, whose ceilings are so much higher."""
    works = {row: work_of(row) for row in ("ours, eager", "ours, compiled")}
    rows = [
        {"row": row, "clips": 128, "run_seconds": work.ms(constants) / 1000}
        for row, work in works.items()
        if work is not None
    ]
    forward = 4 * 64 * 750 * 750 * 32 / constants.attention_forward * 1e-9
    backward = 10 * 64 * 750 * 750 * 32 / constants.attention_backward * 1e-9
    attention = {
        "backend": "auto",
        "dtype": "bfloat16",
        "tokens": 750,
        "shape": [8, 750, 8, 32],
        "forward_ms": forward,
        "ms": forward + backward,
        "forward TFLOP/s": constants.attention_forward,
    }
    short = {**attention, "tokens": 75, "shape": [8, 75, 8, 32], "forward TFLOP/s": 1.0}
    exact = {**attention, "dtype": "float32", "forward TFLOP/s": 2.0}
    sections: dict[str, Any] = {
        "ceilings": {
            "rows": [
                {"what": "copy, float32", "ms": 1.0, "GB/s": constants.bandwidth / copy},
                {"what": "matmul bfloat16, 8192", "ms": 1, "TFLOP/s": constants.matmul / product},
                {"what": "matmul float32, 8192", "ms": 1.0, "TFLOP/s": 1.0},
            ]
        },
        "attention": {"rows": [{"backend": "auto", "error": "no"}, short, exact, attention]},
        "breakdown": {"status": "done", "rows": rows},
    }
    facts = {"device": "NVIDIA H200", "torch": "2.11", "date": "2026-01-02", "command": "c"}
    return {**facts, "small": False, "cores": 16, "threads": 16, "sections": sections}


def test_constants_are_found_again_from_times_that_the_model_made() -> None:
    # Products must be bound by what they multiply for their rate to be seen.
    made = Constants(2400.0, 5.0, 200.0, 150.0, 1.5)
    found = fitted(report(made, copy=0.8, product=0.5))
    assert isinstance(found, dict), found
    # Of shares that explain the times equally well it takes the largest of products.
    assert found["constants"] == pytest.approx(asdict(made), rel=0.04)
    assert found["share_of_copy"] == pytest.approx(0.8, rel=0.02)
    assert found["share_of_matmul"] == pytest.approx(0.5, rel=0.04)
    rows = {row["row"]: row for row in found["rows"]}
    assert set(rows) == {"ours, eager", "ours, compiled"}
    for row in rows.values():
        assert row["predicted_ms"] == pytest.approx(row["measured_ms"], rel=0.01)


def test_a_report_without_a_counted_or_a_measured_row_says_why_there_is_no_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = report(CARD, 0.8, 0.5)
    whole["sections"]["breakdown"]["rows"][0]["clips"] = 64
    assert isinstance(fitted(whole), dict), "one row is enough"
    whole["sections"]["breakdown"]["rows"].clear()
    assert "no row was both" in str(fitted(whole))
    unknown = report(CARD, 0.8, 0.5)
    unknown["device"] = "Toy GPU"
    assert isinstance(fitted(unknown), dict), "all its rates are measured"
    del unknown["sections"]["attention"]
    assert fitted(unknown) == "No fit: attention_backward, attention_forward not measured."


def test_the_page_sets_the_prediction_beside_the_measurement(tmp_path: Path) -> None:
    whole = report(CARD, 0.8, 0.5)
    step = {"row": "ours", "clips": 128, "ms": 44.0, "ms_min": 43.0, "clips/s": 2900.0}
    whole["sections"]["steps"] = {"status": "done", "rows": [{**step, "TFLOP/s": 250.0}]}
    for row in whole["sections"]["breakdown"]["rows"]:
        row |= {"seconds": {"teacher": 0.01}, "step_seconds": 0.01, "counts": {}}
        row["flop"] = {"teacher": 2.5e12}
    complete(whole, tmp_path)
    text = page(whole)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    header = next(c for c in lines if c[:1] == ["step"])
    cells = next(c for c in lines if c[:1] == ["ours"])
    model = predicted("NVIDIA H200", step)
    assert cells[header.index("ms, model")] == f"{model:.1f}" and cells[1] == "44.00"
    assert ["teacher", "10.00", "100.0 %", "2.50", "30.00"] in lines
    for row in whole["model"]["rows"]:
        cells = [row["row"], f"{row['predicted_ms']:.1f}", f"{row['measured_ms']:.1f}"]
        assert cells in lines
    for word in ("**measured**", "**counted**", "**modelled**", "Fitted to this report"):
        assert word in text


def test_rungs_are_modelled_with_the_attention_that_they_take() -> None:
    whole = report(CARD, 0.8, 0.5)
    rows = whole["sections"]["attention"]["rows"]
    slower = {**rows[-1], "backend": "cudnn", "ms": 2 * rows[-1]["ms"]}
    slower["forward TFLOP/s"] /= 2
    slower["forward_ms"] *= 2
    rows.append(slower)
    work = work_of("reference C")
    assert work is not None
    whole["sections"]["breakdown"]["rows"].append(
        {"row": "reference C", "clips": 128, "run_seconds": 0.1}
    )
    found = fitted(whole)
    assert isinstance(found, dict), found
    fast = work.ms(Constants(**found["constants"]))
    (row,) = [row for row in found["rows"] if row["row"] == "reference C"]
    attention = work.attention_forward / found["constants"]["attention_forward"]
    attention += work.attention_backward / found["constants"]["attention_backward"]
    assert row["predicted_ms"] == pytest.approx(fast + 1000 * attention, rel=1e-6)
