"""The benchmark of fresh processes runs, and a step needs about half of the reference's memory."""

from __future__ import annotations

import json

from tests.tiny import environment, start_python

# Blocks of this size go back to the system when they are freed. Otherwise glibc keeps some, and
# how many differs from run to run, by a twentieth of the peak.
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def measured(*variants: str) -> list[dict[str, float]]:
    """Memory of a step of each variant, in processes of their own that run side by side."""
    command = ("-m", "benchmarks.fresh", "memory-of")
    children = [start_python(*command, name, env=environment() | RETURNED) for name in variants]
    found = []
    for child in children:
        said, errors = child.communicate(timeout=300)
        assert child.returncode == 0, errors
        found.append(json.loads(said.splitlines()[-1]))
    return found


def test_peak_memory_of_a_step_in_a_fresh_process() -> None:
    ours, reference = measured("ours bfloat16", "reference A")
    for row in (ours, reference):
        # Weights, gradients and AdamW's moments alone: 10.4 million float32 numbers, four times.
        assert row["step_mib"] == row["peak_mib"] - row["imports_mib"] > 160
    # 0.505 on two cores; the rest is room for other allocators.
    assert ours["peak_mib"] < 0.55 * reference["peak_mib"]
