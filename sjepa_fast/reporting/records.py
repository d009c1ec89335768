# SPDX-License-Identifier: Apache-2.0
"""What run folders say of themselves, with runs that differ in the seed alone folded into one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sjepa_fast.config.files import leaves, to_dict, to_yaml
from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.doctor import Records, findings, read_records
from sjepa_fast.errors import InputError
from sjepa_fast.names import printable
from sjepa_fast.opening import check_fields, read_json
from sjepa_fast.reporting.curves import PANELS, SCORES
from sjepa_fast.results import Score, read_scores
from sjepa_fast.training.flops import step_flops

# Keys that name a run or say how it began.
NOT_A_SETTING = ("run", "resume", "seed")
MORE_PANELS = (
    ("target_entropy", "Entropy of the target softmax"),
    ("grad_norm", "Gradient norm"),
    ("clips_per_second", "Clips per second"),
    ("gpu_mb", "GPU memory, MB"),
)
# Of a curve; a phone has some four hundred pixels across.
MOST_POINTS = 300
Confusion = tuple[list[str], list[list[int]]]


@dataclass(frozen=True)
class Run:
    """The records of one run."""

    folder: Path
    records: Records
    data: dict[str, Any]
    environment: dict[str, Any]
    profile: dict[str, Any] | None
    scores: list[Score]
    raw: float | None
    """1-NN of raw coordinates, in percent."""
    confusion: Confusion | None
    """Class names, and (true class, predicted class, clips) for all pairs that occur."""

    @property
    def config(self) -> TrainConfig:
        """The run's configuration."""
        return self.records.config

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Values by dotted key, without those that may differ between seeds of one setting."""
        found = leaves(to_dict(self.config))
        return {key: value for key, value in found.items() if key not in NOT_A_SETTING}


def read_run_records(folder: Path) -> Run:
    """Read a run folder; raises InputError if it holds no run, or its records are damaged."""
    records = read_records(folder)
    if not records.rows:
        raise InputError("run", f"{folder} has logged no step", "train it first")
    try:
        scores = read_scores(folder)
    except InputError:
        scores = []
    return Run(
        folder=folder,
        records=records,
        data=read_json("run", folder / "data.json"),
        environment=_optional(folder / "env.json") or {},
        profile=_profile(folder / "profile" / "profile.json"),
        scores=scores,
        raw=_raw(folder / SCORES),
        confusion=_confusion(folder / SCORES),
    )


def _optional(path: Path) -> dict[str, Any] | None:
    return read_json("run", path) if path.exists() else None


def _profile(path: Path) -> dict[str, Any] | None:
    profile = _optional(path)
    if profile is not None:
        check_fields("run", path, profile, {"seconds": (dict,), "peak_mib": (float,)})
        check_fields("run", path, profile["seconds"], dict.fromkeys(profile["seconds"], (float,)))
    return profile


def _raw(path: Path) -> float | None:
    found = _optional(path)
    if found is None or found.get("raw") is None:
        return None
    check_fields("run", path, found, {"raw": (float,)})
    return float(found["raw"])


def _confusion(path: Path) -> Confusion | None:
    """Read the pairs of classes that the run counted; older versions did not write them."""
    found = _optional(path)
    if found is None or "confusion" not in found:
        return None
    check_fields("run", path, found, {"classes": (list,), "confusion": (list,)})
    names, cells = found["classes"], found["confusion"]
    count = len(names)
    for cell in cells:
        whole = isinstance(cell, list) and len(cell) == 3 and all(type(v) is int for v in cell)
        if not whole or not (0 <= cell[0] < count and 0 <= cell[1] < count and cell[2] > 0):
            value = f"{path} has {cell!r:.60} in confusion"
            raise InputError("run", value, "expected true class, predicted class, clips")
    return [printable(name, 60) for name in names], cells


def folded(runs: Sequence[Run]) -> list[list[Run]]:
    """Group runs whose settings are the same, in the order in which they are given."""
    groups: list[list[Run]] = []
    for run in runs:
        same = (group for group in groups if group[0].settings == run.settings)
        group = next(same, None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    return groups


def differing(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Return the keys whose values are not the same in all groups."""
    settings = [group[0].settings for group in groups]
    return [key for key in settings[0] if len({str(s[key]) for s in settings}) > 1]


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean, and its standard error over runs where there are several."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.mean(values), error


def described(group: Sequence[Run], name: str) -> dict[str, Any]:
    """Return all that a page shows of the runs of one setting, as plain values."""
    first = group[0]
    return {
        "name": printable(name, 200),
        "runs": [printable(run.folder.resolve().name, 120) for run in group],
        "seeds": [run.config.seed for run in group],
        "objective": first.config.objective.kind,
        "store": printable(first.data.get("store"), 120),
        "split": first.config.data.split,
        "steps": max(run.records.steps for run in group),
        "knn": _folded_knn(group),
        "curves": _curves(group),
        "scores": _scores(group),
        "confusion": _added(group),
        "speed": _speed(group),
        "passes": _passes(first),
        "findings": _findings(group),
        "environment": {
            printable(key, 40): printable(_words(value), 400)
            for key, value in first.environment.items()
            if value is not None
        },
        "config": printable_lines(to_yaml(first.config)),
    }


