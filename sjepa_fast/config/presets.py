# SPDX-License-Identifier: Apache-2.0
"""Named configurations: every published pre-training setting, and recipes for small sets.

A preset named after a paper's data set follows the paper; what the papers leave open, and so is
our choice, is said below and in the fields of `schema.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sjepa_fast.config import presets_pool, schema
from sjepa_fast.config.presets_small import SMALL, demo, fitted, small
from sjepa_fast.config.rule import StoreFacts
from sjepa_fast.errors import InputError, nearest
from sjepa_fast.names import printable


@dataclass(frozen=True)
class Preset:
    """A configuration by name: what it is, in one line, and the function that makes it."""

    about: str
    make: Callable[[], schema.TrainConfig]


@dataclass(frozen=True)
class _Published:
    """What changes with the data set: its title and split, and whether it is NTU-120's size."""

    title: str
    split: str
    large: bool = False


_SETS = {
    "ntu60-xsub": _Published("NTU-60 cross-subject", "xsub"),
    "ntu60-xview": _Published("NTU-60 cross-view", "xview"),
    "ntu120-xsub": _Published("NTU-120 cross-subject", "xsub", large=True),
    "ntu120-xset": _Published("NTU-120 cross-setup", "xset", large=True),
    "pku1": _Published("PKU-MMD I cross-subject", "xsub"),
    "pku2": _Published("PKU-MMD II cross-subject", "xsub"),
}
# MAMP turns the clip about all three axes and neither shifts nor mirrors it (method 1.5).
_AXES = schema.ViewConfig(form="axes", rotation=0.3, translation=0.0, flip=0.0)
_LOG = schema.LogConfig(knn_every=10_000)


def sjepa(name: str) -> schema.TrainConfig:
    """S-JEPA, method 3: the paper's values are the dataclass defaults.

    Ours, because the paper does not say: view ranges and pivot, 75 visible tokens, order of the
    center's use and update, predictor layout, evaluation pooling; for sets other than NTU-60 that
    nothing but the mask's temperature changes (0.75 for NTU-120, MAMP's).
    """
    found = _SETS[name]
    return schema.TrainConfig(
        run=Path(f"runs/sjepa-{name}"),
        data=schema.DataConfig(split=found.split),
        mask=schema.MaskConfig(tau=0.75 if found.large else 0.8),
        log=_LOG,
    )


def mamp(name: str) -> schema.TrainConfig:
    """MAMP, method 5.1, from its public configuration files.

    Ours: bfloat16 where the device has it (theirs is float32), and on two devices or more the
    batch of 128 is the one of all of them, as with their four.
    """
    found = _SETS[name]
    return schema.TrainConfig(
        run=Path(f"runs/mamp-{name}"),
        data=schema.DataConfig(split=found.split, eval_crop=0.95),
        model=schema.ModelConfig(predictor_depth=3 if name.startswith("ntu60") else 5),
        mask=schema.MaskConfig(tau=0.75 if found.large else 0.8, mamp_count=True),
        view=_AXES,
        objective=schema.ObjectiveConfig(kind="mamp", target_norm="patch"),
        optim=schema.OptimConfig(batch_size=128, length=400),
        log=_LOG,
    )


def skeletonmae(name: str) -> schema.TrainConfig:
    """SkeletonMAE on MAMP's transformer, method 5.2: random masks, coordinates; the rest is MAMP's.

    Ours: that sets other than NTU-60 take MAMP's values for them. The temporal normalisation of
    "Rethinking" is `--objective.target-norm temporal`.
    """
    base = mamp(name)
    return replace(
        base,
        run=Path(f"runs/skeletonmae-{name}"),
        mask=schema.MaskConfig(kind="random", mamp_count=True),
        objective=schema.ObjectiveConfig(kind="skeletonmae", target_norm="patch"),
    )


