"""What is compared: sets, methods and protocols, and the commands that score them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.executor import Job

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Set:
    """A set, and what is scored of it."""

    title: str
    folder: str
    """Of the raw data, in the folder of all."""
    splits: tuple[str, ...]
    """Several are folds, over which a seed's scores are averaged."""
    part: str = ""
    """A split of the same training clips and some of the test clips, which has a table too."""
    part_title: str = ""


# The sets that tell methods apart come first (README of the data).
SETS = {
    "nucla": Set("N-UCLA, camera 3", "nucla", ("xview",), "xview_clean",
                 "N-UCLA, camera 3, without copies of training clips"),
    "msr_action3d": Set("MSR Action3D, cross-subject", "msr_action3d", ("xsub",)),
    "sbu": Set("SBU, mean of 5 folds, two persons", "sbu_interaction",
               tuple(f"fold{fold}" for fold in range(5))),
    "bandai_namco": Set("Bandai-Namco 2, across styles", "bandai_namco", ("xstyle",)),
    "utkinect": Set("UTKinect, cross-subject", "utkinect", ("xsub",)),
    "florence3d": Set("Florence 3D, cross-subject", "florence3d", ("xsub",)),
    "ui_prmd": Set("UI-PRMD, cross-subject", "ui_prmd", ("xsub",)),
}  # fmt: skip
# What a pool of all sets is made of.
FIRST_SPLITS = {store: kind.splits[0] for store, kind in SETS.items()}
# What is pre-trained, with its row's title, by a preset that fits itself to the store.
PRESET = "{}-small"
METHODS = {
    "sjepa": "S-JEPA",
    "multiview": "Multi-view (SIGReg)",
    "mamp": "MAMP",
    "skeletonmae": "SkeletonMAE",
    "skeleton2vec": "Skeleton2vec",
    "pooled": "S-JEPA, on all sets at once",
}
# Pre-trained on a pool of the first split of every set, whichever are scored, and so on that alone.
POOLED = "pooled"
POOL = "pool"
# Joints that all sets have or can fill, and the faster of the two frame rates that are known.
POOL_WORDS = "--layout kinect20 --resample 30"
RAW, RANDOM, SCRATCH = "raw", "random", "scratch"
ROWS = {
    RAW: "raw coordinates",
    RANDOM: "random encoder, frozen",
    SCRATCH: "from scratch",
    **METHODS,
}
# The method whose run stands for all where nothing of a pre-training is used.
FIRST = "sjepa"


@dataclass(frozen=True)
class Column:
    """A protocol: its title, flags, and the beginning of its result's name."""

    title: str
    protocol: str
    words: str
    result: str
    """With {encoder}."""
    trains: bool = False
    """Whether it trains the encoder, as from scratch."""


# The strong recipe as it was when the tables were made: flags of all that trains.
STRONG = (
    "--recipe.length 1000 --recipe.warmup 50 --recipe.score-every 250 --recipe.token-drop 0.5 "
    "--recipe.mixup 0.2 --recipe.pool pyramid"
)
# The quick ones first.
COLUMNS = {
    "knn": Column("1-NN, full", "knn", "--pool full --scaling pca", "knn-{encoder}-full-pca"),
    "knn_pyramid": Column("1-NN, pyramid", "knn", "--pool pyramid --scaling pca",
                          "knn-{encoder}-pyramid-pca"),
    **{
        pool: Column(f"linear, {pool}", "linear", f"--pool {pool}", f"linear-{{encoder}}-{pool}")
        for pool in ("joint", "pyramid", "full")
    },
    "finetune": Column("fine-tune", "finetune", "", "finetune-{encoder}", trains=True),
    "semi": Column("10 % of labels", "semi", "--ratio 0.1 --balanced",
                   "semi0.1-balanced-{encoder}", trains=True),
}  # fmt: skip
# Coordinates have no pooling, and so one result by each frozen protocol.
RAW_RESULTS = {"knn": "knn-raw-pca", "full": "linear-raw"}
# Nothing of the training but its last weights is used. Compiling takes longer than these runs.
TRAIN = (
    "--resume auto --compile off --log.knn-every 0 --log.every 100 --log.panel-every 1000000 "
    "--checkpoint.every 1000000"
)


@dataclass(frozen=True)
class Cell:
    """One score: a set's split, a row and column of its table, and a seed."""

    store: str
    split: str
    row: str
    column: str
    seed: int
    job: Job

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """Name the cell."""
        return self.store, self.split, self.row, self.column, self.seed


@dataclass(frozen=True)
class Plan:
    """Cells in the order in which they are wanted, and what has to be made before them."""

    cells: tuple[Cell, ...]
    before: dict[str, Job]
    """Preparations and pre-trainings, by name."""

    def jobs(self, have: set[tuple[str, str, str, str, int]]) -> list[Job]:
        """List the jobs of the cells that one has not, each after what it needs."""
        found: dict[str, Job] = {}

        def add(job: Job) -> None:
            for need in job.needs:
                add(self.before[need])
            found.setdefault(job.name, job)

        for cell in self.cells:
            if cell.key not in have:
                add(cell.job)
        return list(found.values())


