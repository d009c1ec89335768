"""Take the strong recipe apart, from scratch on validation splits: a row for each component.

What is taken apart is the recipe of before, with mixup and the time pyramid, which hurt, and with
1,000 steps and half of the tokens whatever the set (`benchmarks.features.plan`).

python -m benchmarks.ablate_recipe --data DATA    N-UCLA and MSR Action3D, `val`, three seeds

Every row and seed is `evaluate supervised` in a folder of its own. What the work folder has is not
made again, so that an interrupted call can be repeated and seeds can be added. Test parts are not
looked at: of `val`, one camera or some persons of the training part are kept aside.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.accuracy import FOLDERS, RESULTS, deviation
from benchmarks.executor import Job, run_jobs
from benchmarks.features.plan import STRONG as BEFORE

SETS = {"nucla": "N-UCLA", "msr_action3d": "MSR Action3D"}
SPLIT, SEEDS = "val", (0, 1, 2)
STRONG = "strong"
# What differs from that. The first rows leave out one component each.
COMPONENTS = {
    "length": "--recipe.length 240 --recipe.warmup 20",
    "bone and motion": "--recipe.streams run",
    "scale": "--recipe.views.scale 0",
    "joint dropout": "--recipe.views.joint-drop 0",
    "token dropout": "--recipe.token-drop 0",
    "time warp": "--recipe.views.time-warp 0",
    "mixup": "--recipe.mixup 0",
    "average of weights": "--recipe.ema 0",
    "time pyramid": "--recipe.pool joint",
    "four test crops": "--recipe.test-crops 1",
}
SMALL = "--recipe small --recipe.batch-size 32"
ROWS = {
    STRONG: BEFORE,
    **{f"without {name}": f"{BEFORE} {words}" for name, words in COMPONENTS.items()},
    "without mixup and time pyramid": f"{BEFORE} --recipe.mixup 0 --recipe.pool joint",
    "turned by 60 degrees about two axes": (
        f"{BEFORE} --recipe.views.form two_axes --recipe.views.rotation 1.047 --recipe.views.tilt 0"
    ),
    "without all but length": f"{SMALL} --recipe.length 1000 --recipe.warmup 50",
    "without all (small)": SMALL,
}


class Cell(NamedTuple):
    """One training: set, row and seed, and where its result is."""

    store: str
    row: str
    seed: int
    run: Path

    @property
    def file(self) -> Path:
        """The result's file, whether it is there or not."""
        return self.run / "results" / f"supervised-{self.store}-{SPLIT}.json"

    def words(self, work: Path) -> list[str]:
        """Arguments of `sjepa_fast.evaluate`."""
        data = ["--data.root", str(work / "stores" / self.store), "--data.split", SPLIT]
        return ["supervised", str(self.run), *data, "--preset", f"sjepa-{self.store}", "--seeds",
                str(self.seed), *shlex.split(ROWS[self.row])]  # fmt: skip


def cells(work: Path, seeds: tuple[int, ...] = SEEDS) -> Iterator[Cell]:
    """List all trainings, seed by seed, so that an early end leaves whole rows of fewer seeds."""
    for seed in seeds:
        for store in SETS:
            for row in ROWS:
                name = f"{store}-{row.replace(' ', '-')}-s{seed}"
                yield Cell(store, row, seed, work / "recipe" / name)


def jobs(data: Path, work: Path, seeds: tuple[int, ...]) -> list[Job]:
    """List all jobs: the stores, and the trainings in their order."""
    stores = work / "stores"
    found = []
    for store in SETS:
        out, raw = stores / store, data / FOLDERS.get(store, store)
        words = (store, "--raw", str(raw), "--out", str(out))
        found.append(Job(f"prepare-{store}", "sjepa_fast.prepare", words, out / "store.json"))
    for cell in cells(work, seeds):
        words, needs = tuple(cell.words(work)), (f"prepare-{cell.store}",)
        found.append(Job(cell.run.name, "sjepa_fast.evaluate", words, cell.file, needs))
    return found


def verdict(differences: list[float]) -> str:
    """Say what a component does, by what the recipe loses without it: seeds against their noise.

    It helps, or hurts, where all seeds say so and their mean is beyond two standard errors.
    """
    if len(differences) < 2:
        return "one seed"
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    mean = statistics.mean(differences)
    if min(differences) > 0 and mean > 2 * error:
        return "helps"
    if max(differences) < 0 and -mean > 2 * error:
        return "hurts"
    return "neutral"


def collect(work: Path, seeds: tuple[int, ...]) -> dict[str, Any]:
    """Return accuracies by set, row and seed, and the conditions of each."""
    scores: dict[str, dict[str, dict[int, float]]] = {}
    files = []
    kept = ("store", "split", "store_fingerprint", "top1", "seeds", "recipe", "train_clips")
    kept += ("test_clips", "device", "dtype", "torch", "threads")
    for cell in cells(work, seeds):
        if cell.file.exists():
            found = json.loads(cell.file.read_text())
            scores.setdefault(cell.store, {}).setdefault(cell.row, {})[cell.seed] = found["top1"]
            files.append({"row": cell.row, **{key: found[key] for key in kept}})
    return {"command": "python -m benchmarks.ablate_recipe --data DATA", "scores": scores,
            "files": files}  # fmt: skip


def table(content: dict[str, Any]) -> str:
    """Format the accuracies as Markdown: mean, what the strong recipe is above it, and verdict."""
    lines = [
        "| set | recipe | top-1 % | strong is better by | the component |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    for store, rows in content["scores"].items():
        whole = rows.get(STRONG, {})
        for row in ROWS:
            if row not in rows:
                continue
            found = rows[row]
            cells = [SETS[store], row, deviation(list(found.values())), "", ""]
            paired = [whole[seed] - found[seed] for seed in found if seed in whole]
            if row != STRONG and paired:
                signs = " ".join(f"{value:+.1f}" for value in paired)
                cells[3] = f"{statistics.mean(paired):+.1f} ({signs})"
                cells[4] = verdict(paired) if row.startswith("without") else ""
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page(content: dict[str, Any]) -> str:
    """Return the note and the table below it."""
    note = (
        "Top-1 % on the split `val`, from scratch, after the last step, mean ± deviation over the\n"
        f"seeds. Command: `{content['command']}`. In brackets the seeds' own differences. A\n"
        "component helps or hurts where all seeds agree and their mean is beyond two standard\n"
        "errors; it is neutral otherwise.\n"
    )
    return f"{note}\n{table(content)}\n"


def main() -> None:
    """Train what is left, or list it; then write JSON and table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sets")
    parser.add_argument("--work", type=Path, default=Path("runs/real"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of JSON and table")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--minutes", type=float, help="begin nothing after so long")
    parser.add_argument("--grace", type=float, default=30.0, help="seconds that what runs then has")
    parser.add_argument("--dry-run", action="store_true", help="list the commands that are left")
    asked = parser.parse_args()
    seeds = tuple(asked.seeds)
    every = jobs(asked.data, asked.work, seeds)
    if asked.dry_run:
        for job in every:
            if not job.file.exists():
                print(shlex.join(["python", "-m", job.module, *job.words]))
        return
    folder = asked.work / "recipe"
    ended = run_jobs(every, folder, asked.jobs, minutes=asked.minutes, grace=asked.grace)
    content = collect(asked.work, seeds)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "recipe.json").write_text(json.dumps(content, indent=1) + "\n")
    (asked.out / "recipe.md").write_text(page(content))
    print(table(content))
    sys.exit(int(any(outcome.state == "failed" for outcome in ended)))


if __name__ == "__main__":
    main()
