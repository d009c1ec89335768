"""Settings of pre-training and of fine-tuning, tried on validation parts.

python -m benchmarks.trials --data DATA --out FOLDER    do what is left, collect it

A pool of the training parts of all sets' splits `val` is pre-trained on, once for each setting in
`POOLS` and seed, and each set alone for each one in `SINGLES`; features and fine-tuning are scored
on the validation parts of `val`. Of the pool preset's own encoder fine-tuning is also scored by
every recipe in `RECIPES`. Test parts are not looked at. `--tried`, `--sets` and `--seeds` choose a
part. What the work folder has is not made again. FOLDER gets `trials.json`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.executor import Job, run_jobs
from benchmarks.features import plan
from benchmarks.features.rows import KEPT, command_of
from sjepa_fast.opening import read_json
from sjepa_fast.runtime.files import write_json

SPLIT = "val"
# SBU has folds alone.
SPLITS = {store: "fold0" if store == "sbu" else SPLIT for store in plan.SETS}
SCORED = ("nucla", "msr_action3d", "ui_prmd", "florence3d", "utkinect")
TUNED = ("nucla", "msr_action3d")
FROZEN = {
    "1-NN, full": ("knn", "--pool full --scaling pca", "knn-target-full-pca"),
    "1-NN, pyramid": ("knn", "--pool pyramid --scaling pca", "knn-target-pyramid-pca"),
    "linear, pyramid": ("linear", "--pool pyramid", "linear-target-pyramid"),
}
FINETUNE = "fine-tune"
PRESET = "the preset"
LONG = "--recipe.length 4000 --recipe.warmup 200 --recipe.score-every 1000"
TWO_AXES = "--recipe.views.form two_axes --recipe.views.rotation 1.047 --recipe.views.tilt 0"
POOL = f"{plan.POOL}-{SPLIT}"
# Flags of `train sjepa-pool`.
POOLS = {
    PRESET: "",
    "6,000 steps": "--optim.length 6000",
    "10,000 steps": "--optim.length 10000",
    "width 192": "--model.width 192 --model.heads 6",
    "width 256": "--model.width 256 --model.heads 8",
    "width 256, 6,000 steps": "--model.width 256 --model.heads 8 --optim.length 6000",
    "5 layers": "--model.depth 5",
    "3 layers of the predictor": "--model.predictor-depth 3",
    "0.5 masked": "--mask.ratio 0.5",
    "0.8 masked": "--mask.ratio 0.8",
    "twice the batch": "--optim.batch-size 128",
    "rate 2e-3": "--optim.lr 2e-3",
    "whitening 0.35": "--data.whiten 0.35",
    "scale of views": "--view.scale 0.2",
    "crops from 0.4": "--data.crop-min 0.4",
    "SIGReg beside it": "--objective.regularizer sigreg",
    "sets by size": "--data.set-power 1",
    "48 frames": "--data.frames 48",
    # What led with one seed, together.
    "0.35, half masked": "--data.whiten 0.35 --mask.ratio 0.5",
    "0.35, half masked, scale": "--data.whiten 0.35 --mask.ratio 0.5 --view.scale 0.2",
    "0.35, half masked, scale, predictor of 3": (
        "--data.whiten 0.35 --mask.ratio 0.5 --view.scale 0.2 --model.predictor-depth 3"
    ),
}
# Flags of `train sjepa-small` on a set alone.
SINGLES = {
    "small": "",
    "small, whitening 0.25": "--data.whiten 0.25",
    "small, whitening 0.1": "--data.whiten 0.1",
    "small, 0.5 masked": "--mask.ratio 0.5",
    "small, tilt 0.35": "--view.tilt 0.35",
    "small, 0.35, half masked": "--data.whiten 0.35 --mask.ratio 0.5",
    "small, layer scale 0.1": "--model.layer-scale 0.1",
    "small, 0.1 and 0.25": "--model.layer-scale 0.1 --data.whiten 0.25",
    "small, 0.1, 0.25 and 0.5 masked": (
        "--model.layer-scale 0.1 --data.whiten 0.25 --mask.ratio 0.5"
    ),
    "small, 0.1, 0.25 and width 128": (
        "--model.layer-scale 0.1 --data.whiten 0.25 --model.width 128 --model.heads 4"
    ),
}
# Flags of `evaluate finetune`; the recipe is the strong one.
RECIPES = {
    "rate 1e-3": "--recipe.lr 1e-3",
    "rate 4e-3": "--recipe.lr 4e-3",
    "layer decay 0.65": "--recipe.layer-decay 0.65",
    "layer decay 1": "--recipe.layer-decay 1",
    "500 steps": "--recipe.length 500 --recipe.warmup 25",
    "2,000 steps": "--recipe.length 2000 --recipe.warmup 100 --recipe.score-every 500",
    "4,000 steps": LONG,
    "two axes": TWO_AXES,
    "two axes, 4,000 steps": f"{TWO_AXES} {LONG}",
    "half of the tokens dropped": "--recipe.token-drop 0.5",
    "tokens 0.7 dropped": "--recipe.token-drop 0.7",
    "all tokens": "--recipe.token-drop 0",
    "drop path 0.2": "--recipe.drop-path 0.2",
    "dropout 0.5": "--recipe.dropout 0.5",
    "hidden 1,024": "--recipe.hidden 1024",
    "batches of 64": "--recipe.batch-size 64",
    "batches of 16": "--recipe.batch-size 16",
    "smoothing 0.2": "--recipe.label-smoothing 0.2",
    "mixup 0.8": "--recipe.mixup 0.8",
    "mixup 0.2": "--recipe.mixup 0.2",
    "weight decay 0.2": "--recipe.weight-decay 0.2",
    "joints alone": "--recipe.streams run",
    "time pyramid": "--recipe.pool pyramid",
    "crops from 0.4": "--recipe.views.crop-min 0.4",
    "crops from 0.8": "--recipe.views.crop-min 0.8",
    "turned by 0.6": "--recipe.views.rotation 0.6",
    "joint dropout 0.2": "--recipe.views.joint-drop 0.2",
    "no joint dropout": "--recipe.views.joint-drop 0",
    "average 0.995": "--recipe.ema 0.995",
    "2,000 steps, layer decay 1": (
        "--recipe.length 2000 --recipe.warmup 100 --recipe.score-every 500 --recipe.layer-decay 1"
    ),
}
TRIED = [*POOLS, *SINGLES, *(f"{FINETUNE}: {name}" for name in RECIPES)]


@dataclass(frozen=True)
class Cell:
    """One score: what was tried, a set, a protocol and a seed."""

    tried: str
    store: str
    score: str
    seed: int
    job: Job


def _slug(name: str) -> str:
    return name.replace(" ", "-").replace(",", "").replace(".", "_")


def _place(work: Path, store: str) -> tuple[str, ...]:
    return ("--data.root", str(work / "stores" / store), "--data.split", SPLIT)


def preparations(data: Path, work: Path) -> dict[str, Job]:
    """Return the jobs that make the stores and their pool, by name."""
    return {job.name: job for job in plan.pool_jobs(data, work, SPLITS, POOL)}


def pretraining(name: str, store: str, seed: int, work: Path) -> Job:
    """Return the job that pre-trains by one of `POOLS`, or by one of `SINGLES` on a store."""
    single = name in SINGLES
    run = work / "runs" / f"{_slug(name)}{f'-{store}' if single else ''}-s{seed}"
    of = _place(work, store) if single else ("--data.root", str(work / "stores" / POOL))
    flags = shlex.split(f"{plan.TRAIN} {SINGLES[name] if single else POOLS[name]}")
    preset = "sjepa-small" if single else "sjepa-pool"
    words = (preset, *of, "--run", str(run), "--seed", str(seed), *flags)
    end, need = run / "results" / "knn-before-after.json", f"prepare-{store}" if single else POOL
    return Job(run.name, "sjepa_fast.train", words, end, (need,))


def finetuning(tried: str, run: Job, store: str, seed: int, work: Path, flags: str) -> Job:
    """Return the job that fine-tunes the encoder of the job `run`."""
    folder = run.file.parent.parent
    words = ("finetune", str(folder), *_place(work, store), "--seeds", str(seed))
    file = folder / "results" / f"finetune-target-{store}-{SPLIT}.json"
    name = f"{_slug(tried)}-{store}-s{seed}-finetune"
    return Job(name, "sjepa_fast.evaluate", (*words, *shlex.split(flags)), file, (run.name,))


def cells(
    work: Path, seeds: list[int], sets: list[str], tried: list[str], before: dict[str, Job]
) -> Iterator[Cell]:
    """List all scores, and add what they need to `before`; seed by seed."""
    for seed in seeds:
        for name in (name for name in (*POOLS, *SINGLES) if name in tried):
            for store in sets:
                run = pretraining(name, store, seed, work)
                before[run.name] = run
                yield from _scores(name, run, store, seed, work)
        for name, flags in RECIPES.items():
            if f"{FINETUNE}: {name}" not in tried:
                continue
            own = pretraining(PRESET, "", seed, work)
            out = work / "recipes" / f"{_slug(name)}-s{seed}"
            words = ("copy", str(own.file.parent.parent), str(out))
            copy = Job(f"copy-{out.name}", "benchmarks.trials", words, out / "results" / "copied",
                       (own.name,))  # fmt: skip
            before |= {own.name: own, copy.name: copy}
            for store in (store for store in TUNED if store in sets):
                job = finetuning(f"recipe-{name}", copy, store, seed, work, flags)
                yield Cell(f"{FINETUNE}: {name}", store, FINETUNE, seed, job)


def _scores(name: str, run: Job, store: str, seed: int, work: Path) -> Iterator[Cell]:
    folder = run.file.parent.parent
    for score, (protocol, flags, result) in FROZEN.items():
        words = (protocol, str(folder), *_place(work, store), "--no-baselines")
        file = folder / "results" / f"{result}-{store}-{SPLIT}.json"
        job = Job(f"{_slug(name)}-{store}-s{seed}-{_slug(score)}", "sjepa_fast.evaluate",
                  (*words, *shlex.split(flags)), file, (run.name,))  # fmt: skip
        yield Cell(name, store, score, seed, job)
    if store in TUNED:
        yield Cell(name, store, FINETUNE, seed, finetuning(name, run, store, seed, work, ""))


def needed(found: list[Cell], before: dict[str, Job]) -> list[Job]:
    """List the jobs of the scores, each after what it needs."""
    jobs: dict[str, Job] = {}

    def add(job: Job) -> None:
        for need in job.needs:
            add(before[need])
        jobs.setdefault(job.name, job)

    for cell in found:
        add(cell.job)
    return list(jobs.values())


def copy_run(source: Path, out: Path) -> None:
    """Give another recipe a run folder of its own, since a folder has one result of a protocol."""
    shutil.copytree(
        source,
        out,
        copy_function=os.link,
        ignore=shutil.ignore_patterns("results", "finetune", "lock"),
        dirs_exist_ok=True,
    )
    (out / "results").mkdir(exist_ok=True)
    (out / "results" / "copied").touch()


def collect(found: list[Cell], work: Path) -> dict[str, Any]:
    """Return a row for each score that is there."""
    rows = []
    for cell in found:
        if not cell.job.file.exists():
            continue
        result = read_json("result", cell.job.file, 2**26)
        rows.append(
            {
                **{"tried": cell.tried, "set": cell.store, "score": cell.score, "seed": cell.seed},
                **{"top1": result["headline"], "standard_error": result["standard_error"]},
                **{key: result[key] for key in KEPT},
                "command": command_of(cell.job, work),
            }
        )
    return {"command": "python -m benchmarks.trials --data DATA", "pools": POOLS,
            "singles": SINGLES, "recipes": RECIPES, "rows": rows}  # fmt: skip


def table(content: dict[str, Any]) -> str:
    """Format means over the seeds as Markdown, a line for each setting."""
    scores: dict[str, dict[str, list[float]]] = {}
    columns: dict[str, None] = {}
    for row in content["rows"]:
        column = f"{row['set']} {row['score']}"
        columns[column] = None
        scores.setdefault(row["tried"], {}).setdefault(column, []).append(row["top1"])
    lines = [f"| tried | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    for tried, found in scores.items():
        figures = (
            f"{statistics.mean(found[c]):.1f} ({len(found[c])})" if c in found else ""
            for c in columns
        )
        lines.append(f"| {tried} | {' | '.join(figures)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Do what is left and collect it; 1 if a job failed."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["copy"]:
        copy_run(Path(words[1]), Path(words[2]))
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sets")
    parser.add_argument("--work", type=Path, default=Path("runs/trials"), help="folder of runs")
    parser.add_argument("--out", type=Path, required=True, help="folder of trials.json")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--minutes", type=float, help="begin nothing after so long")
    parser.add_argument("--grace", type=float, default=30.0, help="seconds that what runs then has")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(plan.SEEDS))
    parser.add_argument("--sets", nargs="+", choices=SCORED, default=list(SCORED))
    parser.add_argument("--tried", nargs="+", choices=TRIED, default=TRIED, metavar="NAME")
    asked = parser.parse_args(words)
    before = preparations(asked.data, asked.work)
    found = list(cells(asked.work, asked.seeds, asked.sets, asked.tried, before))
    jobs = needed(found, before)
    ended = run_jobs(jobs, asked.work, asked.jobs, minutes=asked.minutes, grace=asked.grace)
    content = collect(found, asked.work)
    asked.out.mkdir(parents=True, exist_ok=True)
    write_json(asked.out / "trials.json", content)
    print(table(content))
    return int(any(outcome.state == "failed" for outcome in ended))


if __name__ == "__main__":
    sys.exit(main())
