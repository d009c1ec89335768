# SPDX-License-Identifier: Apache-2.0
"""The labelled subsets of the semi-supervised protocol (method 6.3).

The official code draws a different subset in every process, and the same ones in every repetition.
Here a subset is a pure function of data, split, ratio and seed, the same in every process.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.store import Store
from sjepa_fast.errors import InputError


def draw_subset(
    store: Store, split: str, ratio: float, seed: int, *, balanced: bool = False
) -> NDArray[np.int64]:
    """Draw int(N * ratio) of the N labelled training clips of a split, without repetition.

    Args:
        store: The data; its fingerprint enters the draw.
        split: One of its splits.
        ratio: Above 0, up to 1.
        seed: Names the draw.
        balanced: Take clips class by class in turn, so that the classes' counts differ by one at
            most (where a class has enough clips); which ones get one more is drawn.

    Returns:
        Clip ids in rising order.

    Raises:
        InputError: If the ratio is out of range or leaves no clip.
    """
    ids = store.labelled(split, "train")
    count = int(len(ids) * ratio)
    if not 0 < ratio <= 1 or count == 0:
        fix = f"give a share of {len(ids)} labelled clips that is one clip or more"
        raise InputError("ratio", ratio, fix)
    named = f"{store.fingerprint} {split} {ratio!r} {seed} {balanced}"
    key = int.from_bytes(hashlib.sha256(named.encode()).digest()[:16], "little")
    generator = np.random.Generator(np.random.Philox(key=key))
    drawn = ids[generator.permutation(len(ids))]
    if balanced:
        labels = np.asarray(store.labels[drawn])
        turn = np.zeros(len(drawn), dtype=np.int64)
        for label in np.unique(labels):
            own = labels == label
            turn[own] = np.arange(own.sum())
        place = generator.permutation(len(store.class_names))[labels]
        drawn = drawn[np.lexsort((place, turn))]
    return np.sort(drawn[:count])
