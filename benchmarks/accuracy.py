"""Prepare, pre-train, score and tabulate small real sets by the public commands.

python -m benchmarks.accuracy real-data  --data DATA    S-JEPA on N-UCLA, MSR Action3D and SBU
python -m benchmarks.accuracy protocols  --data DATA    S-JEPA by four protocols on four sets
python -m benchmarks.accuracy objectives --data DATA    the presets of the four objectives
python -m benchmarks.accuracy targets    --data DATA    S-JEPA with cheaper target encoders

DATA holds a folder for each set. Results in the work folder are not made again, so that an
interrupted call can be repeated and seeds can be added; `protocols` uses the runs of `real-data`.
Committed results name the shell scripts that gave the same commands before this file did.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results" / "cpu-2-cores"
MANY = Path(__file__).with_name("evaluate_many.py")
# Importing torch takes longer than most evaluations, so that several share a process.
EVALUATIONS_PER_PROCESS = 6
OURS, BEFORE, MINUTES = "S-JEPA", "1-NN before", "minutes"
# Folders of DATA whose names differ from their stores'.
FOLDERS = {"sbu": "sbu_interaction"}

# What is scored, by the beginning of its result file's name.
KNN = {
    "knn-raw": "knn {run} --encoder raw",
    "knn-random-full": "knn {run} --encoder random --pool full",
    "knn-target-full": "knn {run} --encoder target --pool full",
}
JOINT = {
    "linear-raw": "linear {run} --encoder raw --pool joint",
    "linear-random-joint": "linear {run} --encoder random --pool joint",
    "linear-target-joint": "linear {run} --encoder target --pool joint",
}
MEAN = {
    "linear-random-mean": "linear {run} --encoder random --pool mean",
    "linear-target-mean": "linear {run} --encoder target --pool mean",
}
SMALL = "--recipe.name small"
FINETUNE = {
    "finetune-random": f"finetune {{run}} --encoder random --seeds {{seeds}} {SMALL} {{batch}}",
    "finetune-target": f"finetune {{run}} --seeds {{seeds}} {SMALL} {{batch}}",
}
TENTH = f"{SMALL} --ratio 0.1 --balanced --recipe.batch-size 32"
SEMI = {
    "semi0.1-balanced-random": f"semi {{run}} --encoder random --seeds {{seeds}} {TENTH}",
    "semi0.1-balanced-target": f"semi {{run}} --seeds {{seeds}} {TENTH}",
}
# These need one run of a set only: its data, and sizes for training from scratch.
ONCE = ("knn-raw", "linear-raw", "finetune-random", "semi0.1-balanced-random")
CONDITIONS = (
    *("run", "top1", "store", "split", "protocol", "encoder", "weights", "store_fingerprint"),
    *("trained_on", "train_clips", "test_clips", "recipe", "seeds", "device", "dtype", "torch"),
    *("threads", "top1_per_seed", "top1_best_epoch_per_seed", "features"),
)

# By set, row and column: one figure per seed.
Scores = dict[str, dict[str, dict[str, list[float]]]]


class Line(NamedTuple):
    """Runs that differ in their seed alone."""

    store: str
    train: str
    """Preset and flags."""
    splits: dict[str, str]
    """What is scored on, and the name of that set in the results; empty: the preset's split."""
    name: str = ""
    """Of the runs, before their seed; default: the store's."""
    seeds: tuple[int, ...] = (0, 1, 2)
    row: str = OURS
    batch: str = "--recipe.batch-size 32"
    """Flags of fine-tuning."""

    def run(self, work: Path, seed: int) -> Path:
        """Return the folder of a run."""
        return work / f"{self.name or self.store}-s{seed}"


