# SPDX-License-Identifier: Apache-2.0
"""The stores of a pool, checked against each other, and the source of records they make.

Shapes: M bodies, T frames, V joints of the pool, 3 coordinates.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.config.schema import POOLED
from sjepa_fast.data.clip_table import NO_LABEL
from sjepa_fast.data.facts import usual_split
from sjepa_fast.data.pool.fitting import filled_joints, refit_joints, resample
from sjepa_fast.data.pool.posture import Posture, check, measure
from sjepa_fast.data.readers.record import Columns, Record, Source, Splits
from sjepa_fast.data.store import Store, fingerprint_of
from sjepa_fast.data.store_schema import KEY, PooledSet, clip_in_pool
from sjepa_fast.errors import InputError
from sjepa_fast.joint_map import map_joints
from sjepa_fast.skeletons import SkeletonLayout

# Names of classes that a message has at most.
_NAMED = 5


@dataclass(frozen=True)
class Member:
    """One store of a pool, and how its clips come into it."""

    store: Store
    split: str  # the split that decides which clips train
    rows: tuple[tuple[int, ...], ...]  # for each joint of the pool, the store's joints it is of
    fps: float  # frames per second; 0: not known
    posture: Posture

    @property
    def name(self) -> str:
        """Name of the set."""
        return self.store.name

    def clip(self, index: int, fps: float) -> NDArray[np.float32]:
        """Return a clip with the pool's joints, and at a rate where both rates are known (M,T,V,3).

        0 leaves the rate.
        """
        clip = refit_joints(self.store.clip(index), self.rows)
        return resample(clip, self.fps, fps) if fps and self.fps else clip


def make_member(store: Store, layout: SkeletonLayout, split: str, fps: float) -> Member:
    """Fit one store to the pool's layout.

    An empty `split` is the store's usual one, 0 `fps` the rate that it knows. Raises InputError if
    the store is a pool, its names cannot be used, it has no counterpart of a joint or not the
    split, or its coordinates are no metres with y up, right-handed.
    """
    if store.sets:
        raise InputError("stores", f"{store.root} is a pool", "name the stores that it was made of")
    used = split or usual_split(store)
    known = ", ".join(store.splits) or "none"
    if not used:
        value = f"not given for {store.name}, which has {known}"
        raise InputError("split", value, f"add --split {store.name}=NAME")
    if used not in store.splits:
        fix = f"use one of: {known}"
        raise InputError("split", f"{store.name}={used}, which {store.root} does not have", fix)
    for key in store.splits:
        if re.fullmatch(KEY, pool_split(store.name, key)) is None:
            fix = "a set in a pool is named with letters, digits, _ and -, at most 100 with a split"
            raise InputError("stores", f"{store.root} is called {store.name}", fix)
    store.ids(used, "train")
    rows = map_joints(store.layout, layout)
    return Member(store, used, rows, fps or store.fps, measure(store))


def pool_split(name: str, split: str) -> str:
    """Return what a set's split is called in a pool."""
    return f"{name}-{split}"


def describe(member: Member, layout: SkeletonLayout) -> list[str]:
    """Check a member's coordinates, and return what to print of it: a line, and notes.

    Raises InputError as `posture.check`.
    """
    store, posture = member.store, member.posture
    notes = check(store, posture)
    train, test = (len(store.ids(member.split, part)) for part in ("train", "test"))
    rate = f"{member.fps:g} frames per second" if member.fps else "frame rate not known"
    lines = [
        f"{store.name}: {store.layout.name}, split {member.split} {train}/{test}, "
        f"bodies span {posture.span:.2f} m, {rate}"
    ]
    lines += [f"note: {store.name}: {note}" for note in notes]
    filled = filled_joints(store.layout, layout, member.rows)
    if filled:
        lines.append(f"note: {store.name} lacks joints of {layout.name}: {', '.join(filled)}")
    return lines