def printable_lines(text: str) -> str:
    """Return lines in which nothing hides."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _words(value: object) -> object:
    return " ".join(map(str, value)) if isinstance(value, list) else value


def _folded_knn(group: Sequence[Run]) -> dict[str, Any] | None:
    pairs = [run.records.scores for run in group if run.records.scores is not None]
    if not pairs:
        return None
    before, after = zip(*pairs, strict=True)
    return {
        "pool": group[0].config.eval.online_pool,
        "before": mean_and_error(before),
        "after": mean_and_error(after),
        "raw": group[0].raw,
        "runs": len(pairs),
    }


def _curves(group: Sequence[Run]) -> list[dict[str, Any]]:
    found = []
    for key, title in (*PANELS, *MORE_PANELS):
        columns = [dict(run.records.column(key)) for run in group]
        steps = sorted(set.intersection(*map(set, columns)))
        if len(steps) < 2:
            # A dot is no curve; the scores at the end are in their table.
            continue
        if len(steps) > MOST_POINTS:
            kept = np.linspace(0, len(steps) - 1, MOST_POINTS).round().astype(int)
            steps = [steps[i] for i in kept]
        points = [mean_and_error([column[step] for column in columns]) for step in steps]
        curve: dict[str, Any] = {"key": key, "title": title, "steps": steps}
        curve["mean"] = [_short(mean) for mean, _ in points]
        if len(group) > 1:
            curve["error"] = [_short(error or 0.0) for _, error in points]
        found.append(curve)
    return found


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _scores(group: Sequence[Run]) -> list[dict[str, Any]]:
    by_name: dict[str, list[Score]] = {}
    for run in group:
        for score in run.scores:
            by_name.setdefault(score.name, []).append(score)
    rows = []
    for name, scores in by_name.items():
        mean, error = mean_and_error([score.headline for score in scores])
        beside = {}
        for label in {label for score in scores for label in score.beside}:
            others = [score.beside[label] for score in scores if label in score.beside]
            beside[printable(label, 40)] = statistics.mean(others)
        rows.append(
            {
                "name": printable(name, 120),
                "features": scores[0].features,
                "mean": mean,
                "error": scores[0].error if error is None else error,
                "runs": len(scores),
                "beside": beside,
            }
        )
    return rows


def _added(group: Sequence[Run]) -> dict[str, Any] | None:
    """Add the confusion matrices of runs that have the same classes as the first that has any."""
    found = [run.confusion for run in group if run.confusion is not None]
    if not found:
        return None
    names, counts = found[0][0], dict[tuple[int, int], int]()
    for others, cells in found:
        if others == names:
            for true, predicted, clips in cells:
                counts[true, predicted] = counts.get((true, predicted), 0) + clips
    return {"classes": names, "cells": [[*pair, n] for pair, n in sorted(counts.items())]}


def _speed(group: Sequence[Run]) -> list[tuple[str, str]]:
    """Return what was measured of speed and memory, each as a name and a value."""
    found = []
    for key, name, digits in (
        ("ms_per_step", "ms per step", 1),
        ("clips_per_second", "clips per second", 0),
        ("gpu_mb", "GPU memory, MB", 0),
        ("save_ms", "ms held up by a checkpoint", 0),
    ):
        medians = []
        for run in group:
            values = [value for _, value in run.records.column(key)]
            # The first interval holds warm-up and compilation.
            values = values[1:] or values
            if values:
                medians.append(statistics.median(values))
        if medians:
            mean, error = mean_and_error(medians)
            shown = f"{mean:,.{digits}f}"
            found.append((name, shown if error is None else f"{shown} ± {error:.{digits}f}"))
    return found


def _passes(run: Run) -> dict[str, Any]:
    """Return the shares of a step: its passes as measured (`--profile`), or products as counted."""
    if run.profile is not None:
        seconds = run.profile["seconds"]
        shares = [(printable(name, 40), 1000 * value) for name, value in seconds.items()]
        return {"unit": "ms", "measured": True, "parts": shares}
    counted = step_flops(run.config, run.records.joints)
    parts = [
        ("student", counted.view_encoder),
        ("predictor", counted.predictor),
        ("projector", counted.projector),
        ("teacher", counted.target_encoder),
        ("backward", counted.backward),
    ]
    shares = [(name, flops / 1e9) for name, flops in parts if flops]
    return {"unit": "GFLOP", "measured": False, "parts": shares}


def _findings(group: Sequence[Run]) -> list[str]:
    many = len(group) > 1
    return [
        printable(f"{run.folder.name}: {text}" if many else text)
        for run in group
        for text in findings(run.records)
    ]