def deviation(values: list[float]) -> str:
    """Mean, with the sample deviation where there are several seeds."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def counted(values: list[float]) -> str:
    """Mean and deviation, with the number of seeds where it is not three."""
    return deviation(values) + ("" if len(values) == 3 else f" ({len(values)})")


def ranged(values: list[float]) -> str:
    """Mean and range over seeds."""
    spread = f" [{min(values):.1f}-{max(values):.1f}]" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


@dataclass(frozen=True)
class Comparison:
    """A table: what is run for it, and how it is written."""

    name: str
    note: str
    """The text above the table."""
    lines: tuple[Line, ...]
    train: str
    """Flags of all its runs."""
    columns: dict[str, dict[str, str]]
    untrained: dict[str, str]
    """Rows of the encoders without pre-training."""
    cell: Callable[[list[float]], str]
    once: bool = True
    """Whether `ONCE` is scored with the first seed's run, not with each."""
    clips: bool = False
    """Whether a set's name is followed by how many clips it has."""
    conditions: tuple[str, ...] = CONDITIONS
    """What is kept of a result file."""
    titles: dict[str, str] = field(default_factory=dict)
    """Sets in the table, where the JSON has one key for set and row."""
    timed: bool = False
    """Whether the table has the training time and the 1-NN before training."""


# The recipe of the two older tables masked nine tenths; the preset's share has been tuned since.
MSR = "sjepa-nucla --data.split xsub --data.whiten 0.5 --optim.length 600"
EASY = "sjepa-nucla --data.split xsub --optim.length 300"
SBU = "sjepa-nucla --data.split fold{} --data.bodies 2 --optim.length 300"
CAMERA_3 = {"xview": "N-UCLA, camera 3 (464)", "xview_clean": "N-UCLA, clean (369)"}
FOLD = "SBU, mean of 5 folds"
REAL_DATA = Comparison(
    "real-data",
    "Top-1 %, mean [range] over seeds. Command: `{command}`.\n"
    "Raw coordinates have no pooling; their linear figure stands under joint-pooled.\n",
    lines=(
        Line("nucla", "sjepa-nucla", CAMERA_3),
        Line("msr_action3d", MSR, {"xsub": "MSR Action3D (273)"}),
        *(
            Line("sbu", SBU.format(fold), {f"fold{fold}": FOLD}, f"sbu-f{fold}", seeds=(0, 1))
            for fold in range(5)
        ),
    ),
    train="--mask.ratio 0.9 --compile",
    columns={
        "1-NN, un-pooled": KNN,
        "linear, joint-pooled": JOINT | {"linear-raw": "linear {run} --encoder raw"},
        "linear, mean-pooled": MEAN,
    },
    untrained={"raw": "raw coordinates", "random": "random encoder (own init)"},
    cell=ranged,
    conditions=(
        *("store", "split", "encoder", "pool", "protocol", "recipe", "training_seed", "weights"),
        *("run", "top1", "features"),
    ),
)
PROTOCOLS = Comparison(
    "protocols",
    "Top-1 % after the last epoch, mean ± deviation over 3 seeds or (that many), by the small\n"
    "recipes. Command: `{command}`. 1-NN: un-pooled tokens; linear:\n"
    "logistic regression, joint-pooled; fine-tune and 10 % (class-balanced): 240 steps of 32\n"
    "clips or all (N-UCLA fine-tune: 64). The random encoder is frozen in the first two\n"
    "columns and trained from scratch in the last two. The clean test part of N-UCLA has no\n"
    "clip of two of its ten classes. UTKinect and Florence 3D are easy: they show that a job\n"
    "runs. An empty cell has not been run.\n",
    lines=(
        Line(
            "nucla", "sjepa-nucla --compile", {"xview_clean": "N-UCLA, camera 3, clean"}, batch=""
        ),
        Line("msr_action3d", f"{MSR} --compile", {"xsub": "MSR Action3D"}),
        Line("utkinect", EASY, {"xsub": "UTKinect"}),
        Line("florence3d", EASY, {"xsub": "Florence 3D"}),
    ),
    train="--mask.ratio 0.9 --log.knn-every 0",
    columns={"1-NN": KNN, "linear": JOINT, "fine-tune": FINETUNE, "10 % of labels": SEMI},
    untrained={"raw": "raw coordinates", "random": "random encoder"},
    cell=counted,
    clips=True,
)
METHODS = {
    "sjepa": OURS,
    "skeleton2vec": "Skeleton2vec",
    "mamp": "MAMP",
    "skeletonmae": "SkeletonMAE",
}
OBJECTIVES = Comparison(
    "objectives",
    "Top-1 % of the presets `METHOD-nucla` and `METHOD-msr_action3d`, last epoch, mean ±\n"
    "deviation over the seeds. Command: `{command}`.{took}\n"
    "1-NN: un-pooled tokens, before: of each method's own initialisation; linear: logistic\n"
    "regression; fine-tune: the small recipe. The random encoder, S-JEPA's initialisation, is\n"
    "frozen but in the column fine-tune, where it is trained from scratch. Minutes are of\n"
    "pre-training by the clock, on one thread beside another such process.\n",
    lines=tuple(
        Line(data, f"{method}-{data}", {"": data}, f"{method}-{data}", (0,), row)
        for data in ("nucla", "msr_action3d")
        for method, row in METHODS.items()
    ),
    train="--resume auto --log.knn-every 0 --compile",
    columns={
        "1-NN": KNN,
        "linear, joint-pooled": JOINT,
        "linear, mean-pooled": MEAN,
        "fine-tune": FINETUNE,
    },
    untrained={"raw": "raw coordinates", "random": "random encoder"},
    cell=deviation,
    once=False,
    titles={"nucla": "N-UCLA, camera 3", "msr_action3d": "MSR Action3D, cross-subject"},
    timed=True,
)
CHEAPER = {
    OURS: "",
    "stream in bfloat16": "--objective.target-stream compute",
    "targets of every second step": "--objective.target-every 2",
}
TARGETS = Comparison(
    "targets",
    "Top-1 % on N-UCLA's validation split (camera 1 trains, camera 2 tests), 400 of the preset's\n"
    "2,400 steps, last epoch, mean ± deviation over the seeds. Command: `{command}`.\n"
    "1-NN: un-pooled tokens; linear: logistic regression.\n",
    lines=tuple(
        Line("nucla", f"sjepa-nucla {words}", {"val": "N-UCLA, val"}, f"targets-{i}", row=row)
        for i, (row, words) in enumerate(CHEAPER.items())
    ),
    train="--data.split val --optim.length 400 --runtime.dtype bfloat16 --log.knn-every 0",
    columns={"1-NN": KNN, "linear, joint-pooled": JOINT, "linear, mean-pooled": MEAN},
    untrained={"raw": "raw coordinates", "random": "random encoder"},
    cell=deviation,
    clips=True,
)
COMPARISONS = {table.name: table for table in (REAL_DATA, PROTOCOLS, OBJECTIVES, TARGETS)}


