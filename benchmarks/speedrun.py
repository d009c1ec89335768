"""From nothing to 80 % on N-UCLA: how many seconds a recipe takes, and a table of all that did.

python -m benchmarks.speedrun run --data DATA     time the recipe below and add a row to the record
python -m benchmarks.speedrun table               write the table of README.md from the record

The clock starts before the first process, with the raw file and empty caches, and stops when the
1-NN accuracy of the last checkpoint on the 464 test clips is written. A recipe counts if the mean
over the seeds reaches the goal; whoever changes it chooses on the split `val`, not here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.conftest import cpu_name
from benchmarks.tables import RESULTS, ROOT, markdown

GOAL = 80.0
RECORD = RESULTS / "speedrun.json"
PAGE = ROOT / "README.md"
COMMAND = "python -m benchmarks.speedrun run --data DATA"
BEGIN, END = "<!-- speedrun: begin -->", "<!-- speedrun: end -->"
# What is run, and in words what is special about it.
TRAIN = "skeletonmae-nucla --compile"
SCORE = "--pool pyramid --scaling pca"
ABOUT = "SkeletonMAE, `skeletonmae-nucla`"


def _call(folder: Path, *words: str | Path) -> None:
    # The compiler's cache, and that of whole compiled steps.
    caches = dict.fromkeys(("TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME"), str(folder / "cache"))
    subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        stdout=subprocess.DEVNULL,
        env={**os.environ, **caches},
        check=True,
    )


def _top1(run: Path, split: str) -> float:
    (file,) = (run / "results").glob(f"knn-*-{split}.json")
    return float(json.loads(file.read_text())["headline"])


def run_once(data: Path, seed: int) -> dict[str, float]:
    """Prepare, train and score in a folder of its own; returns seconds and accuracies."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store, run = folder / "nucla", folder / "run"
        began = time.perf_counter()
        _call(folder, "sjepa_fast.prepare", "nucla", "--raw", data / "nucla", "--out", store)
        prepared = time.perf_counter()
        chosen = ("--data.root", store, "--run", run, "--seed", str(seed))
        _call(folder, "sjepa_fast.train", *TRAIN.split(), *chosen)
        trained = time.perf_counter()
        score = ("sjepa_fast.evaluate", "knn", run, *SCORE.split(), "--no-baselines")
        _call(folder, *score, "--data.split", "xview")
        ended = time.perf_counter()
        _call(folder, *score, "--data.split", "xview_clean")
        return {
            "seed": seed,
            "seconds": round(ended - began, 1),
            "prepare_s": round(prepared - began, 1),
            "train_s": round(trained - prepared, 1),
            "score_s": round(ended - trained, 1),
            "top1": round(_top1(run, "xview"), 2),
            "top1_without_copies": round(_top1(run, "xview_clean"), 2),
        }


def _mean(row: dict[str, Any], key: str) -> float:
    return statistics.mean(seed[key] for seed in row["seeds"])


def run(data: Path, seeds: Sequence[int]) -> int:
    """Time the recipe and record it; return 1, and record nothing, if it misses the goal."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    row = {
        "about": ABOUT,
        "train": TRAIN,
        "score": SCORE,
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": gpu or f"{os.cpu_count()} cores, {cpu_name()}",
        "torch": torch.__version__,
        "seeds": [run_once(data, seed) for seed in seeds],
    }
    print(json.dumps(row, indent=1))
    if _mean(row, "top1") < GOAL:
        print(f"{_mean(row, 'top1'):.1f} % on the mean: the goal is {GOAL:.0f}", file=sys.stderr)
        return 1
    record = {"command": COMMAND, "rows": [*recorded(), row]}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def recorded() -> list[dict[str, Any]]:
    """Return the rows of the record, the oldest first."""
    return list(json.loads(RECORD.read_text())["rows"]) if RECORD.exists() else []


def table(rows: list[dict[str, Any]]) -> str:
    """Format the record, the fastest first."""
    header = ["recipe", "seconds", "1-NN of 464", "of 369", "machine", "date, commit"]
    cells = [
        [
            row["about"],
            f"{_mean(row, 'seconds'):.0f}",
            f"{_mean(row, 'top1'):.1f}",
            f"{_mean(row, 'top1_without_copies'):.1f}",
            row["machine"],
            f"{row['date']}, {row['commit']}",
        ]
        for row in sorted(rows, key=lambda row: _mean(row, "seconds"))
    ]
    return markdown(header, cells)


def page(text: str, rows: list[dict[str, Any]]) -> str:
    """Return a document with the table between its marks written anew."""
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n{table(rows)}\n{END}{rest.partition(END)[2]}"


def main() -> int:
    """Console entry."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--data", type=Path, help="folder with a folder nucla of raw data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked = parser.parse_args()
    if asked.what == "run" and not (asked.data and (asked.data / "nucla").is_dir()):
        parser.error(f"--data: {asked.data} has no folder nucla; name the folder of the raw sets")
    code = run(asked.data, asked.seeds) if asked.what == "run" else 0
    if rows := recorded():
        PAGE.write_text(page(PAGE.read_text(), rows))
    return code


if __name__ == "__main__":
    sys.exit(main())
