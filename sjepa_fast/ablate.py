# SPDX-License-Identifier: Apache-2.0
"""`python -m sjepa_fast.ablate PRESET --axis KEY --values A B --run DIR`: runs and their table.

Every value and seed is trained as `sjepa_fast.train` trains it, in a run folder of its own under
DIR, and scored by the trainer's 1-NN. Finished runs are not repeated.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sjepa_fast import cli
from sjepa_fast.config.files import (
    RENAMED,
    apply_values,
    check_resumable,
    leaves,
    parse_train,
    read_config,
    to_dict,
)
from sjepa_fast.config.plain_yaml import plain_yaml
from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.config.validation import validate
from sjepa_fast.data.facts import facts_of
from sjepa_fast.errors import InputError, nearest
from sjepa_fast.names import file_name, printable, say
from sjepa_fast.opening import check_fields, read_json
from sjepa_fast.runtime.checkpoint import latest_checkpoint
from sjepa_fast.runtime.files import write_json, write_text
from sjepa_fast.runtime.logging import read_metrics
from sjepa_fast.train import train
from sjepa_fast.training.continuing import origin_of
from sjepa_fast.viz.saving import save_pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_USAGE = """usage: {command} [PRESET] --axis KEY --values A B ... --run DIR

--axis KEY          configuration key, dotted (mask.ratio) or short (ratio, mask_ratio)
--values A B ...    its values; each is trained and scored in a folder of its own under DIR
--seeds 0 1 2       seeds of each value (default: the preset's); several give mean and range
--run DIR           where runs, ablation.md, ablation.json and ablation.png go

All other flags are those of sjepa_fast.train and hold for every run:
"""

# Keys that name a run instead of setting it up.
_NOT_AN_AXIS = ("run", "resume", "seed")
# The file that a run writes last.
_SCORE = Path("results/knn-before-after.json")
_MEASURED = {"pool": (str,), "before": (float,), "after": (float,)}


@dataclass(frozen=True)
class Ablation:
    """A grid: one configuration key, its values, and the configuration of every run."""

    axis: str
    folder: Path
    cells: dict[str, list[TrainConfig]]


def axis_named(name: str) -> str:
    """Return the dotted key that a name means: `mask.ratio`, `mask_ratio`, or `ratio` where unique.

    Raises InputError if no key has this name (the nearest are listed), or several have.
    """
    keys = [key for key in leaves(to_dict(TrainConfig())) if key not in _NOT_AN_AXIS]
    wanted = name.replace("-", "_")
    for (section, old), new in RENAMED.items():
        if wanted in (old, f"{section}.{old}", f"{section}_{old}") and new.key != old:
            raise InputError("axis", name, f"it is now {section}.{new.key}")
    if wanted in keys:
        return wanted
    found = [key for key in keys if wanted in (key.replace(".", "_"), key.rpartition(".")[2])]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError("axis", f"{name} means several keys", f"choose {' or '.join(found)}")
    shorts = {key.rpartition(".")[2]: key for key in keys}
    raise InputError("axis", f"{name} is no key", nearest(wanted, [*keys, *shorts]))


def _take_list(args: list[str], flag: str) -> list[str]:
    """Take `flag a b c` out of the arguments: all that follows up to the next flag."""
    if flag not in args:
        return []
    start = args.index(flag)
    end = start + 1
    while end < len(args) and not args[end].startswith("--"):
        end += 1
    values = args[start + 1 : end]
    del args[start:end]
    if not values:
        raise InputError(flag, "has no value", "put at least one after it")
    if flag in args:
        raise InputError(flag, "is given twice", "put all values behind one")
    for i, value in enumerate(values):
        if value in values[:i]:
            raise InputError(flag, f"{value} is given twice", "give each value once")
    return values


def parse_ablation(argv: list[str]) -> Ablation:
    """Resolve the command line to the configuration of every run, all of them checked.

    Returns the grid. Raises InputError on anything that cannot work, before any run begins.
    """
    args = list(argv)
    if "--help" in args or "-h" in args:
        say(_USAGE.format(command=cli.command("sjepa_fast.ablate")))
    axes, values = _take_list(args, "--axis"), _take_list(args, "--values")
    seeds = _take_list(args, "--seeds")
    base = parse_train(args, facts_of, origin_of)
    if len(axes) != 1 or not values:
        raise InputError("axis", " ".join(axes) or "not given", "add --axis KEY --values A B")
    if not any(arg == "--run" or arg.startswith("--run=") for arg in args):
        raise InputError("run", "not given", "add --run DIR")
    axis = axis_named(axes[0])
    cells: dict[str, list[TrainConfig]] = {}
    for text in values:
        cells[text] = []
        for seed in seeds or [str(base.seed)]:
            if not re.fullmatch(r"\d+", seed):
                raise InputError("seeds", seed, "give whole numbers, 0 or more")
            config = apply_values(base, _nested(base, axis, text), "--values")
            run = base.run / file_name(f"{axis}-{text}-seed{seed}")
            config = dataclasses.replace(config, run=run, seed=int(seed), resume="auto")
            validate(config)
            cells[text].append(config)
    runs = [config.run for configs in cells.values() for config in configs]
    if len(set(runs)) < len(runs):
        raise InputError("values", " ".join(values), "choose values with different names")
    return Ablation(axis, base.run, cells)


def _nested(base: TrainConfig, axis: str, text: str) -> dict[str, Any]:
    now: Any = to_dict(base)
    for part in axis.split("."):
        now = now[part]
    # YAML would read `on` as true, but for some keys it is a word.
    try:
        tree: Any = text if isinstance(now, str) else plain_yaml(text)
    except ValueError as error:
        raise InputError("values", f"{text} ({error})", "give plain values") from error
    if isinstance(tree, dict | list):
        raise InputError("values", text, "give plain values")
    for part in reversed(axis.split(".")):
        tree = {part: tree}
    return dict(tree)


def finished(config: TrainConfig) -> bool:
    """Whether a run has been trained and scored with this configuration.

    Raises InputError if the folder holds a run with other settings.
    """
    if not (config.run / _SCORE).is_file():
        return False
    before = read_config(config.run / "config.yaml")
    # The embedded synthetic store is filled in when the run begins.
    root = before.data.root if config.data.root is None else config.data.root
    data = dataclasses.replace(config.data, root=root)
    check_resumable(dataclasses.replace(config, data=data), before)
    return True


def measured(config: TrainConfig) -> dict[str, object]:
    """Return what a finished run measured: scores, speed, health.

    Raises InputError if its files do not say that.
    """
    score = read_json("run", config.run / _SCORE)
    check_fields("run", config.run / _SCORE, score, _MEASURED)
    rows = [row for row in read_metrics(config.run) if "ms_per_step" in row]
    # The first interval holds warm-up and compilation.
    times = [row["ms_per_step"] for row in (rows[1:] or rows)]
    panel: dict[str, float] = next((row for row in reversed(rows) if "effective_rank" in row), {})
    return {
        "seed": config.seed,
        "run": config.run.name,
        "step": latest_checkpoint(config.run).step,
        "pool": score["pool"],
        "knn_before": score["before"],
        "knn_after": score["after"],
        "ms_per_step": statistics.median(times) if times else math.nan,
        "effective_rank": panel.get("effective_rank", math.nan),
        "collapsed": bool(panel.get("collapsed", 0.0)),
    }


def spread(numbers: list[float], digits: int) -> str:
    """Return the mean, followed by the range where there are several numbers."""
    mean = f"{statistics.mean(numbers):.{digits}f}"
    if len(numbers) == 1:
        return mean
    return f"{mean} [{min(numbers):.{digits}f}-{max(numbers):.{digits}f}]"


def table(axis: str, cells: dict[str, list[dict[str, Any]]]) -> str:
    """Return the grid as a Markdown table, one row per value."""
    first = next(iter(cells.values()))
    seeds = ", ".join(str(run["seed"]) for run in first)
    many = "mean [range] over seeds" if len(first) > 1 else "one seed,"
    lines = [
        f"1-NN is top-1 % of the encoder used downstream, {first[0]['pool']} pooling, before and "
        f"after {first[0]['step']} steps; {many} {seeds}.",
        "",
        f"| {axis} | 1-NN before | 1-NN after | change | ms / step | rank |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for value, runs in cells.items():
        before, after, *others = (
            spread([run[key] for run in runs], 1)
            for key in ("knn_before", "knn_after", "ms_per_step", "effective_rank")
        )
        change = statistics.mean(run["knn_after"] - run["knn_before"] for run in runs)
        columns = [before, after, f"{change:+.1f}", *others]
        if any(run["collapsed"] for run in runs):
            columns[-1] += " (collapsed)"
        cell = printable(value).replace("|", "\\|")
        lines.append(f"| {cell} | {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def ablate(ablation: Ablation) -> int:
    """Train the runs that are not finished, then write the table, its numbers and the plot.

    Returns 0, or 130 when it was interrupted; the same command resumes there. Raises InputError if
    it runs under a launcher, or the split has no clips to score.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        fix = "run it in one process, without a launcher"
        raise InputError("WORLD_SIZE", os.environ["WORLD_SIZE"], fix)
    todo = [config for configs in ablation.cells.values() for config in configs]
    waiting = [config for config in todo if not finished(config)]
    for number, config in enumerate(waiting, start=1):
        say(f"run {number} of {len(waiting)}: {config.run}")
        # Compiled code of earlier runs counts towards the compiler's limit on variants.
        torch.compiler.reset()
        code = train(config)
        if code:
            return code
        if not (config.run / _SCORE).is_file():
            fix = "choose a split whose training and test clips have labels"
            raise InputError("data.split", f"{config.data.split} has no test clip to score", fix)
    cells = {text: [measured(c) for c in configs] for text, configs in ablation.cells.items()}
    folder = ablation.folder
    text = table(ablation.axis, cells)
    one = todo[0].run
    write_text(folder / "ablation.md", text)
    conditions = {
        "axis": ablation.axis,
        "data": read_json("run", one / "data.json"),
        "environment": read_json("run", one / "env.json"),
    }
    write_json(folder / "ablation.json", {**conditions, "values": cells})

    def figure() -> Figure:
        from sjepa_fast.viz.ablation import ablation_figure

        return ablation_figure(ablation.axis, cells)

    pictures = save_pictures(folder, {"ablation.png": figure})
    say(text.rstrip("\n"))
    say(f"written: {folder}/ablation.md, {folder}/ablation.json; {pictures}")
    return 0


def main(argv: list[str] | None = None) -> None:
    """Console entry: exit with 0, 1, 2 (usage) or 130 (interrupted)."""
    cli.run_main(lambda: ablate(parse_ablation(cli.arguments(argv))))


if __name__ == "__main__":
    main()