class Evaluation(NamedTuple):
    """One result: where it belongs, and the command that makes it."""

    line: Line
    seed: int
    split: str
    column: str
    run: Path
    file: Path | None
    """The result, where it is there."""
    command: list[str]


def evaluations(comparison: Comparison, work: Path) -> Iterator[Evaluation]:
    """List everything that is scored, the quick protocols first."""
    kinds = [(column, *kind) for column, of in comparison.columns.items() for kind in of.items()]
    for column, result, command in kinds:
        once = comparison.once and result in ONCE
        for line in comparison.lines:
            # Without pre-training the method does not matter; S-JEPA's runs stand for all.
            if "target" not in result and line.row != OURS:
                continue
            for seed in line.seeds[:1] if once else line.seeds:
                run, seeds = line.run(work, seed), line.seeds if once else (seed,)
                places = {"run": shlex.quote(str(run)), "seeds": " ".join(map(str, seeds))}
                words = shlex.split(command.format(**places, batch=line.batch))
                for split in line.splits:
                    more = ["--data.split", split] if split else []
                    file = next(
                        run.glob(f"results/{result}-{line.store}-{split or '*'}.json"), None
                    )
                    # A result over several seeds is made anew where these are others by now.
                    if file and "{seeds}" in command:
                        file = (
                            file if json.loads(file.read_text()).get("seeds") == [*seeds] else None
                        )
                    yield Evaluation(line, seed, split, column, run, file, words + more)


def commands(comparison: Comparison, data: Path, work: Path) -> dict[str, list[list[str]]]:
    """Return the arguments of the commands that are left, by module and in order."""
    stores, prepare, train = work / "stores", [], []
    for store in dict.fromkeys(line.store for line in comparison.lines):
        if not (stores / store).exists():
            raw = data / FOLDERS.get(store, store)
            prepare.append([store, "--raw", str(raw), "--out", str(stores / store)])
    for line in comparison.lines:
        for seed in line.seeds:
            run = line.run(work, seed)
            if not (run / "results" / "knn-before-after.json").exists():
                words = [*line.train.split(), "--data.root", str(stores / line.store)]
                words += ["--run", str(run), "--seed", str(seed), *comparison.train.split()]
                train.append(words)
    score = [found.command for found in evaluations(comparison, work) if found.file is None]
    return {"sjepa_fast.prepare": prepare, "sjepa_fast.train": train, "sjepa_fast.evaluate": score}


