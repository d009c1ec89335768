# SPDX-License-Identifier: Apache-2.0
"""What a store says of itself to the presets that fit themselves to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sjepa_fast.config.rule import StoreFacts
from sjepa_fast.config.schema import POOLED
from sjepa_fast.data.store import Store, open_store
from sjepa_fast.errors import InputError

# A split of this name was marked by whoever made the store.
DEFAULT = "default"
# Is there for the choice of settings.
VALIDATION = "val"


def facts_of(root: Path, split: str | None = None) -> StoreFacts:
    """Open a store and count the training part of a split, or of the one that it says to take.

    Raises InputError if there is no store, no such split, or no split is given and the store has
    several of different training clips.
    """
    store = open_store(root, verify=False)
    chosen, why = (split, "given") if split else pick_split(store)
    ids = store.ids(chosen, "train")
    return StoreFacts(
        store=store.name,
        split=chosen,
        why_split=why,
        clips=len(ids),
        sequences=int(store.bodies[ids].sum()),
        frames=int(np.median(store.frames[ids])),
        joints=store.layout.num_joints,
        persons=store.max_bodies,
        classes=len(store.class_names),
    )


def pick_split(store: Store) -> tuple[str, str]:
    """Return the split that needs no choice, and why it is that.

    Of a pool, that of all its sets; else the one called `default`; else the only one but `val`;
    else the first, if all have the same training clips; else InputError with their names.
    """
    names = [name for name, codes in store.splits.items() if (codes == 1).any()]
    if store.sets and POOLED in names:
        return POOLED, "the pool's own"
    if DEFAULT in names:
        return DEFAULT, "the store's default"
    usual = [name for name in names if name != VALIDATION] or names
    if not usual:
        value = f"{store.name} has no split with a training clip"
        raise InputError("data.split", value, "prepare it again with a split")
    first = usual[0]
    if len(usual) == 1:
        return first, "the store's only one" + (" but val" if VALIDATION in names[:-1] else "")
    train = store.splits[first] == 1
    if all(np.array_equal(store.splits[name] == 1, train) for name in usual[1:]):
        return first, f"same training clips as {', '.join(usual[1:])}"
    fix = f"{store.name} has several; add --data.split with one of {', '.join(names)}"
    raise InputError("data.split", "not given", fix)


def usual_split(store: Store) -> str:
    """Return the split that is meant where one of many sets has none named; empty if none is.

    It is the one that needs no choice (`pick_split`), else `xsub`.
    """
    try:
        return pick_split(store)[0]
    except InputError:
        return "xsub" if "xsub" in store.splits else ""
