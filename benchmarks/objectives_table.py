"""Collect the result files that `objectives.sh` left into one JSON and one Markdown table.

python -m benchmarks.objectives_table WORK_FOLDER OUT_FOLDER
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.protocols_table import KEPT

SETS = {"nucla": "N-UCLA, camera 3", "msr_action3d": "MSR Action3D, cross-subject"}
# By protocol and pooling.
COLUMNS = {
    ("knn", "full"): "1-NN",
    ("linear", "joint"): "linear, joint-pooled",
    ("linear", "mean"): "linear, mean-pooled",
    ("finetune", None): "fine-tune",
}
BEFORE, MINUTES = "1-NN before", "minutes"
METHODS = {
    "sjepa": "S-JEPA",
    "skeleton2vec": "Skeleton2vec",
    "mamp": "MAMP",
    "skeletonmae": "SkeletonMAE",
}
UNTRAINED = {"raw": "raw coordinates", "random": "random encoder"}

Scores = dict[tuple[str, str], dict[str, list[float]]]


def seconds(run: Path) -> float:
    """Seconds of training, from the steps' own clock in `metrics.jsonl`."""
    total, before = 0.0, 0
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "ms_per_step" in row:
            total += row["ms_per_step"] * (row["step"] - before) / 1000
            before = row["step"]
    return total


def column_of(result: dict[str, Any]) -> str | None:
    """Column that a result file belongs to, if any; raw coordinates have no pooling."""
    protocol, pool = result.get("protocol"), result.get("pool")
    if result.get("encoder") == "raw":
        pool = {"knn": "full", "linear": "joint"}.get(str(protocol))
    return COLUMNS.get((protocol, None if protocol == "finetune" else pool))


def read(work: Path) -> tuple[Scores, list[dict[str, object]]]:
    """Return scores by (set, row) and column, and what every file says of its conditions."""
    scores: Scores = {}
    files: list[dict[str, object]] = []
    for run in sorted(path for path in work.glob("*-s[0-9]*") if (path / "results").is_dir()):
        method, _, data = run.name.rpartition("-s")[0].partition("-")
        results = [json.loads(path.read_text()) for path in sorted(run.glob("results/*.json"))]
        for result in results:
            column = column_of(result)
            if column is None:
                continue
            row = UNTRAINED.get(result["encoder"], METHODS[method])
            values = [result["top1_k1"]] if result["protocol"] == "knn" else [result["top1"]]
            values = result.get("top1_per_seed", values)
            columns = scores.setdefault((data, row), {})
            columns.setdefault(column, []).extend(values)
            stated = {key: result[key] for key in KEPT if key in result}
            files.append({"run": run.name, "top1": values, **stated})
        ours = scores.setdefault((data, METHODS[method]), {})
        ours.setdefault(MINUTES, []).append(seconds(run) / 60)
        before = run / "results" / "knn-before.json"
        if before.exists():
            ours.setdefault(BEFORE, []).append(json.loads(before.read_text())["top1"])
    return scores, files


def cell(values: list[float] | None) -> str:
    """Mean, with the sample deviation where there are several seeds."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def table(scores: Scores) -> str:
    """Format the scores as Markdown."""
    columns = [BEFORE, *COLUMNS.values(), MINUTES]
    lines = [
        f"| set | features | {' | '.join(columns)} |",
        f"| --- | --- |{' ---: |' * len(columns)}",
    ]
    for data, title in SETS.items():
        for row in (*UNTRAINED.values(), *METHODS.values()):
            cells = " | ".join(cell(scores.get((data, row), {}).get(name)) for name in columns)
            lines.append(f"| {title} | {row} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Read the work folder named first and write into the folder named second."""
    work, out = Path(sys.argv[1]), Path(sys.argv[2])
    scores, files = read(work)
    named = {f"{data}: {row}": columns for (data, row), columns in scores.items()}
    seeds = " ".join(sorted({str(file["run"]).rpartition("-s")[2] for file in files}))
    command = f'SEEDS="{seeds}" benchmarks/objectives.sh DATA_FOLDER'
    content = {"command": command, "scores": named, "files": files}
    clock = work / "clock"
    took = ""
    if clock.exists():
        spent, jobs, *timed = map(int, clock.read_text().split())
        content |= {"seconds": spent, "jobs": jobs, "timed_seeds": timed}
        took = (
            f"\nThe first call, seed {' '.join(map(str, timed))}, took {spent / 60:.1f} minutes,"
            f" {jobs} processes of one thread at a time."
        )
    (out / "objectives.json").write_text(json.dumps(content, indent=1) + "\n")
    text = (
        "Top-1 % of the presets `METHOD-nucla` and `METHOD-msr_action3d`, last epoch, mean ±\n"
        f"deviation over the seeds. Command: `{command}`.{took}\n"
        "1-NN: un-pooled tokens, before: of each method's own initialisation; linear: logistic\n"
        "regression; fine-tune: the small recipe. The random encoder, S-JEPA's initialisation, is\n"
        "frozen but in the column fine-tune, where it is trained from scratch. Minutes are of\n"
        "pre-training by the clock, on one thread beside another such process.\n\n"
    )
    (out / "objectives.md").write_text(text + table(scores) + "\n")
    print(table(scores))


if __name__ == "__main__":
    main()