def skeleton2vec(name: str) -> schema.TrainConfig:
    """Skeleton2vec, table of method 4.5, from the first author's code.

    Ours: every visible feature in its place (their decoder misplaces most, see
    `objective.legacy_tube_layout`), clips as the store holds them (they drop empty frames and put
    the person seen longer first), bfloat16 for their float16, AdamW eps 1e-8 for all sets, the
    root joint as the origin of PKU clips, upright clips to y instead of z, a temporal table that
    does not start at zero, even instead of random frames at evaluation.
    """
    found = _SETS[name]
    # Their PKU-I run has 1,600 epochs, with the momentum's way of 800.
    twice = name == "pku1"
    return schema.TrainConfig(
        run=Path(f"runs/skeleton2vec-{name}"),
        data=schema.DataConfig(
            split=found.split,
            frames=90,
            sampling="index",
            eval_crop=1.0,
            center=name.startswith("pku"),
            align_spine=name == "ntu60-xview",
        ),
        model=schema.ModelConfig(segment_length=3, predictor_depth=3, layer_scale=1e-4),
        mask=schema.MaskConfig(kind="tube", tube_length=5, tube_scale=0.2 if found.large else 0.1),
        view=_AXES,
        objective=schema.ObjectiveConfig(
            kind="skeleton2vec",
            target_norm="instance",
            target_layers=8,
            ema_schedule="linear",
            ema_length=800 if twice else 0,
        ),
        optim=schema.OptimConfig(
            batch_size=128,
            length=1600 if twice else 800,
            lr_end=5e-4 if twice else 1e-5,
            decay_positions=False,
            clip_grad=4.0,
        ),
        log=_LOG,
    )


_METHODS = {
    "sjepa": ("S-JEPA", sjepa),
    "skeleton2vec": ("Skeleton2vec", skeleton2vec),
    "mamp": ("MAMP", mamp),
    "skeletonmae": ("SkeletonMAE (transformer)", skeletonmae),
}

# Those of the small sets: multi-view has no published setting on skeletons.
_TITLES = {**{method: title for method, (title, _) in _METHODS.items()}, "multiview": "Multi-view"}

PRESETS: dict[str, Preset] = {
    "sjepa-demo": Preset("S-JEPA on embedded synthetic skeletons, in minutes (our recipe)", demo),
    **{
        f"{method}-{name}": Preset(f"{title} on {found.title} (published)", partial(make, name))
        for method, (title, make) in _METHODS.items()
        for name, found in _SETS.items()
    },
    **{
        f"{method}-{name}": Preset(
            f"{title} on {found.title}, in minutes on two cores (our recipe)",
            partial(small, method, name),
        )
        for method, title in _TITLES.items()
        for name, found in SMALL.items()
    },
    **{
        f"{method}-pool": Preset(
            f"{_TITLES[method]} on a pool of small sets (our recipe)",
            partial(presets_pool.pool, method),
        )
        for method in presets_pool.METHODS
    },
}

# Those that fit themselves to a store: what they are, in one line, and their objective.
FITTED = {
    f"{method}-small": (f"{title}, fitted to the store by a rule (our recipe)", method)
    for method, title in _TITLES.items()
}


def preset(name: str, facts: Callable[[], StoreFacts] | None = None) -> schema.TrainConfig:
    """Return a fresh configuration of one of `PRESETS`, or of `FITTED` for the store of `facts`.

    Raises InputError if there is no such preset, with the nearest names and all the others, or if
    it needs a store and there are no `facts`.
    """
    if name in FITTED:
        if facts is None:
            fix = "it fits itself to a store; train it with --data.root STORE"
            raise InputError("preset", name, fix)
        return fitted(FITTED[name][1], facts())[0]
    if name not in PRESETS:
        names = [*FITTED, *PRESETS]
        near = nearest(name, names)
        known = "" if near.startswith("known") else f"; known: {', '.join(names)}"
        # A line with all the names has no room for a long one.
        raise InputError("preset", printable(name, 100), near + known)
    return PRESETS[name].make()
