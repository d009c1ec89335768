"""Ensembles: the mean of the class probabilities that several runs gave the same test clips."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor

from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.metrics import accuracy
from sjepa_fast.evaluation.outcome import Outcome, Result, over_seeds


@dataclass(frozen=True)
class EnsembleRequest:
    """Average the class probabilities of results of several runs, such as streams."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders; the first one gets the result."""
    of: str = "finetune"
    """Beginning of the results' file name; it must fit one result of each run."""


@dataclass(frozen=True)
class Member:
    """One result with its saved scores."""

    name: str
    result: dict[str, Any]
    scores_SQC: Tensor
    labels_Q: Tensor
    clip_names: list[str]


def read_member(run: Path, beginning: str) -> Member:
    """Read the one result of a run whose file name starts with `beginning`.

    Raises InputError if none or several fit.
    """
    fitting = sorted((run / "results").glob(f"{beginning}*.scores.npz"))
    if len(fitting) != 1:
        names = ", ".join(path.name.removesuffix(".scores.npz") for path in fitting) or "none"
        fix = "name one result of each run with --of, such as finetune-target"
        raise InputError("of", f"{beginning} fits {names} in {run}/results", fix)
    name = fitting[0].name.removesuffix(".scores.npz")
    result = json.loads((run / "results" / f"{name}.json").read_text())
    with np.load(fitting[0], allow_pickle=False) as saved:
        scores, labels = torch.from_numpy(saved["scores"]), torch.from_numpy(saved["labels"])
        return Member(name, result, scores, labels, saved["names"].tolist())


def run_ensemble(request: EnsembleRequest) -> Result:
    """Average the softmax of the members, seed by seed, with equal weights (our choice).

    Returns the result, for the first run and with its conditions. Raises InputError if there are
    fewer than two runs or they differ in data or in seeds.
    """
    if len(request.runs) < 2:
        raise InputError("runs", len(request.runs), "name two runs or more")
    members = [read_member(run, request.of) for run in request.runs]
    first = members[0]
    for member in members[1:]:
        for key in ("store_fingerprint", "split"):
            if member.result[key] != first.result[key]:
                fix = "score all runs on the same clips"
                raise InputError("runs", f"{member.name} has another {key} than the first", fix)
        if len(member.scores_SQC) != len(first.scores_SQC):
            raise InputError("runs", f"{member.name} has other seeds", "score with the same seeds")
    probabilities = torch.stack([m.scores_SQC.softmax(dim=-1) for m in members]).mean(dim=0)
    guess = probabilities.argmax(dim=-1)
    figures = over_seeds("top1", [accuracy(row, first.labels_Q) for row in guess])
    stated = ("top1", "encoder", "stream", "weights", "recipe")
    figures["members"] = [
        {"run": str(run), "result": member.name, **{key: member.result[key] for key in stated}}
        for run, member in zip(request.runs, members, strict=True)
    ]
    outcome = Outcome(
        name=f"ensemble-{request.of}",
        figures=figures,
        recipe={"kind": "mean of class probabilities", "weights": "equal"},
        predicted_SQ=guess,
        scores_SQC=probabilities.log(),
    )
    conditions = ("store", "store_fingerprint", "split", "test_clips", "device", "torch")
    return Result(
        outcome=outcome,
        run=request.runs[0],
        data=f"{first.result['store']}-{first.result['split']}",
        conditions={key: first.result[key] for key in conditions},
        labels_Q=first.labels_Q,
        clip_names=first.clip_names,
        class_names=tuple(first.result["per_class"]),
    )
