"""Collect the result files that `real_data.sh` left into one JSON and one Markdown table."""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path

SETS = {
    ("nucla", "xview"): "N-UCLA, camera 3 (464)",
    ("nucla", "xview_clean"): "N-UCLA, clean (369)",
    ("msr_action3d", "xsub"): "MSR Action3D (273)",
    ("sbu", "fold"): "SBU, mean of 5 folds",
}
COLUMNS = {
    ("knn", "full"): "1-NN, un-pooled",
    ("linear", "joint"): "linear, joint-pooled",
    ("linear", "mean"): "linear, mean-pooled",
}
ROWS = {
    "raw": "raw coordinates",
    "random": "random encoder (own init)",
    "target": "S-JEPA",
}

Scores = dict[str, dict[str, dict[str, list[float]]]]


def read(work: Path) -> tuple[Scores, list[dict[str, object]]]:
    """Return scores by set, row, column and seed, folds averaged, and every file's headline."""
    folds: dict[tuple[str, str, str, str], list[float]] = {}
    files = []
    for path in sorted(work.glob("*/results/*.json")):
        result = json.loads(path.read_text())
        if result.get("protocol") not in ("knn", "linear"):
            continue
        score = result["top1_k1"] if result["protocol"] == "knn" else result["top1"]
        kind = (result["store"], re.sub(r"\d", "", result["split"]))
        column = COLUMNS.get((result["protocol"], result["pool"]), COLUMNS["knn", "full"])
        if result["encoder"] == "raw" and result["protocol"] == "linear":
            column = COLUMNS["linear", "joint"]
        seed = path.parts[-3].rpartition("-s")[2]
        folds.setdefault((SETS[kind], ROWS[result["encoder"]], column, seed), []).append(score)
        keys = (
            "store",
            "split",
            "encoder",
            "pool",
            "protocol",
            "recipe",
            "training_seed",
            "weights",
        )
        files.append({**{k: result[k] for k in keys}, "run": path.parts[-3], "top1": score})
    scores: Scores = {}
    for (name, row, column, _), values in folds.items():
        by_column = scores.setdefault(name, {}).setdefault(row, {})
        by_column.setdefault(column, []).append(statistics.mean(values))
    return scores, files


def cell(values: list[float] | None) -> str:
    """Mean and range over seeds."""
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} [{min(values):.1f}-{max(values):.1f}]"


def table(scores: Scores) -> str:
    """Format the scores as Markdown."""
    lines = [
        "| set | features | " + " | ".join(COLUMNS.values()) + " |",
        "| --- | --- |" + " ---: |" * len(COLUMNS),
    ]
    for name in SETS.values():
        for row in ROWS.values():
            found = scores.get(name, {}).get(row, {})
            cells = " | ".join(cell(found.get(column)) for column in COLUMNS.values())
            lines.append(f"| {name} | {row} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Read the work folder named first and write into the folder named second."""
    work, out = Path(sys.argv[1]), Path(sys.argv[2])
    scores, files = read(work)
    out.mkdir(parents=True, exist_ok=True)
    content = {"command": "benchmarks/real_data.sh DATA_FOLDER", "scores": scores, "files": files}
    (out / "real_data.json").write_text(json.dumps(content, indent=1) + "\n")
    text = (
        "Top-1 %, mean [range] over seeds. Command: `benchmarks/real_data.sh DATA_FOLDER`.\n"
        "Raw coordinates have no pooling; their linear figure stands under joint-pooled.\n\n"
    )
    (out / "real_data.md").write_text(text + table(scores) + "\n")
    print(table(scores))


if __name__ == "__main__":
    main()