def execute(module: str, wanted: list[list[str]], jobs: int) -> None:
    """Run the commands of a module, `jobs` processes of one thread at a time.

    If one fails, the program ends after the others have run.
    """
    calls = [[sys.executable, "-m", module, *words] for words in wanted]
    if module == "sjepa_fast.evaluate":
        lines, many = list(map(shlex.join, wanted)), EVALUATIONS_PER_PROCESS
        parts = [lines[start : start + many] for start in range(0, len(lines), many)]
        calls = [[sys.executable, str(MANY), *part] for part in parts]
    out = subprocess.DEVNULL if module == "sjepa_fast.train" else None
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def failed(call: list[str]) -> bool:
        return subprocess.run(call, stdout=out, env=environment, check=False).returncode != 0

    with ThreadPoolExecutor(jobs) as pool:
        count = sum(pool.map(failed, calls))
    if count:
        sys.exit(f"{count} processes of {module} failed; the same call tries them again")


def training_seconds(run: Path) -> float:
    """Seconds of training, from the steps' own clock in `metrics.jsonl`."""
    total, before = 0.0, 0
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "ms_per_step" in row:
            total += row["ms_per_step"] * (row["step"] - before) / 1000
            before = row["step"]
    return total


def collect(comparison: Comparison, work: Path) -> dict[str, Any]:
    """Return scores by set, row and column, and what every result file says of its conditions."""
    folds: dict[tuple[str, str, str, int], list[list[float]]] = {}
    files: list[dict[str, Any]] = []
    for line, seed, split, column, run, file, _ in evaluations(comparison, work):
        if file is None:
            continue
        result = json.loads(file.read_text())
        value = result["top1_k1"] if result["protocol"] == "knn" else result["top1"]
        values = result.get("top1_per_seed", [value])
        name = line.splits[split]
        if comparison.clips:
            name += f" ({result['train_clips']} / {result['test_clips']})"
        row = comparison.untrained.get(result["encoder"], line.row)
        folds.setdefault((name, row, column, seed), []).append(values)
        # One file may hold several seeds where these are among the conditions.
        several = "seeds" in comparison.conditions
        stated = {**result, "run": run.name, "top1": values if several else value}
        files.append({key: stated[key] for key in comparison.conditions if key in stated})
    scores: Scores = {}
    for (name, row, column, _), parts in folds.items():
        columns = scores.setdefault(name, {}).setdefault(row, {})
        columns.setdefault(column, []).extend(map(statistics.mean, zip(*parts, strict=True)))
    command = f"python -m benchmarks.accuracy {comparison.name} --data DATA"
    if comparison.lines != COMPARISONS[comparison.name].lines:
        command += f" --seeds {' '.join(map(str, comparison.lines[0].seeds))}"
    content: dict[str, Any] = {"command": command, "scores": scores, "files": files}
    if comparison.timed:
        add_times(comparison, work, content)
    if comparison.titles:
        flat = {f"{name}: {row}": of for name, rows in scores.items() for row, of in rows.items()}
        content["scores"] = flat
    return content


def add_times(comparison: Comparison, work: Path, content: dict[str, Any]) -> None:
    """Add minutes of training and 1-NN before it to the scores, and the time of the first call."""
    for line in comparison.lines:
        for run in [line.run(work, seed) for seed in line.seeds]:
            if not (run / "metrics.jsonl").exists():
                continue
            (name,) = line.splits.values()
            columns = content["scores"].setdefault(name, {}).setdefault(line.row, {})
            columns.setdefault(MINUTES, []).append(training_seconds(run) / 60)
            before = run / "results" / "knn-before.json"
            if before.exists():
                columns.setdefault(BEFORE, []).append(json.loads(before.read_text())["top1"])
    clock = work / "clock"
    if clock.exists():
        spent, jobs, *seeds = map(int, clock.read_text().split())
        content |= {"seconds": spent, "jobs": jobs, "timed_seeds": seeds}


