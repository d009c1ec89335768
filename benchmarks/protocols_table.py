"""Collect the result files that `protocols.sh` left into one JSON and one Markdown table."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

SETS = {
    ("nucla", "xview_clean"): "N-UCLA, camera 3, clean",
    ("msr_action3d", "xsub"): "MSR Action3D",
    ("utkinect", "xsub"): "UTKinect",
    ("florence3d", "xsub"): "Florence 3D",
}
COLUMNS = {"knn": "1-NN", "linear": "linear", "finetune": "fine-tune", "semi": "10 % of labels"}
ROWS = {"raw": "raw coordinates", "random": "random encoder", "target": "S-JEPA"}
POOLS = {"knn": "full", "linear": "joint"}
KEPT = (
    *("store", "split", "protocol", "encoder", "weights", "store_fingerprint", "trained_on"),
    *("train_clips", "test_clips", "recipe", "seeds", "device", "dtype", "torch", "threads"),
    *("top1_per_seed", "top1_best_epoch_per_seed"),
)

Scores = dict[str, dict[str, dict[str, list[float]]]]


def read(work: Path) -> tuple[Scores, list[dict[str, object]]]:
    """Return scores by set, row and column, and what every file says of its conditions."""
    scores: Scores = {}
    files = []
    for path in sorted(work.glob("*-s[0-9]/results/*.json")):
        result = json.loads(path.read_text())
        protocol = result.get("protocol")
        place = (result.get("store"), result.get("split"))
        if protocol not in COLUMNS or place not in SETS or "dtype" not in result:
            continue
        if result["recipe"].get("pool", POOLS.get(protocol)) not in (POOLS.get(protocol), None):
            continue
        if protocol == "semi" and not result["recipe"]["balanced"]:
            continue
        values = [result["top1_k1"]] if protocol == "knn" else [result["top1"]]
        values = result.get("top1_per_seed", values)
        name = f"{SETS[place]} ({result['train_clips']} / {result['test_clips']})"
        row = scores.setdefault(name, {}).setdefault(ROWS[result["encoder"]], {})
        row.setdefault(COLUMNS[protocol], []).extend(values)
        stated = {key: result[key] for key in KEPT if key in result}
        files.append({"run": path.parts[-3], "top1": values, **stated})
    order = list(SETS.values())
    names = sorted(scores, key=lambda name: order.index(name.rpartition(" (")[0]))
    return {name: scores[name] for name in names}, files


def cell(values: list[float] | None) -> str:
    """Mean and sample deviation over seeds, and their number where it is not three."""
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.1f} (1)"
    counted = "" if len(values) == 3 else f" ({len(values)})"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}{counted}"


def table(scores: Scores) -> str:
    """Format the scores as Markdown."""
    lines = [
        "| set (train / test clips) | features | " + " | ".join(COLUMNS.values()) + " |",
        "| --- | --- |" + " ---: |" * len(COLUMNS),
    ]
    for name, rows in scores.items():
        for row in ROWS.values():
            cells = " | ".join(cell(rows.get(row, {}).get(c)) for c in COLUMNS.values())
            lines.append(f"| {name} | {row} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Read the work folder named first and write into the folder named second."""
    work, out = Path(sys.argv[1]), Path(sys.argv[2])
    scores, files = read(work)
    out.mkdir(parents=True, exist_ok=True)
    content = {"command": "benchmarks/protocols.sh DATA_FOLDER", "scores": scores, "files": files}
    (out / "protocols.json").write_text(json.dumps(content, indent=1) + "\n")
    text = (
        "Top-1 % after the last epoch, mean ± deviation over 3 seeds or (number of) seeds, by the\n"
        "small recipes. Command: `benchmarks/protocols.sh DATA_FOLDER`. 1-NN: un-pooled tokens;\n"
        "linear: logistic regression, joint-pooled; fine-tune and 10 % (class-balanced): 240\n"
        "steps of 32 clips or all (N-UCLA fine-tune: 64). The random encoder is frozen in the first two\n"
        "columns and trained from scratch in the last two. The clean test part of N-UCLA has no\n"
        "clip of two of its ten classes. UTKinect and Florence 3D are easy: they show that a job\n"
        "runs. An empty cell has not been run.\n\n"
    )
    (out / "protocols.md").write_text(text + table(scores) + "\n")
    print(table(scores))


if __name__ == "__main__":
    main()