def make_plan(
    data: Path,
    work: Path,
    *,
    sets: dict[str, Set] = SETS,
    methods: dict[str, str] = METHODS,
    columns: dict[str, Column] = COLUMNS,
    seeds: tuple[int, ...] = SEEDS,
    more: str = "",
    frozen: str = "",
    tuning: str = STRONG,
) -> Plan:
    """List everything, seed by seed, so that an early end leaves whole rows of fewer seeds.

    `more` are flags of every pre-training, `frozen` of every score of frozen features, and `tuning`
    of all that trains on labels.
    """
    before: dict[str, Job] = {}
    cells: list[Cell] = []
    columns = {
        name: replace(column, words=f"{column.words} {tuning if column.trains else frozen}")
        for name, column in columns.items()
    }
    for seed in seeds:
        for store, kind in sets.items():
            prepare = _prepare(store, kind, data, work)
            before[prepare.name] = prepare
            for split in kind.splits:
                place = ("--data.root", str(work / "stores" / store), "--data.split", split)
                found: list[Cell] = []
                for method in methods:
                    if method == POOLED and split != kind.splits[0]:
                        continue
                    if method == POOLED:
                        before |= {job.name: job for job in pool_jobs(data, work, FIRST_SPLITS)}
                        train = _pretrain_pooled(seed, work, more)
                    else:
                        train = _pretrain(method, store, split, seed, work, place, more)
                    before[train.name] = train
                    found += _scores(method, "target", store, split, seed, train, place, columns)
                    if method == FIRST:
                        for row in (RANDOM, RAW)[: 2 if seed == seeds[0] else 1]:
                            found += _scores(row, row, store, split, seed, train, place, columns)
                        scratch = _scratch(store, split, seed, work, place, columns)
                        before[scratch.name] = scratch
                        found += _scores(
                            SCRATCH, RANDOM, store, split, seed, scratch, place, columns
                        )
                # What needs no pre-training keeps the processes busy until the first one has ended.
                cells += sorted(found, key=lambda cell: cell.row != SCRATCH)
    return Plan(tuple(cells), before)


def _prepare(store: str, kind: Set, data: Path, work: Path) -> Job:
    out = work / "stores" / store
    words = (store, "--raw", str(data / kind.folder), "--out", str(out))
    return Job(f"prepare-{store}", "sjepa_fast.prepare", words, out / "store.json")


def pool_jobs(data: Path, work: Path, splits: dict[str, str], name: str = POOL) -> list[Job]:
    """List the jobs that make a pool of a split of each set: every set's store, and their merge."""
    stores = [_prepare(store, SETS[store], data, work) for store in splits]
    out = work / "stores" / name
    paths = (str(work / "stores" / store) for store in splits)
    chosen = (f"{store}={split}" for store, split in splits.items())
    words = ("merge", *paths, *shlex.split(POOL_WORDS), "--split", *chosen, "--out", str(out))
    needs = tuple(job.name for job in stores)
    return [*stores, Job(name, "sjepa_fast.prepare", words, out / "store.json", needs)]


def _pretrain_pooled(seed: int, work: Path, more: str) -> Job:
    run = work / "runs" / f"{POOLED}-s{seed}"
    place = ("--data.root", str(work / "stores" / POOL), "--run", str(run), "--seed", str(seed))
    words = ("sjepa-pool", *place, *shlex.split(TRAIN), *shlex.split(more))
    end = run / "results" / "knn-before-after.json"
    return Job(run.name, "sjepa_fast.train", words, end, (POOL,))


def _run(method: str, store: str, split: str, seed: int, work: Path) -> Path:
    return work / "runs" / f"{method}-{store}-{split}-s{seed}"


def _pretrain(
    method: str,
    store: str,
    split: str,
    seed: int,
    work: Path,
    place: tuple[str, ...],
    more: str,
) -> Job:
    run = _run(method, store, split, seed, work)
    flags = (*shlex.split(TRAIN), *shlex.split(more))
    words = (PRESET.format(method), *place, "--run", str(run), "--seed", str(seed), *flags)
    end = run / "results" / "knn-before-after.json"
    return Job(run.name, "sjepa_fast.train", words, end, (f"prepare-{store}",))


def _scratch(
    store: str,
    split: str,
    seed: int,
    work: Path,
    place: tuple[str, ...],
    columns: dict[str, Column],
) -> Job:
    run = _run(SCRATCH, store, split, seed, work)
    preset = ("--preset", PRESET.format(FIRST), "--seeds", str(seed))
    recipe = columns["finetune"].words if "finetune" in columns else ""
    words = ("supervised", str(run), *place, *preset, *shlex.split(recipe))
    end = run / "results" / f"supervised-{store}-{split}.json"
    return Job(run.name, "sjepa_fast.evaluate", words, end, (f"prepare-{store}",))


def _scores(
    row: str,
    encoder: str,
    store: str,
    split: str,
    seed: int,
    run: Job,
    place: tuple[str, ...],
    columns: dict[str, Column],
) -> Iterator[Cell]:
    """List the cells of a row; `run` is the job that makes the folder that is scored."""
    folder = run.file.parent.parent
    for name, column in columns.items():
        if column.trains != (row == SCRATCH) and row in (RAW, RANDOM, SCRATCH):
            continue
        result = column.result.format(encoder=encoder)
        if row == RAW:
            if name not in RAW_RESULTS:
                continue
            result = RAW_RESULTS[name]
        if row == SCRATCH and name == "finetune":
            # The run itself is the score.
            yield Cell(store, split, row, name, seed, run)
            continue
        words = [column.protocol, str(folder), *place, "--encoder", encoder]
        words += shlex.split(column.words)
        words += ["--seeds", str(seed)] if column.trains else ["--no-baselines"]
        file = folder / "results" / f"{result}-{store}-{split}.json"
        job = Job(
            f"{row}-{store}-{split}-s{seed}-{name}",
            "sjepa_fast.evaluate",
            tuple(words),
            file,
            (run.name,),
        )
        yield Cell(store, split, row, name, seed, job)