def table(comparison: Comparison, content: dict[str, Any]) -> str:
    """Format the scores as Markdown."""
    scores: Scores = content["scores"]
    if comparison.titles:
        scores = {}
        for key, found in content["scores"].items():
            name, row = key.split(": ")
            scores.setdefault(name, {})[row] = found
    names = [name for line in comparison.lines for name in line.splits.values()]
    rows = dict.fromkeys([*comparison.untrained.values(), *(line.row for line in comparison.lines)])
    columns = [BEFORE, *comparison.columns, MINUTES] if comparison.timed else comparison.columns
    text = [
        f"| set{' (train / test clips)' * comparison.clips} | features | {' | '.join(columns)} |",
        f"| --- | --- |{' ---: |' * len(columns)}",
    ]

    def place(name: str) -> int:
        # The name may be followed by the number of clips.
        return next(i for i, known in enumerate(names) if name.startswith(known))

    for name in sorted(scores, key=place):
        for row in rows:
            found = scores[name].get(row, {})
            cells = [comparison.cell(found[name]) if name in found else "" for name in columns]
            text.append(f"| {comparison.titles.get(name, name)} | {row} | {' | '.join(cells)} |")
    return "\n".join(text)


def widths(content: dict[str, Any]) -> str:
    """Say how many numbers per clip each frozen probe got, by set and pooling; empty if unknown."""
    found: dict[str, dict[str, int]] = {}
    for file in content["files"]:
        if file.get("features"):
            found.setdefault(file["store"], {})[file["recipe"]["pool"] or "raw"] = file["features"]
    sets = [
        f"{store}: {', '.join(f'{pool} {count:,}' for pool, count in sorted(of.items()))}"
        for store, of in sorted(found.items())
    ]
    return f"\nFeature width, numbers per clip by pooling: {'; '.join(sets)}.\n" if sets else ""


def page(comparison: Comparison, content: dict[str, Any]) -> str:
    """Return the note and the table below it."""
    took = ""
    if "seconds" in content:
        seeds, minutes = " ".join(map(str, content["timed_seeds"])), content["seconds"] / 60
        took = f"\nThe first call, seed {seeds}, took {minutes:.1f} minutes,"
        took += f" {content['jobs']} processes of one thread at a time."
    note = comparison.note.format(command=content["command"], took=took)
    return f"{note}\n{table(comparison, content)}\n{widths(content)}"


def compare(comparison: Comparison, data: Path, work: Path, out: Path, jobs: int = 2) -> None:
    """Do what is left to do, and write the JSON and the table into the folder `out`."""
    began, fresh = time.monotonic(), not work.exists()
    work.mkdir(parents=True, exist_ok=True)
    for module, wanted in commands(comparison, data, work).items():
        execute(module, wanted, jobs)
    if fresh and comparison.timed:
        clock = [round(time.monotonic() - began), jobs, *comparison.lines[0].seeds]
        (work / "clock").write_text(" ".join(map(str, clock)) + "\n")
    content = collect(comparison, work)
    out.mkdir(parents=True, exist_ok=True)
    stem = comparison.name.replace("-", "_")
    (out / f"{stem}.json").write_text(json.dumps(content, indent=1) + "\n")
    (out / f"{stem}.md").write_text(page(comparison, content))
    print(table(comparison, content))


def main() -> None:
    """Run the comparison named on the command line, or list what is left of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("comparison", choices=COMPARISONS)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sets")
    parser.add_argument("--work", type=Path, help="default: runs/objectives, else runs/real")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of JSON and table")
    parser.add_argument("--seeds", type=int, nargs="+", help="in place of the comparison's own")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--dry-run", action="store_true", help="list the commands that are left")
    asked = parser.parse_args()
    comparison = COMPARISONS[asked.comparison]
    if asked.seeds:
        lines = tuple(line._replace(seeds=tuple(asked.seeds)) for line in comparison.lines)
        comparison = replace(comparison, lines=lines)
    work = asked.work or Path("runs") / ("objectives" if comparison.timed else "real")
    if asked.dry_run:
        for module, wanted in commands(comparison, asked.data, work).items():
            for words in wanted:
                print(shlex.join(["python", "-m", module, *words]))
    else:
        compare(comparison, asked.data, work, asked.out, asked.jobs)


if __name__ == "__main__":
    main()
