"""The `.pkl` of pyskl and mmaction2: `{"split": {...}, "annotations": [...]}`.

Each annotation has `frame_dir` (name), `label` and `keypoint`, (M, T, V, 3) in metres, or (M, T, V,
2) in image coordinates with `keypoint_score` (M, T, V). A pickle can run any
code when it is loaded, so only plain containers and numpy arrays are admitted.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.readers.image_pose import clip_from_poses
from sjepa_fast.data.readers.record import (
    Columns,
    Record,
    Source,
    Splits,
    identity_of,
    numbered_classes,
)
from sjepa_fast.errors import InputError
from sjepa_fast.skeletons import LAYOUTS, SkeletonLayout

_ALLOWED = {
    *((module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
    *((module, "scalar") for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
    *((module, "_frombuffer") for module in ("numpy.core.numeric", "numpy._core.numeric")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("_codecs", "encode"),
}


class _NumpyOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def load_restricted(path: Path) -> Any:
    """Unpickle a file that may hold plain containers and numpy arrays only.

    Returns its content. Raises InputError if the file is missing, damaged, or asks for anything
    else.
    """
    try:
        with path.open("rb") as file:
            return _NumpyOnly(file).load()
    except OSError as error:
        raise InputError("raw", f"{path}: {error.strerror}", "name a .pkl file") from error
    except Exception as error:
        fix = "use a pyskl pickle of plain numpy arrays"
        raise InputError("raw", f"{path} is not safe or not whole ({error})", fix) from error


def _layout(joints: int, coordinates: int) -> SkeletonLayout:
    # Both have 17 joints: COCO's are found in images, Human3.6M's in space.
    for layout in LAYOUTS:
        if layout.num_joints == joints and (layout.name != "coco17" or coordinates == 2):
            return layout
    known = ", ".join(f"{layout.name} ({layout.num_joints})" for layout in LAYOUTS)
    raise InputError("raw", f"keypoints have {joints} joints", f"layouts: {known}")


def _clip(
    annotation: dict[str, Any], layout: SkeletonLayout, coordinates: int
) -> tuple[NDArray[np.float32] | None, str]:
    keypoint = np.asarray(annotation["keypoint"])
    wanted = (layout.num_joints, coordinates)
    if keypoint.ndim != 4 or keypoint.shape[2:] != wanted or 0 in keypoint.shape:
        return None, f"keypoint has shape {keypoint.shape}"
    if keypoint.dtype.kind not in "fiu":
        return None, f"keypoint is of type {keypoint.dtype}"
    if not np.isfinite(keypoint).all():
        return None, "NaN or infinite joints"
    if coordinates == 2:
        score = np.asarray(annotation.get("keypoint_score", np.ones(keypoint.shape[:3])))
        if score.shape != keypoint.shape[:3] or score.dtype.kind not in "fiu":
            return None, f"keypoint_score has shape {score.shape}"
        flat = np.zeros(keypoint.shape[:3])
        poses = np.stack([keypoint[..., 0], keypoint[..., 1], flat, score], axis=-1)
        return clip_from_poses(poses.astype(np.float64), layout, image=True)
    present = keypoint.any(axis=(1, 2, 3))
    if not present.any():
        return None, "no frame with a skeleton"
    # A body that never appears is no body; the first one stays first.
    return keypoint[present].astype(np.float32), ""


def open_pyskl(raw: Path) -> Source:
    """Open a pyskl pickle.

    Returns the opened set; `xsub_train` and `xsub_val` become the split xsub, and so on; plain
    `train` and `val` become the split default. Raises InputError if the content has another form.
    """
    content = load_restricted(raw)
    try:
        annotations, lists = content["annotations"], content["split"]
        keypoint = np.asarray(annotations[0]["keypoint"])
        names = [str(annotation["frame_dir"]) for annotation in annotations]
        labels = [int(annotation["label"]) for annotation in annotations]
        members = {str(key): {str(name) for name in value} for key, value in lists.items()}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        fix = "expected {split, annotations: [{frame_dir, label, keypoint}]}"
        raise InputError("raw", f"{raw}: {error!r}", fix) from error
    if keypoint.ndim != 4 or keypoint.shape[-1] not in (2, 3):
        fix = "expected (M, T, V, 3) or (M, T, V, 2)"
        raise InputError("raw", f"keypoint has shape {keypoint.shape}", fix)
    coordinates = keypoint.shape[3]
    layout = _layout(keypoint.shape[2], coordinates)
    # Actions count from 1, as in the names of NTU.
    class_names = numbered_classes([label + 1 for label in labels], "A{:03d}")[1:]

    def records(start: int = 0) -> Iterator[Record]:
        every = zip(names, labels, annotations, strict=True)
        for name, label, annotation in islice(every, start, None):
            clip, reason = _clip(annotation, layout, coordinates)
            yield Record(name, clip, label, {}, reason)

    def splits(kept: list[str], columns: Columns) -> Splits:
        out: Splits = {}
        for key, chosen in members.items():
            base, _, part = key.rpartition("_")
            codes = out.setdefault(base or "default", np.zeros(len(kept), dtype=np.int8))
            codes[[name in chosen for name in kept]] = 1 if part == "train" else 2
        return out

    return Source(
        name=raw.stem,
        layout=layout,
        class_names=class_names,
        count=len(annotations),
        records=records,
        identity=identity_of([raw]),
        splits=splits,
    )