def check_together(members: list[Member], *, fps: float, allow_empty: bool) -> None:
    """Check what the members must have in common; raises InputError.

    Args:
        members: All of them.
        fps: Rate to which clips are resampled; 0 leaves them as they are.
        allow_empty: Accept classes without a training clip.
    """
    if len(members) < 2:
        raise InputError("stores", f"{len(members)} given", "name two or more")
    by_name: dict[str, Member] = {}
    for member in members:
        other = by_name.setdefault(member.name, member)
        if other is not member:
            value = f"{other.store.root} and {member.store.root} are both called {member.name}"
            raise InputError("stores", value, "leave one out")
    flat = [member.name for member in members if member.posture.flat]
    if flat and len(flat) < len(members):
        value = f"{', '.join(flat)} in a plane, others in space"
        raise InputError("stores", value, "pool image poses and skeletons in space separately")
    rates = {member.name: member.fps for member in members if member.fps}
    if not fps and len(set(rates.values())) > 1:
        value = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
        fix = f"bring all to one rate by --resample {max(rates.values()):g}"
        raise InputError("fps", f"{value} frames per second", fix)
    for member in members if not allow_empty else ():
        _check_classes(member)


def _check_classes(member: Member) -> None:
    store = member.store
    labels = store.labels[store.labelled(member.split, "train")]
    counts = np.bincount(labels, minlength=len(store.class_names))
    empty = [name for name, count in zip(store.class_names, counts, strict=True) if not count]
    if empty:
        more = f" and {len(empty) - _NAMED} more" if len(empty) > _NAMED else ""
        value = f"{store.name} {member.split} has no training clip of {', '.join(empty[:_NAMED])}"
        fix = f"use another split (--split {store.name}=NAME), or --allow-empty"
        raise InputError("split", value + more, fix)


def _interleaved(members: list[Member]) -> list[tuple[int, int]]:
    """Order the clips of all members so that any first part has each in proportion.

    What is fitted on the first clips of a pool, such as a whitening, then sees every set. Returns
    (member, clip) pairs.
    """
    places = [
        ((clip + 0.5) / len(member.store), number, clip)
        for number, member in enumerate(members)
        for clip in range(len(member.store))
    ]
    return [(number, clip) for _, number, clip in sorted(places)]


def open_pool(name: str, members: list[Member], layout: SkeletonLayout, fps: float) -> Source:
    """Return the records of all members, one after the other in proportion.

    A clip is called SET/CLIP and a class SET/CLASS. A split is called SET-SPLIT, and the split
    `train` is the union of the members' own. Clips are resampled to `fps` where it is not 0.
    """
    order = _interleaved(members)
    counts = [len(member.store.class_names) for member in members]
    first = np.cumsum(counts) - counts

    def records(start: int = 0) -> Iterator[Record]:
        for number, clip in order[start:]:
            member = members[number]
            label = int(member.store.labels[clip])
            yield Record(
                clip_in_pool(member.name, member.store.names[clip]),
                member.clip(clip, fps),
                None if label == NO_LABEL else int(first[number]) + label,
                {},
            )

    facts = [
        {"store": member.store.fingerprint, "split": member.split, "fps": member.fps}
        for member in members
    ]
    return Source(
        name=name,
        layout=layout,
        class_names=tuple(
            clip_in_pool(member.name, label)
            for member in members
            for label in member.store.class_names
        ),
        count=len(order),
        records=records,
        identity=fingerprint_of({"members": facts, "layout": layout.to_dict(), "fps": fps}),
        splits=partial(_splits, members, order),
        # Without `fps` all known rates are equal.
        fps=(fps or members[0].fps) if all(member.fps for member in members) else 0.0,
        sets=tuple(
            PooledSet(member.name, member.split, count, member.store.fingerprint)
            for member, count in zip(members, counts, strict=True)
        ),
    )


def _splits(
    members: list[Member], order: list[tuple[int, int]], names: list[str], _: Columns
) -> Splits:
    """Codes of the clips that were kept, by name."""
    place = {name: row for row, name in enumerate(names)}
    rows = [
        (place.get(clip_in_pool(members[m].name, members[m].store.names[clip])), m, clip)
        for m, clip in order
    ]
    splits: Splits = {POOLED: np.zeros(len(names), np.int8)}
    for number, member in enumerate(members):
        own = [(row, clip) for row, m, clip in rows if m == number and row is not None]
        places, clips = (np.array(column, dtype=np.int64) for column in zip(*own, strict=True))
        for key, codes in member.store.splits.items():
            found = np.zeros(len(names), np.int8)
            found[places] = codes[clips]
            splits[pool_split(member.name, key)] = found
        splits[POOLED][places] = member.store.splits[member.split][clips]
    return splits
