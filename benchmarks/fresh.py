"""Measurements that need a fresh process, on a CPU: memory from the imports on, and cold starts.

python -m benchmarks.fresh memory OUT.json        peak memory of a step, ours and rung A
python -m benchmarks.fresh cold-start OUT.json    seconds to the first step of `train --compile`
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.conftest import cpu_name
from benchmarks.tables import ROOT

CLIPS, STEPS = 2, 4
VARIANTS = ("ours float32", "ours bfloat16", "reference A", "reference C")


def memory_of(variant: str) -> dict[str, float]:
    """Measure in this process: MiB resident after the imports, with the clips, at the peak.

    Returns:
        The three, and what the step added to the imports at the peak.
    """
    import torch

    from benchmarks.conftest import peak_memory_mib, reset_peak_memory
    from benchmarks.steps import ntu_like_clips, our_step, reference_step
    from sjepa_fast.config.schema import OptimConfig, TrainConfig

    device = torch.device("cpu")
    torch.ones(2) @ torch.ones(2)
    reset_peak_memory(device)
    imports = peak_memory_mib(device)
    clips = ntu_like_clips(16, device)
    config = TrainConfig(optim=OptimConfig(batch_size=CLIPS))
    ids = torch.arange(CLIPS)
    kind, which = variant.split()
    if kind == "ours":
        _, step = our_step(config, clips, device, getattr(torch, which))
        for _ in range(STEPS):
            step(ids)
    else:
        _, run = reference_step(config, clips, device, which)
        x_BMTVC = clips.eval_crop(ids, config.data)
        for _ in range(STEPS):
            run(x_BMTVC, None, None)
    peak = peak_memory_mib(device)
    return {"imports_mib": imports, "peak_mib": peak, "step_mib": peak - imports}


def memory() -> list[dict[str, Any]]:
    """Measure every variant in a process of its own."""
    rows = []
    for variant in VARIANTS:
        command = [sys.executable, "-m", "benchmarks.fresh", "memory-of", variant]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        rows.append({"row": variant, "clips": CLIPS, **json.loads(done.stdout.splitlines()[-1])})
    return rows


def first_step(work: Path, run: str, cache: Path) -> dict[str, float]:
    """Start the demo as a user does and stop the clock at the first line about a step.

    Returns:
        Seconds to that line, and those of them before the line that counts the clips.
    """
    command = [sys.executable, "-m", "sjepa_fast.train", "--compile", "--run", str(work / run)]
    flags = ["--optim.length=2", "--optim.warmup=1", "--log.every=1", "--log.knn-every=0"]
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, *flags],
        cwd=ROOT,
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    found: dict[str, float] = {}
    for line in process.stdout:
        if " training clips, " in line:
            found["ready_s"] = time.perf_counter() - start
        if line.startswith("step 1/"):
            found["first_step_s"] = time.perf_counter() - start
            break
    process.stdout.read()
    if process.wait() != 0 or "first_step_s" not in found:
        raise RuntimeError(f"the run ended with code {process.returncode}")
    return found


def cold_start() -> list[dict[str, Any]]:
    """Measure a start with an empty compiler cache, and one that finds it filled.

    The first also makes the demo's clips, which takes some of the seconds before `ready_s`.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        rows = []
        for name in ("empty cache", "filled cache"):
            rows.append({"row": name, **first_step(work, name.split()[0], work / "inductor")})
    return rows


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["memory", "cold-start", "memory-of"])
    parser.add_argument("out", help="file to write")
    asked = parser.parse_args()
    if asked.what == "memory-of":
        print(json.dumps(memory_of(asked.out)))
        return
    rows = memory() if asked.what == "memory" else cold_start()
    import torch

    result = {
        "command": f"python -m benchmarks.fresh {asked.what}",
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": rows,
    }
    Path(asked.out).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
