# SPDX-License-Identifier: Apache-2.0
"""Which of a run's saved checkpoints is best: chosen on validation clips, never on test clips."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sjepa_fast.data.store import Store
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.metrics import accuracy
from sjepa_fast.evaluation.outcome import Outcome
from sjepa_fast.evaluation.request import ProbeRequest
from sjepa_fast.evaluation.subject import Subject, same_everywhere
from sjepa_fast.evaluation.subset import draw_subset
from sjepa_fast.runtime.checkpoint import whole_checkpoints

# Of the training clips, where the store has no validation split of its own; our choice.
_SHARE = 0.2
_Ids = NDArray[np.int64]


def validation_parts(store: Store, split: str) -> tuple[_Ids, _Ids, str]:
    """Cut the labelled training clips of a split into those to fit a probe on and to score it on.

    That is the store's split `val`, where it lies within the training part and has both parts;
    else a fifth of each class is drawn, the same in every call. Returns both parts, and a phrase
    that says where they come from. Raises InputError if there are too few clips.
    """
    train = store.labelled(split, "train")
    if "val" in store.splits:
        fit, held_out = store.labelled("val", "train"), store.labelled("val", "test")
        if len(fit) and len(held_out) and np.isin(np.concatenate([fit, held_out]), train).all():
            return fit, held_out, "split val"
    if len(train) < 1 / _SHARE:
        value = f"all, with {len(train)} training clips in {split}"
        raise InputError("checkpoints", value, "validation takes a fifth of them; use last")
    held_out = draw_subset(store, split, _SHARE, 0, balanced=True)
    return np.setdiff1d(train, held_out), held_out, f"a fifth of the training part of {split}"


def best_checkpoint(
    subject: Subject, request: ProbeRequest, run: Callable[[Subject, Any], Outcome]
) -> tuple[Subject, Outcome]:
    """Score every whole checkpoint, and return the best on validation clips with its test score.

    For validation the probe is fitted to a part of the training clips and scored on the rest of
    them; for the test scores to all of them. Of equal ones the later is taken. The outcome lists
    all scores, and says what the best of the test scores would have been, which is no result: it
    is chosen on the clips that it is reported on. Raises InputError if the encoder has no
    checkpoints, or there are too few clips.
    """
    if request.encoder not in ("target", "view"):
        value = f"all with --encoder {request.encoder}"
        raise InputError("checkpoints", value, "it has none; use target or view")
    fit, held_out, origin = validation_parts(subject.store, subject.config.data.split)
    saved = whole_checkpoints(subject.run)
    same_everywhere(subject.world, subject.run, [checkpoint.step for checkpoint in saved])
    ids = (torch.from_numpy(part).to(subject.device) for part in (fit, held_out))
    fit_ids, held_out_ids = ids
    rows, outcomes = [], []
    for checkpoint in saved:
        tested = dataclasses.replace(subject, checkpoint=checkpoint)
        tuned = dataclasses.replace(tested, train_ids=fit_ids, test_ids=held_out_ids)
        validated, outcome = run(tuned, request), run(tested, request)
        row = {
            "step": checkpoint.step,
            "validation": accuracy(validated.predicted_SQ, subject.labels(held_out_ids)),
            "test": accuracy(outcome.predicted_SQ, subject.labels(subject.test_ids)),
        }
        rows.append(row)
        outcomes.append(outcome)
    best = max(range(len(rows)), key=lambda i: (rows[i]["validation"], i))
    figures = {
        "checkpoints": {
            "chosen": rows[best],
            "last": rows[-1],
            "best_of_test": max(rows, key=lambda row: row["test"]),
            "every": rows,
            "validation_clips": len(held_out),
            "validation_from": origin,
        }
    }
    chosen = dataclasses.replace(
        outcomes[best],
        name=f"{outcomes[best].name}-checkpoints",
        figures=outcomes[best].figures | figures,
    )
    return dataclasses.replace(subject, checkpoint=saved[best]), chosen


def table(found: dict[str, Any]) -> str:
    """Format the scores of all checkpoints, and what each way to choose gives on the test part."""
    lines = [f"  {'step':>8}  validation  test"]
    for row in found["every"]:
        mark = "  <- chosen" if row["step"] == found["chosen"]["step"] else ""
        lines.append(f"  {row['step']:8}  {row['validation']:10.1f}  {row['test']:4.1f}{mark}")
    said = {"chosen on validation": "chosen", "last": "last", "best of test": "best_of_test"}
    ways = ", ".join(f"{words} {found[key]['test']:.1f}" for words, key in said.items())
    clips, origin = found["validation_clips"], found["validation_from"]
    return "\n".join([*lines, f"  test: {ways} (validation: {clips} clips, {origin})"])
