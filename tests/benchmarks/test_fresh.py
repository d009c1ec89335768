"""The benchmark of fresh processes runs, and a step needs about half of the reference's memory."""

from __future__ import annotations

import json

from tests.tiny import run_python


def measured(variant: str) -> dict[str, float]:
    done = run_python("-m", "benchmarks.fresh", "memory-of", variant)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_peak_memory_of_a_step_in_a_fresh_process():
    ours, reference = measured("ours bfloat16"), measured("reference A")
    for row in (ours, reference):
        # Weights, gradients and AdamW's moments alone: 10.4 million float32 numbers, four times.
        assert row["step_mib"] == row["peak_mib"] - row["imports_mib"] > 160
    # 0.49 on two cores; the rest is room for other allocators.
    assert ours["peak_mib"] < 0.55 * reference["peak_mib"]
