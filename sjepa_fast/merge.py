# SPDX-License-Identifier: Apache-2.0
"""`python -m sjepa_fast.prepare merge STORE... --layout NAME --out POOL`: one store of several."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sjepa_fast.data.fill import check_out, fill
from sjepa_fast.data.pool.members import (
    Member,
    check_together,
    describe,
    make_member,
    open_pool,
)
from sjepa_fast.data.readers.drawn_split import Draw
from sjepa_fast.data.store import Store, open_store
from sjepa_fast.data.store_schema import MOST_FPS, is_store_name
from sjepa_fast.errors import InputError
from sjepa_fast.names import say
from sjepa_fast.runtime.progress import Display
from sjepa_fast.skeletons import SkeletonLayout, layout_named

# The word that stands where `prepare` has the name of a reader.
MERGE = "merge"


@dataclass(frozen=True)
class MergeConfig:
    """Merge stores into a pool for pre-training."""

    stores: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Stores to pool, of different data sets."""
    layout: str = ""
    """Joints of the pool, such as kinect20; empty: those that all stores have."""
    out: Path | None = None
    """Store to make."""
    split: tuple[str, ...] = ()
    """SET=NAME...: which split of a set decides what trains; default: its usual one."""
    fps: tuple[str, ...] = ()
    """SET=RATE...: frames per second of a set whose store does not know it."""
    resample: float = 0.0
    """Frames per second to which clips of a known rate are brought; 0: as they are."""
    allow_empty: bool = False
    """Accept classes of which a set's split has no training clip."""
    dtype: Literal["float32", "float16"] = "float32"
    """Stored precision."""
    overwrite: bool = False
    """Replace an existing store."""
    dry_run: bool = False
    """Check everything and report, but write nothing."""


def _layout(request: MergeConfig, stores: list[Store]) -> SkeletonLayout:
    if request.layout:
        return layout_named(request.layout)
    own = {store.name: store.layout for store in stores}
    if len({layout.joints for layout in own.values()}) > 1:
        value = ", ".join(f"{name} {layout.name}" for name, layout in own.items())
        raise InputError("layout", f"not given, and stores differ: {value}", "add --layout NAME")
    return stores[0].layout


def _read_pairs(argument: str, pairs: tuple[str, ...], members: list[str]) -> dict[str, str]:
    """Read SET=VALUE words; raises InputError if a set is not of the pool or named twice."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise InputError(argument, pair, f"write SET=VALUE, such as {members[0]}=...")
        if name not in members:
            raise InputError(argument, pair, f"the pool has {', '.join(members)}")
        if name in found:
            raise InputError(argument, pair, f"{name} has a value already; give it one")
        found[name] = value
    return found


def _read_rates(pairs: tuple[str, ...], members: list[str]) -> dict[str, float]:
    """Read SET=RATE words; raises InputError as `_read_pairs`, or if one is no positive number."""
    rates = {}
    for name, text in _read_pairs("fps", pairs, members).items():
        try:
            rates[name] = float(text)
        except ValueError:
            rates[name] = 0.0
        if not 0 < rates[name] <= MOST_FPS:
            fix = f"give frames per second up to {MOST_FPS}"
            raise InputError("fps", f"{name}={text}", fix)
    return rates


def open_members(request: MergeConfig) -> tuple[list[Member], SkeletonLayout]:
    """Open and check all stores of a pool, and print what is found.

    Returns them and the joints of the pool. Raises InputError if one cannot be pooled, or they
    cannot be pooled with each other.
    """
    if not 0 <= request.resample <= MOST_FPS:
        raise InputError("resample", request.resample, f"give 0 to {MOST_FPS} frames per second")
    stores = [open_store(root) for root in request.stores]
    layout = _layout(request, stores)
    names = [store.name for store in stores]
    splits = _read_pairs("split", request.split, names)
    rates = _read_rates(request.fps, names)
    members = [
        make_member(store, layout, splits.get(store.name, ""), rates.get(store.name, 0.0))
        for store in stores
    ]
    for member in members:
        for line in describe(member, layout):
            say(line)
    check_together(members, fps=request.resample, allow_empty=request.allow_empty)
    unknown = [member.name for member in members if not member.fps]
    if unknown:
        what = "stay at their own" if request.resample else "are taken to be alike"
        say(f"note: frame rates of {', '.join(unknown)} {what}; --fps SET=RATE names one")
    return members, layout


def merge(request: MergeConfig) -> int:
    """Merge stores into one, print a summary, and return 0.

    Raises InputError if stores cannot be pooled or the pool cannot be written.
    """
    check_out(request)
    name = request.out.name if request.out else MERGE
    if not is_store_name(name):
        raise InputError("out", name, "name a folder by printable characters")
    members, layout = open_members(request)
    source = open_pool(name, members, layout, request.resample)
    chosen = " ".join(f"{member.name}={member.split}" for member in members)
    rate = f" --resample {request.resample:g}" if request.resample else ""
    command = f"prepare {MERGE} --layout {layout.name} --split {chosen}{rate}"
    # A pool has the splits of its sets, so that none is drawn.
    with Display() as display:
        fill(source, request, f"{command} --dtype {request.dtype}", Draw(), display)
    return 0
