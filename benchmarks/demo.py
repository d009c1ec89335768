"""Run the demo with three seeds, each as its own process; record score, wall time and peak memory.

python -m benchmarks.demo OUT_FOLDER
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.conftest import cpu_name


def run_once(work: Path, seed: int) -> dict[str, float]:
    """Train with one seed; the synthetic data are made by the first run, as for a user."""
    run = work / f"seed-{seed}"
    command = [sys.executable, "-m", "sjepa_fast.train", "--compile"]
    began = time.perf_counter()
    subprocess.run(
        [*command, "--seed", str(seed), "--run", str(run)],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(work / f"cache-{seed}")},
        check=True,
    )
    scores = json.loads((run / "results" / "knn-before-after.json").read_text())
    return {
        "seed": seed,
        "before": scores["before"],
        "after": scores["after"],
        "wall_s": round(time.perf_counter() - began, 1),
    }


def main() -> None:
    """Write `demo.json` into the folder named on the command line."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [run_once(Path(folder), seed) for seed in (0, 1, 2)]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
    result = {
        "command": "python -m sjepa_fast.train --compile --seed {0,1,2}, cold compiler cache",
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "rows": rows,
        "mean_gain": round(sum(row["after"] - row["before"] for row in rows) / len(rows), 2),
        "peak_rss_mib": round(peak),
    }
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    (out / "demo.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
