"""Small public sets in one ragged `.npz` layout.

`joints` (sum of T, M, V, 3), float32 metres or int16 with `scale`; `offsets` (N + 1); `label`;
`name`; `class_names`; `joint_names`; id and split columns. T frames, M bodies, V joints.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.readers.record import Columns, Record, Source, Splits, identity_of, two_parts
from sjepa_fast.errors import InputError
from sjepa_fast.skeletons import KINECT15, KINECT20, SkeletonLayout

Array = NDArray[Any]


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
}


def _load(path: Path) -> dict[str, Array]:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except FileNotFoundError as error:
        raise InputError("raw", f"{path} does not exist", "name the folder or file") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        fix = "fetch it again"
        raise InputError("raw", f"{path} is no readable .npz ({error})", fix) from error


def _check(path: Path, data: dict[str, Array], spec: RaggedSet) -> None:
    wanted = {"joints", "offsets", "label", "name", "class_names", "joint_names", *spec.columns}
    wanted |= {spec.used} if spec.used else set()
    missing = sorted(wanted - set(data))
    if missing:
        raise InputError("raw", f"{path} lacks {', '.join(missing)}", "use the documented layout")
    joints, offsets = data["joints"], data["offsets"]
    if joints.ndim != 4 or joints.shape[2:] != (spec.layout.num_joints, 3):
        fix = f"expected (frames, bodies, {spec.layout.num_joints}, 3) for {spec.layout.name}"
        raise InputError("raw", f"joints of {path} have shape {joints.shape}", fix)
    counts = {len(data["label"]), len(data["name"]), len(offsets) - 1}
    if len(counts) != 1 or offsets[-1] != len(joints) or (np.diff(offsets) < 0).any():
        raise InputError("raw", f"offsets of {path} do not fit its arrays", "fetch it again")


def open_ragged(name: str, raw: Path) -> Source:
    """Open the set of `SETS` with this name, from its `.npz` or the folder that holds it.

    All-zero frames are dropped and sequences with NaN or without any frame are skipped with a
    reason.
    """
    spec = SETS[name]
    path = raw / spec.file if raw.is_dir() else raw
    data = _load(path)
    _check(path, data, spec)
    offsets, names = data["offsets"], [str(n) for n in data["name"]]
    file_joints = [str(joint) for joint in data["joint_names"]]
    if spec.order and sorted(spec.order) != sorted(file_joints):
        raise InputError("raw", f"joint_names of {path}", f"expected {', '.join(spec.order)}")
    pick = [file_joints.index(joint) for joint in spec.order] if spec.order else slice(None)
    scale = float(data["scale"]) if "scale" in data else 1.0
    chosen = [i for i in range(len(names)) if not spec.used or data[spec.used][i]]

    def records(start: int = 0) -> Iterator[Record]:
        for i in chosen[start:]:
            rows = data["joints"][offsets[i] : offsets[i + 1]].astype(np.float64) * scale
            meta = {key: int(data[key][i]) for key in spec.columns}
            label = int(data["label"][i])
            present = (rows != 0).any(axis=(1, 2, 3))
            if not np.isfinite(rows).all():
                yield Record(names[i], None, label, meta, "NaN or infinite joints")
            elif not present.any():
                yield Record(names[i], None, label, meta, "no frame with a skeleton")
            else:
                clip = spec.to_metres(rows[present][:, :, pick]).transpose(1, 0, 2, 3)
                yield Record(names[i], np.ascontiguousarray(clip, np.float32), label, meta)

    return Source(
        name=name,
        layout=spec.layout,
        class_names=tuple(str(c) for c in data["class_names"]),
        count=len(chosen),
        records=records,
        identity=identity_of([path]),
        splits=lambda _, columns: spec.splits(columns),
    )
