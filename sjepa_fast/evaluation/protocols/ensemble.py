# SPDX-License-Identifier: Apache-2.0
"""Ensembles: the mean of the class probabilities that several runs gave the same test clips."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor

from sjepa_fast.data.safe_arrays import Npz, texts_of
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.metrics import accuracy
from sjepa_fast.evaluation.outcome import Outcome, Result, over_seeds
from sjepa_fast.evaluation.saved import RESULT_BYTES
from sjepa_fast.names import file_name
from sjepa_fast.opening import Unreadable, check_fields, read_json


@dataclass(frozen=True)
class EnsembleRequest:
    """Average the class probabilities of results of several runs, such as streams."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders; the first one gets the result."""
    of: str = "finetune"
    """Beginning of the results' file name; it must fit one result of each run."""


# Ten seeds on NTU-120 xset have a quarter of it.
SCORES_BYTES = 2**30
# What is read of a result's file.
_RESULT = {
    **dict.fromkeys(("store", "store_fingerprint", "split", "device", "torch"), (str,)),
    **dict.fromkeys(("encoder", "stream"), (str,)),
    "top1": (float,),
    "test_clips": (int,),
    "per_class": (dict,),
    "recipe": (dict,),
    "weights": (dict, type(None)),
}


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

    Raises InputError if none or several fit, or its files are damaged.
    """
    fitting = sorted((run / "results").glob(f"{glob.escape(file_name(beginning))}*.scores.npz"))
    if len(fitting) != 1:
        names = ", ".join(path.name.removesuffix(".scores.npz") for path in fitting) or "none"
        fix = "name one result of each run with --of, such as finetune-target"
        raise InputError("of", f"{beginning} fits {names} in {run}/results", fix)
    name = fitting[0].name.removesuffix(".scores.npz")
    file = fitting[0].with_name(f"{name}.json")
    result = read_json("runs", file, RESULT_BYTES)
    check_fields("runs", file, result, _RESULT)
    try:
        with Npz(fitting[0]) as saved:
            for key in ("scores", "labels", "names"):
                saved.header(key)  # which says that it is there
                saved.check_ratio(key)
            scores_SQC, labels_Q, names_Q = (
                saved.load(key, SCORES_BYTES) for key in ("scores", "labels", "names")
            )
            clip_names = texts_of(names_Q)
    except Unreadable as error:
        raise _unfit(fitting[0], str(error)) from error
    if scores_SQC.dtype.kind != "f" or scores_SQC.ndim != 3 or 0 in scores_SQC.shape:
        raise _unfit(fitting[0], f"has scores {scores_SQC.dtype} {scores_SQC.shape}")
    _, clips, classes = scores_SQC.shape
    if labels_Q.dtype.kind != "i" or labels_Q.shape != (clips,) or names_Q.shape != (clips,):
        raise _unfit(fitting[0], f"has labels {labels_Q.shape} and names {names_Q.shape}")
    if labels_Q.min() < 0 or labels_Q.max() >= classes or len(result["per_class"]) != classes:
        raise _unfit(fitting[0], f"has other classes than the {classes} of its scores")
    if np.isnan(scores_SQC).any():
        raise _unfit(fitting[0], "has scores that are NaN")
    scores, labels = scores_SQC.astype(np.float32), labels_Q.astype(np.int64)
    return Member(name, result, torch.from_numpy(scores), torch.from_numpy(labels), clip_names)


def _unfit(path: Path, reason: str) -> InputError:
    return InputError("runs", f"{path} {reason}", "score that run again")


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
        if member.scores_SQC.shape != first.scores_SQC.shape or not torch.equal(
            member.labels_Q, first.labels_Q
        ):
            fix = "score all runs on the same clips"
            raise InputError("runs", f"{member.name} has other labels than the first", fix)
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
