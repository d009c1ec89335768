# SPDX-License-Identifier: Apache-2.0
"""What a score means little without: scores of the same test clips by encoders without training.

A probe's score stands beside those of raw coordinates and of the run's own initialisation by the
same probe, which are computed where the run's results do not have them, and every score beside
training from scratch, where that has been run. Shapes: S seeds, Q test clips.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from sjepa_fast import __version__
from sjepa_fast.data.store import fingerprint_of
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.metrics import accuracy, mcnemar_p, standard_error
from sjepa_fast.evaluation.outcome import Result
from sjepa_fast.evaluation.request import ProbeRequest
from sjepa_fast.evaluation.saved import Saved, read_saved
from sjepa_fast.evaluation.subject import Subject
from sjepa_fast.names import file_name, say

# From the least to the most; an encoder is compared with those before it.
_UNTRAINED: tuple[Literal["raw", "random"], ...] = ("raw", "random")
# What a frozen protocol's or a trained one's score is shown beside, where the folder has it; KIND
# is the beginning of the score's own name, such as semi0.1-balanced.
PROBED = {"scratch": "finetune-random"}
TRAINED = {"scratch": "KIND-random"}
FLOORS = {"raw, 1-NN": "knn-raw", "raw, 1-NN, pca": "knn-raw-pca"}


def request_fingerprint(subject: Subject, request: ProbeRequest) -> str:
    """Name everything that decides the result of a probe without a trained encoder."""
    asked = dataclasses.asdict(request)
    for name in ("run", "data", "runtime", "baselines", "checkpoints"):
        del asked[name]
    if request.encoder == "raw":
        del asked["pool"]
    config = dataclasses.asdict(subject.config)
    settings = {name: config[name] for name in ("seed", "data", "model", "objective")}
    for name in ("root", "synthetic", "backend", "workers", "prefetch", "set_power"):
        del settings["data"][name]
    return fingerprint_of(
        {
            "request": asked,
            "settings": settings,
            "store": subject.store.fingerprint,
            "computed": [str(subject.dtype), subject.device.type, torch.__version__, __version__],
        }
    )


def with_baselines(
    subject: Subject, request: ProbeRequest, score: Callable[[Subject, Any], Result]
) -> tuple[dict[str, Saved], tuple[Result, ...]]:
    """Return the scores of encoders without training by the same probe, and which were made now.

    One process looks for results in the run's folder, and tells the others what it found.
    """
    kind = request.encoder
    wanted = _UNTRAINED[: _UNTRAINED.index(kind)] if kind in _UNTRAINED else _UNTRAINED
    bare = dataclasses.replace(subject, checkpoint=None, layout=subject.store.layout)
    beside: dict[str, Saved] = {}
    made = []
    for encoder in wanted if request.baselines else ():
        other = request.untrained(encoder)
        name = file_name(f"{other.result_name()}-{subject.store.name}-{subject.config.data.split}")
        asked = request_fingerprint(bare, other)
        own = [_known(subject, name, asked)] if subject.world.leads else []
        [found] = subject.world.gather(own)
        if found is None:
            say(f"{name} is scored first (--no-baselines leaves it out)")
            result = dataclasses.replace(score(bare, other), request=asked)
            made.append(result)
            found = as_saved(result)
        beside[encoder] = found
    return beside, tuple(made)


def _known(subject: Subject, name: str, asked: str) -> Saved | None:
    try:
        found = read_saved(subject.run / "results", name)
    except InputError:
        # It is made again.
        return None
    clips = len(subject.test_ids)
    if found is None or found.request != asked or found.predicted_SQ.shape[1] != clips:
        return None
    return found


def found_beside(result: Result, names: dict[str, str]) -> dict[str, Saved]:
    """Return results of the run on the same clips, by label and beginning of the name, if there.

    A line on stderr says of a damaged one that it is left out.
    """
    kind = result.outcome.name.rpartition("-")[0]
    beside = {}
    for label, beginning in names.items():
        name = file_name(f"{beginning.replace('KIND', kind)}-{result.data}")
        try:
            found = read_saved(result.run / "results", name)
        except InputError as error:
            say(f"note: {error}; {name} is left out", to_stderr=True)
            continue
        if found is not None and name != result.name and _same_clips(found, result):
            beside[label] = found
    return beside


def _same_clips(found: Saved, result: Result) -> bool:
    same = ("store_fingerprint", "split")
    return found.predicted_SQ.shape[1] == len(result.labels_Q) and all(
        getattr(found, key) == result.conditions[key] for key in same
    )


def as_saved(result: Result) -> Saved:
    """Return what a later call would read of a result."""
    return Saved(
        name=result.name,
        store_fingerprint=result.conditions["store_fingerprint"],
        split=result.conditions["split"],
        predicted_SQ=result.outcome.predicted_SQ.cpu(),
        features=result.outcome.features,
        request=result.request,
    )


def compare(own_SQ: Tensor, other: Saved, labels_Q: Tensor) -> dict[str, Any]:
    """Compare two sets of predictions of the same clips.

    The first seed is paired with the first, and so on; a score without seeds is paired with each.
    Returns the other's accuracy with its standard error, the difference (own less other's) in
    points, and for each pair how many clips one of them alone gets right and McNemar's exact p;
    the headline `p` is the largest, for seeds share their clips and cannot be pooled.
    """
    right, theirs = (guess == labels_Q for guess in (own_SQ, other.predicted_SQ))
    fewer, more = sorted((len(right), len(theirs)))
    pairs = more if fewer == 1 else fewer
    right, theirs = (
        rows.expand(pairs, -1) if len(rows) == 1 else rows[:pairs] for rows in (right, theirs)
    )
    own_only, other_only = (only.sum(dim=1).tolist() for only in (right & ~theirs, theirs & ~right))
    values = [mcnemar_p(a, b) for a, b in zip(own_only, other_only, strict=True)]
    headline = accuracy(other.predicted_SQ, labels_Q)
    return {
        "result": other.name,
        "headline": headline,
        "standard_error": standard_error(headline, len(labels_Q)),
        "features": other.features,
        "difference": accuracy(own_SQ, labels_Q) - headline,
        "own_only_right": own_only,
        "other_only_right": other_only,
        "p_per_pair": values,
        "p": max(values),
    }


def table(content: dict[str, Any]) -> str:
    """Format what a result's file says of its headline and of the scores beside it."""
    rows = [["", "top-1", "s.e.", "features", "difference", "p"]]
    for label, row in {content["encoder"]: content, **content["beside"]}.items():
        cells = [label, f"{row['headline']:.1f}", f"{row['standard_error']:.1f}"]
        cells.append("" if row["features"] is None else str(row["features"]))
        if "p" in row:
            shown = "<0.001" if row["p"] < 0.001 else f"{row['p']:.3f}"
            cells += [f"{row['difference']:+.1f}", shown]
        else:
            cells += ["", ""]
        rows.append(cells)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([f"  {row[0]:<{widths[0]}}", *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
    return "\n".join(lines)
