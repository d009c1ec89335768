# SPDX-License-Identifier: Apache-2.0
"""Small public sets in one ragged `.npz` layout.

`joints` (sum of T, M, V, 3), float32 metres or int16 with `scale`; `offsets` (N + 1); `label`;
`name`; `class_names`; `joint_names`; `fps` where it is known; id and split columns. T frames, M
bodies, V joints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.clip_table import MAX_CLASSES
from sjepa_fast.data.readers.record import (
    MAX_NUMBERS,
    Columns,
    Record,
    Source,
    Splits,
    identity_of,
    readable,
    two_parts,
)
from sjepa_fast.data.safe_arrays import Npz, texts_of
from sjepa_fast.data.safe_files import is_folder
from sjepa_fast.data.store_schema import MOST_FPS
from sjepa_fast.errors import InputError
from sjepa_fast.opening import Unreadable
from sjepa_fast.skeletons import KINECT15, KINECT20, KINECT22, RIG21, SkeletonLayout

Array = NDArray[Any]

MOST_COLUMN = 32 * 2**20  # bytes of each array but the joints
MOST_CLIPS = 2**17


@dataclass(frozen=True)
class RaggedSet:
    """How one set differs from the others."""

    file: str  # file name inside the raw folder
    layout: SkeletonLayout
    columns: tuple[str, ...]  # integer columns to keep
    splits: Callable[[Columns], Splits]
    to_metres: Callable[[Array], Array] = (
        np.asarray
    )  # maps stored coordinates (..., 3) to metres with y up
    used: str = ""  # column that says which sequences belong to the protocol; empty for all
    # Joint names of the file in layout order; empty where it is the layout's own order.
    order: tuple[str, ...] = ()


def _sbu_to_metres(x: Array) -> Array:
    # The set's README: X = 1280 - 2560 x, Y = 960 - 1920 y, Z = 10000 z / 7.8125, millimetres.
    scale = np.array([-2560.0, -1920.0, 10000 / 7.8125]) / 1000
    return np.asarray(x * scale + np.array([1.28, 0.96, 0.0]))


def _florence_to_metres(x: Array) -> Array:
    # Stored as (x, depth, height).
    return x[..., [0, 2, 1]]


def _nucla_splits(columns: Columns) -> Splits:
    camera, leaked = columns["camera"], columns["leaked_test"] == 1
    clean = two_parts(camera != 3)
    clean[(camera == 3) & leaked] = 0
    # `val` is ours, for choosing settings without looking at camera 3.
    val = np.select([camera == 1, camera == 2], [1, 2], 0).astype(np.int8)
    return {"xview": two_parts(camera != 3), "xview_clean": clean, "val": val}


def _odd_subjects(columns: Columns) -> Splits:
    """Subjects 1, 3, 5, 7 and 9 train; `val` tests on 7 and 9 of them, as above."""
    subject = columns["subject"]
    train = subject % 2 == 1
    val = np.select([train & (subject < 7), train], [1, 2], 0).astype(np.int8)
    return {"xsub": two_parts(train), "val": val}


def _styles(columns: Columns) -> Splits:
    """Styles active, feminine, normal and youthful train, the other three test (our choice).

    `val` tests on youthful.
    """
    style = columns["style"]
    train = np.isin(style, (0, 3, 5, 6))
    val = np.select([train & (style < 6), train], [1, 2], 0).astype(np.int8)
    return {"xstyle": two_parts(train), "val": val}


def _five_folds(columns: Columns) -> Splits:
    return {f"fold{k}": two_parts(columns["fold"] != k) for k in range(5)}


SETS = {
    "nucla": RaggedSet(
        "nucla.npz", KINECT20, ("subject", "camera", "trial", "leaked_test"), _nucla_splits
    ),
    "msr_action3d": RaggedSet(
        "msr_action3d.npz",
        KINECT20,
        ("subject", "trial"),
        _odd_subjects,
        used="used_cvpr12",
        order=KINECT20.joints,
    ),
    "sbu": RaggedSet(
        "sbu_interaction.npz",
        KINECT15,
        ("subject", "subject2", "fold", "trial"),
        _five_folds,
        _sbu_to_metres,
    ),
    "utkinect": RaggedSet("utkinect.npz", KINECT20, ("subject", "trial"), _odd_subjects),
    "florence3d": RaggedSet(
        "florence3d.npz", KINECT15, ("subject",), _odd_subjects, _florence_to_metres
    ),
    "ui_prmd": RaggedSet("ui_prmd_small.npz", KINECT22, ("subject", "trial"), _odd_subjects),
    "bandai_namco": RaggedSet("bandai_namco_2.npz", RIG21, ("style", "trial"), _styles),
}


def _columns(archive: Npz, path: Path, spec: RaggedSet) -> dict[str, Array]:
    """Load all arrays but the joints, and check that they fit each other.

    Raises InputError or Unreadable.
    """
    numbers = {"label", *spec.columns} | ({spec.used} if spec.used else set())
    texts = {"name", "class_names", "joint_names"}
    needed = {"joints", "offsets"} | numbers | texts
    missing = sorted(name for name in needed if name not in archive)
    if missing:
        raise InputError("raw", f"{path} lacks {', '.join(missing)}", "use the documented layout")
    optional = {key for key in ("scale", "fps") if key in archive}
    data = {key: archive.load(key, MOST_COLUMN) for key in {"offsets"} | numbers | texts | optional}
    joints = archive.header("joints")
    wanted = (spec.layout.num_joints, 3)
    if joints.dtype.kind not in "fiu" or joints.fortran or len(joints.shape) != 4:
        raise Unreadable(f"joints are {joints.dtype} {joints.shape}, not C-ordered numbers")
    if joints.shape[2:] != wanted or 0 in joints.shape:
        fix = f"expected (frames, bodies, {wanted[0]}, 3) for {spec.layout.name}"
        raise InputError("raw", f"joints of {path} have shape {joints.shape}", fix)
    clips = data["label"].size
    if clips > MOST_CLIPS or data["class_names"].size > MAX_CLASSES:
        raise Unreadable(f"has more than {MOST_CLIPS} clips or {MAX_CLASSES} classes")
    for key, array in data.items():
        kinds = "U" if key in texts else "fiu" if key in optional else "biu"
        fixed = {**dict.fromkeys(optional, ()), "joint_names": wanted[:1]}
        shape = {"offsets": (clips + 1,), **fixed}.get(key, (clips,))
        if array.dtype.kind not in kinds or (array.shape != shape and key != "class_names"):
            raise Unreadable(f"{key} is {array.dtype} {array.shape}, which does not fit its arrays")
    offsets = data["offsets"]
    rising = len(offsets) > 1 and bool((offsets[1:] >= offsets[:-1]).all())
    if not rising or int(offsets[0]) != 0 or int(offsets[-1]) != joints.shape[0]:
        raise InputError("raw", f"offsets of {path} do not fit its arrays", "fetch it again")
    if not np.isfinite(data.get("scale", 1.0)).all():
        raise Unreadable("scale is not finite")
    if not 0 <= float(data.get("fps", 0)) <= MOST_FPS:
        raise Unreadable(f"fps is not a number up to {MOST_FPS}")
    archive.check_ratio("joints")
    return data


def _pick(spec: RaggedSet, path: Path, found: list[str]) -> list[int] | slice:
    if not spec.order:
        return slice(None)
    if sorted(spec.order) != sorted(found):
        raise InputError("raw", f"joint_names of {path}", f"expected {', '.join(spec.order)}")
    return [found.index(joint) for joint in spec.order]


def _clip(
    rows: Array | None, scale: float, spec: RaggedSet, pick: list[int] | slice
) -> tuple[NDArray[np.float32] | None, str]:
    if rows is None:
        return None, f"more than {MAX_NUMBERS} coordinates"
    scaled = rows.astype(np.float64) * scale
    present = (scaled != 0).any(axis=(1, 2, 3))
    if not np.isfinite(scaled).all():
        return None, "NaN or infinite joints"
    if not present.any():
        return None, "no frame with a skeleton"
    clip = spec.to_metres(scaled[present][:, :, pick]).transpose(1, 0, 2, 3)
    return np.ascontiguousarray(clip, np.float32), ""


def open_ragged(name: str, raw: Path) -> Source:
    """Open the set of `SETS` with this name, from its `.npz` or the folder that holds it.

    All-zero frames are dropped and sequences with NaN or without any frame are skipped with a
    reason. Raises InputError if the file is missing, damaged or of another layout, also when its
    records are read.
    """
    spec = SETS[name]
    path = raw / spec.file if is_folder(raw) else raw
    with readable(path), Npz(path) as archive:
        data = _columns(archive, path, spec)
        names, class_names = texts_of(data["name"]), texts_of(data["class_names"])
        pick = _pick(spec, path, texts_of(data["joint_names"]))
    offsets = data["offsets"].astype(np.int64)
    scale = float(data["scale"]) if "scale" in data else 1.0
    chosen = [i for i in range(len(names)) if not spec.used or data[spec.used][i]]

    def records(start: int = 0) -> Iterator[Record]:
        wanted = set(chosen[start:])
        with readable(path), Npz(path) as archive:
            blocks = archive.blocks("joints", np.diff(offsets).tolist(), MAX_NUMBERS)
            # The file is read in order, so what is not wanted is passed over.
            for i, rows in enumerate(blocks):
                if i in wanted:
                    clip, reason = _clip(rows, scale, spec, pick)
                    meta = {key: int(data[key][i]) for key in spec.columns}
                    yield Record(names[i], clip, int(data["label"][i]), meta, reason)

    return Source(
        name=name,
        layout=spec.layout,
        class_names=tuple(class_names),
        count=len(chosen),
        records=records,
        identity=identity_of([path]),
        splits=lambda _, columns: spec.splits(columns),
        fps=float(data.get("fps", 0)),
    )
