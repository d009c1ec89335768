# SPDX-License-Identifier: Apache-2.0
"""One recipe for small sets on two CPU cores, fitted to a store by `rule.py`; all our choice."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sjepa_fast.config import schema
from sjepa_fast.config.rule import Choice, StoreFacts, choose, with_values


@dataclass(frozen=True)
class SmallSet:
    """A known set: what the rule is told of it, and what its preset has instead."""

    title: str
    facts: StoreFacts
    # The presets are older than the rule, and results are committed for them: what they keep of
    # their own. Only the whitening of MSR Action3D was chosen against noise, as in the rule.
    differs: Mapping[str, Any] = field(default_factory=dict)


def _kinect(
    store: str, split: str, clips: int, frames: int, joints: int, classes: int
) -> StoreFacts:
    return StoreFacts(store, split, "the set's own", clips, clips, frames, joints, 1, classes)


_OLDER = {"data.whiten": 1.0, "model.layer_scale": 0.0}
SMALL = {
    "nucla": SmallSet("N-UCLA", _kinect("nucla", "xview", 1020, 34, 20, 10), _OLDER),
    "msr_action3d": SmallSet(
        "MSR Action3D",
        _kinect("msr_action3d", "xsub", 284, 38, 20, 20),
        {"model.layer_scale": 0.0, "optim.batch_size": 64, "optim.length": 600},
    ),
    "utkinect": SmallSet("UTKinect-Action3D", _kinect("utkinect", "xsub", 100, 30, 20, 10), _OLDER),
    "florence3d": SmallSet(
        "Florence 3D Actions", _kinect("florence3d", "xsub", 109, 20, 15, 9), _OLDER
    ),
}
# What an objective changes of the recipe of S-JEPA.
_CHANGES: dict[str, dict[str, dict[str, object]]] = {
    "sjepa": {},
    "skeleton2vec": {
        "mask": {"kind": "tube", "tube_length": 2},
        "objective": {
            "kind": "skeleton2vec",
            "target_norm": "instance",
            "target_layers": 3,
            "ema_start": 0.999,
        },
    },
    "mamp": {"objective": {"kind": "mamp", "target_norm": "patch"}},
    "skeletonmae": {
        "mask": {"kind": "random"},
        "objective": {"kind": "skeletonmae", "target_norm": "patch"},
        "optim": {"lr": 2e-3},
    },
    # Untuned: 60 % of the tokens of each of two crops stay.
    "multiview": {
        "mask": {"kind": "random", "ratio": 0.4},
        "objective": {"kind": "multiview", "regularizer": "sigreg"},
    },
}
# What one objective changes on one set. Of the settings tried on the split `val`, a preset has the
# one with the best mean of three scores: N-UCLA after 900 steps of one seed, the others after 600
# of three (docs/objectives.md).
_TUNED: dict[tuple[str, str], dict[str, dict[str, object]]] = {
    ("sjepa", "msr_action3d"): {"mask": {"ratio": 0.9}},
    ("sjepa", "florence3d"): {"mask": {"ratio": 0.9}},
    ("mamp", "msr_action3d"): {"mask": {"ratio": 0.9}},
    ("skeleton2vec", "nucla"): {"objective": {"ema_start": 0.99}},
    ("skeleton2vec", "florence3d"): {"objective": {"ema_start": 0.99}},
}


def _recipe(run: str, knn: int = 400, pool: Literal["mean", "full"] = "full") -> schema.TrainConfig:
    """All but what the rule chooses."""
    return schema.TrainConfig(
        run=Path(run),
        data=schema.DataConfig(
            skip_empty_bodies=True,
            crop_min=0.6,
            crop_min_frames=8,
            eval_crop=1.0,
            center=True,
            align_yaw=True,
            normalize_size=True,
        ),
        model=schema.ModelConfig(segment_length=4, width=64, depth=3, heads=2, predictor_depth=2),
        # The papers' 0.9 leaves 16 of 160 tokens (20 joints).
        mask=schema.MaskConfig(ratio=0.7),
        view=schema.ViewConfig(rotation=1.2, tilt=0.2, translation=0.0, flip=0.0),
        objective=schema.ObjectiveConfig(ema_start=0.99, ema_end=1.0),
        optim=schema.OptimConfig(unit="steps", warmup=50, lr=1e-3, lr_end=1e-4, clip_grad=3.0),
        eval=schema.EvalConfig(online_pool=pool, knn_scaling="fitted", recipe="small"),
        log=schema.LogConfig(every=20, panel_every=100, knn_every=knn),
        checkpoint=schema.CheckpointConfig(every=500),
    )


def unfitted(method: str) -> schema.TrainConfig:
    """An objective (`method`) without what the rule chooses: aligned, size-normalised clips.

    The targets of MAMP and SkeletonMAE are those of the clip before the whitening.
    """
    return schema.replace(_recipe(f"runs/{method}-small"), **_CHANGES[method])


def fitted(
    method: str, facts: StoreFacts, given: Mapping[str, Any] | None = None
) -> tuple[schema.TrainConfig, tuple[Choice, ...]]:
    """An objective fitted to a store, and what was chosen (`rule.choose`).

    `given` has values by dotted key that the rule follows. Raises InputError if the store is too
    small.
    """
    config = unfitted(method)
    choices = choose(facts, config, given or {})
    return with_values(config, {choice.key: choice.value for choice in choices}), choices


def small(method: str, name: str) -> schema.TrainConfig:
    """An objective on one of `SMALL`: the rule's result, but for the differences in two tables."""
    found = SMALL[name]
    config = with_values(fitted(method, found.facts)[0], found.differs)
    config = schema.replace(config, **_TUNED.get((method, name), {}))
    return dataclasses.replace(config, run=Path(f"runs/{method}-{name}"))


def demo() -> schema.TrainConfig:
    """S-JEPA on the embedded synthetic skeletons, scored across views."""
    return schema.replace(
        _recipe("runs/demo", knn=450, pool="mean"),
        data={"synthetic": True, "split": "xview", "frames": 32, "bodies": 2, "whiten": 1.0},
        mask={"ratio": 0.9},
        optim={"batch_size": 32, "length": 1350},
    )
