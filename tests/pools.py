"""Stores of several layouts made of a synthetic one, and pools of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sjepa_fast import prepare
from sjepa_fast.data.store import Store, open_store
from sjepa_fast.data.store_writer import StoreWriter
from sjepa_fast.joint_map import map_joints
from sjepa_fast.skeletons import KINECT15, NTU25, SkeletonLayout
from tests.tiny import Done, as_kinect, call

# Splits of the sets of a pool that are not their usual ones.
CHOSEN = ("ntu=xview", "openni=xsub")


def copied(
    store: Store,
    out: Path,
    *,
    name: str = "",
    layout: SkeletonLayout = NTU25,
    change: Callable[[np.ndarray], np.ndarray] = np.asarray,
    ids: Sequence[int] | None = None,
    labelled: bool = True,
    **facts: float,
) -> Path:
    """A store of some of another's clips, with its splits."""
    chosen = list(range(len(store))) if ids is None else ids
    rows = map_joints(store.layout, layout)
    classes = store.class_names if labelled else ()
    with StoreWriter(out, name or out.name, layout, classes) as writer:
        for i in chosen:
            clip = change(store.clip(i)).astype(np.float32)
            clip = np.stack([clip[:, :, list(row)].mean(axis=2) for row in rows], axis=2)
            label = int(store.labels[i]) if labelled else None
            writer.add(str(store.names[i]), clip, label, {})
        writer.finish({key: codes[chosen] for key, codes in store.splits.items()}, **facts)
    return out


def write_sets(store: Path, folder: Path) -> Path:
    """Write the stores ntu (25 joints), kinect (20) and openni (15), of three sizes."""
    source = open_store(store)
    copied(source, folder / "ntu")
    as_kinect(source, folder / "kinect")
    copied(source, folder / "openni", layout=KINECT15, ids=range(0, len(source), 2))
    return folder


def stores_of(sets: Path) -> list[Path]:
    return [sets / name for name in ("ntu", "kinect", "openni")]


def merged(out: Path, *words: str | Path) -> Done:
    return call(prepare.main, "merge", *words, "--out", out)


def pooled(sets: Path) -> Path:
    """A pool of all three, of the joints of kinect20."""
    done = merged(sets / "pool", *stores_of(sets), "--layout", "kinect20", "--split", *CHOSEN)
    assert done.returncode == 0, done.stderr
    return sets / "pool"
