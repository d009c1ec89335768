"""What a training step of each preset costs, counted on the null GPU, and the committed table.

    python -m tests.null_gpu.ledger --show              # the table, readable; needs nothing
    python -m tests.null_gpu.ledger --update            # with a CUDA build of torch: writes it anew

A row is one step on 128 clips at the preset's own shape:

* `nodes` of the captured graph (of a rung of the reference: launches of a step) and `launches` by
  kind: torch's kernels, Inductor's, ours, calls of cuBLAS and cuDNN, memsets, copies;
* `gb`, what the step moves (1e9 bytes), in total, by pass and by class; `traffic.py` has the rules;
* `gemms`, also those in kernels of ours (`gemms_of_ours`), and `attentions` by size: (batch, m, n,
  k, how many, GB) and (sequences x heads, queries, keys, width of a head, 1 if backward, how many,
  GB); `tflop` is what the step needs by its configuration, 1e12 operations;
* `peak_gb` allocated by an eager step, `pool_gb` at most in the capture, `reserved_gb` at the end;
* after the first step, without the capture: `syncs`, `host_bytes` and `mallocs` of the driver, and
  what a `replay` launches.

`worse` compares a row with its committed one, with a little slack. `--update` also writes the
kernels of ours that the steps launch, for `tests/kernels/test_compile_ahead.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

Row = dict[str, Any]

ROOT = Path(__file__).parents[2]
PATH = ROOT / "benchmarks" / "ledger.json"
UPDATE = "python -m tests.null_gpu.ledger --update"

# Steps that are counted in each way of compiling.
OURS = [
    ("sjepa-ntu60-xsub", "bf16"),
    ("sjepa-ntu60-xsub", "fp32"),
    ("skeleton2vec-ntu60-xsub", "bf16"),
    ("mamp-ntu60-xsub", "bf16"),
    ("skeletonmae-ntu60-xsub", "bf16"),
]
WAYS = ("default", "off", "on")
# The default with attention by our own kernels, which a measurement has to choose.
CHOSEN = [("sjepa-ntu60-xsub", "bf16", "triton")]
REFERENCES = [("reference-C", "bf16"), ("reference-D", "bf16")]
GROUPS: list[tuple[str, ...]] = [*OURS, *CHOSEN, *REFERENCES]
# Of launches; attention and convolutions of cuDNN may be several kernels, and count as one.
KINDS = ("torch", "inductor", "ours", "gemm", "cudnn", "memset", "copy")

# How much more is not worse yet: a share of the committed number, and an amount.
SLACK: dict[str, tuple[float, float]] = {
    "nodes": (0.01, 0),
    "gb": (0.005, 0),
    "peak_gb": (0.01, 0.01),
    "pool_gb": (0.01, 0.01),
    "reserved_gb": (0.05, 0.05),
    "syncs": (0, 0),
    "host_bytes": (0, 0),
    # The allocator may still round up a block or two in the second step.
    "mallocs": (0, 2),
}
PASS_SLACK = (0.01, 0.02)


def cases() -> list[str]:
    """Return the names of all rows."""
    ours = [f"{name} {dtype} {way}" for name, dtype in OURS for way in WAYS]
    return ours + [" ".join(words) for words in (*CHOSEN, *REFERENCES)]


def worse(case: str, now: Row, committed: Row | None) -> list[str]:
    """Return what got worse, in words; a case without a committed row counts."""
    if committed is None:
        return [f"{case}: not in the table"]
    figures = [(key, now.get(key), committed.get(key), slack) for key, slack in SLACK.items()]
    figures += [
        (f"gb of {name}", gb, committed["gb_by_pass"].get(name, 0.0), PASS_SLACK)
        for name, gb in now["gb_by_pass"].items()
    ]
    problems = [
        f"{case}: {key} {before} -> {value}"
        for key, value, before, (share, amount) in figures
        if value is not None and (before is None or value > before * (1 + share) + amount)
    ]
    if now.get("replay") != committed.get("replay"):
        problems.append(f"{case}: replay {committed.get('replay')} -> {now.get('replay')}")
    return problems


def load() -> dict[str, Any]:
    """Return the committed table: the versions it was made with, `clips` and `rows`."""
    table: dict[str, Any] = json.loads(PATH.read_text())
    return table


def save(rows: dict[str, Row], head: Row) -> None:
    """Write the table, sorted, one row a line."""
    body = ",\n".join(f"  {json.dumps(name)}: {json.dumps(rows[name])}" for name in sorted(rows))
    first = json.dumps(head)[1:-1]
    PATH.write_text(f'{{\n {first},\n "rows": {{\n{body}\n }}\n}}\n')


def run_case(case: str) -> Row:
    """Count one case in a process of its own: its `row`, and the `variants` of our kernels."""
    quiet = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "row.json")
        command = ["-m", "tests.null_gpu", "-m", "tests.null_gpu.ledger_case", case, str(out)]
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=os.environ | quiet,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{case}: {done.stderr[-3000:]}")
        result: Row = json.loads(out.read_text())
        return result


def run_group(*group: str) -> tuple[dict[str, Row], list[Row]]:
    """Count a preset in each way of compiling, or a single case; return rows and variants.

    A default that compiles nothing is "off", which is then not run again.
    """
    if group not in OURS:
        result = run_case(" ".join(group))
        return {" ".join(group): result["row"]}, result["variants"]
    name, dtype = group
    found = {"default": run_case(f"{name} {dtype} default")}
    if not found["default"]["row"]["launches"]["inductor"]:
        found["off"] = found["default"]
    for way in WAYS:
        if way not in found:
            found[way] = run_case(f"{name} {dtype} {way}")
    rows = {f"{name} {dtype} {way}": found[way]["row"] for way in WAYS}
    return rows, [variant for way in WAYS for variant in found[way]["variants"]]


def update() -> None:
    """Count everything anew and write the table and the list of launches."""
    import torch
    import triton

    from tests.kernels import launches

    rows: dict[str, Row] = {}
    variants: dict[str, launches.Variant] = {}
    for group in GROUPS:
        found, kernels = run_group(*group)
        rows |= found
        variants |= {x.key: x for x in (launches.Variant(**kernel) for kernel in kernels)}
        for case, row in found.items():
            print(f"{case}: {row['nodes']} nodes, {row['gb']} GB", flush=True)
    save(rows, {"torch": torch.__version__, "triton": triton.__version__, "clips": 128})
    launches.save(list(variants.values()))
    print(f"now, with the Triton of constraints.txt: {launches.TABLE_UPDATE}")


PASSES = ["data", "teacher", "student", "predictor", "loss", "backward", "optimiser"]
CLASSES = ["gemm", "attention", "inductor", "ours", "pointwise", "norm", "copy", "reduction"]


def show() -> str:
    """Return the committed table as text."""
    table = load()
    rows = table["rows"]
    lines = [f"One step on {table['clips']} clips, counted; torch {table['torch']}.", ""]
    lines += [_line("", ["nodes", *KINDS, "peak GB", "pool GB", "reserved", "mallocs", "syncs"])]
    for case, row in rows.items():
        figures = [row["nodes"], *(row["launches"][kind] for kind in KINDS)]
        figures += [row.get(key, "-") for key in ("peak_gb", "pool_gb", "reserved_gb")]
        lines.append(_line(case, [*figures, row["mallocs"], row["syncs"]]))
    for title, key, names in (
        ("GB by pass", "gb_by_pass", [*PASSES, "EMA, center", "forward"]),
        ("GB by class", "gb_by_class", [*CLASSES, "other"]),
    ):
        lines += ["", _line(title, ["total", *(name[:9] for name in names)])]
        for case, row in rows.items():
            lines.append(_line(case, [row["gb"], *(row[key].get(name, "-") for name in names)]))
    return "\n".join(lines)


def _line(name: str, cells: list[object]) -> str:
    text = [f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells]
    return f"{name:34}" + "".join(f"{cell:>10}" for cell in text)


if __name__ == "__main__":
    if sys.argv[1:] == ["--show"]:
        print(show())
    elif sys.argv[1:] == ["--update"]:
        update()
    else:
        sys.exit(f"usage: {UPDATE}, or --show")
