"""Valid calls of the ops that draw, crop and mask, and how each may be wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sjepa_kernels import (
    Augmentation,
    SkeletonTables,
    augment_clips,
    clip_uniforms,
    crop_resize,
    motion_aware_mask,
    philox4x32,
    random_mask,
    tube_mask,
    uniform,
)
from tests.kernels.spoils import (
    COUNTS,
    FLOAT,
    IDS,
    INF,
    NAN,
    NOT_IDS,
    NOT_INT64,
    PLACES,
    SHAPES,
    WRONG_CHOICE,
    WRONG_POSITIVE,
    Call,
    Spoil,
    Ways,
    without,
)

SCALAR: dict[str, Spoil] = {
    **{way: SHAPES[way] for way in ("one axis more", "one axis")},
    **NOT_INT64,
}
NOT_INTEGERS = without(NOT_IDS, "torch.int16", "torch.uint8")
# Of a vector of one number a clip.
PER_CLIP = without(SHAPES, "one axis")
# Clips of 5, 3 and 4 frames, with one, two and two bodies.
FRAMES, BODIES, ROWS = torch.tensor([5, 3, 4]), torch.tensor([1, 2, 2]), 19


def store() -> dict[str, Any]:
    rows = FRAMES * BODIES
    return {
        "joints": torch.randn(ROWS, 4, 3),
        "offsets": rows.cumsum(0) - rows,
        "frames": FRAMES.clone(),
        "bodies": BODIES.clone(),
        "ids": torch.tensor([2, 0, 1]),
    }


def change(at: int, to: int) -> Spoil:
    """Put another number at one place."""

    def spoil(x: Tensor) -> Tensor:
        x = x.clone()
        x[at] = to
        return x

    return spoil


TABLE = PER_CLIP | PLACES | NOT_INT64
STORE: dict[str, Ways] = {
    "joints": FLOAT | {"rows too few": lambda x: x[:-1]},
    "offsets": TABLE | {"negative": change(0, -1), "beyond": change(2, ROWS - 7)},
    "frames": TABLE | {"none": change(1, 0), "negative": change(1, -2), "too many": change(2, 5)},
    "bodies": TABLE | {"negative": change(1, -1), "too many": change(2, 3)},
    # Fewer or more clips than the whole store are as good.
    "ids": without(IDS, "one axis", "wider", "narrower"),
}
KEYS: dict[str, Ways] = {"seed": SCALAR | PLACES, "step": SCALAR | PLACES}
SKELETON: dict[str, Any] = {"flip": (0, 1, 3, 2), "parents": (0, 0, 1, 1)}
SKELETON |= {"center": 0, "spine_top": 1, "device": "cpu"}


def keys() -> dict[str, Any]:
    return {"seed": torch.tensor(5), "step": torch.tensor(2)}


def crop() -> dict[str, Any]:
    within = {"start": torch.tensor([1, 0, 2]), "length": torch.tensor([3, 5, 1])}
    return store() | within | {"T": 4, "M": 2}


def augmented() -> dict[str, Any]:
    tables = SkeletonTables.of(**SKELETON)
    skeleton = {"skeleton.flip": tables.flip_V, "skeleton.parents": tables.parents_V}
    return store() | keys() | skeleton | {"impl": "auto"}


def call_augment(a: dict[str, Any]) -> object:
    *tensors, flip, parents, impl = a.values()
    tables = SkeletonTables(flip, parents, 0, 1)
    return augment_clips(*tensors, tables, Augmentation(frames=8), impl=impl)


def mask(**own: Any) -> dict[str, Any]:
    return own | {
        "keep": 2,
        "seed": torch.tensor(5),
        "step": torch.tensor(2),
        "clip_ids": torch.tensor([4, 9]),
        "bodies": 2,
        "purpose": 1,
        "impl": "auto",
    }


def call_mask(a: dict[str, Any], function: Any, *first: str) -> object:
    options = {name: value for name, value in a.items() if name not in first}
    options["clip_ids_C"] = options.pop("clip_ids")
    return function(*(a[name] for name in first), **options)


MASK: dict[str, Ways] = {
    "keep": COUNTS,
    "seed": SCALAR | PLACES,
    "step": without(SCALAR, "torch.int32") | PLACES,
    "clip_ids": PER_CLIP | PLACES | NOT_IDS,
    "bodies": [0, -1, 3],
    "purpose": [-1, 1 << 32],
    "impl": WRONG_CHOICE,
}
GRID: dict[str, Ways] = {
    "tubelets": without(FLOAT, "wider", "narrower")
    | {"no numbers": lambda x: x[..., :0], "no tokens": lambda x: x[:, :0]}
    | {"too many tokens": lambda x: x.repeat(1, 1000, 1)},
    "joints": [0, -1, 4],
}
CALLS: dict[str, Call] = {
    "philox4x32": (
        lambda: {
            "seed": torch.tensor(5),
            **{f"c{i}": torch.arange(3) for i in range(4)},
        },
        lambda a: philox4x32(*a.values()),
        {
            "seed": SCALAR | PLACES,
        }
        | {f"c{i}": NOT_INTEGERS | PLACES | {"other lengths": lambda x: x[:2]} for i in range(4)},
    ),
    "uniform": (
        lambda: {"bits": torch.arange(5)},
        lambda a: uniform(a["bits"]),
        {"bits": NOT_INTEGERS},
    ),
    "clip_uniforms": (
        lambda: keys() | {"ids": torch.tensor([4, 9]), "purpose": 1, "count": 5},
        lambda a: clip_uniforms(*a.values()),
        KEYS
        | {
            "ids": without(PER_CLIP, "wider", "narrower") | PLACES | NOT_IDS,
            "purpose": [-1, 1 << 32],
            "count": [-1],
        },
    ),
    "crop_resize": (
        crop,
        lambda a: crop_resize(*a.values()),
        STORE
        | {
            "start": TABLE | {"negative": change(0, -1), "too late": change(0, 2)},
            "length": TABLE | {"none": change(0, 0), "too long": change(1, 6)},
            "T": [0, -1],
            "M": [0, -1],
        },
    ),
    "augment_clips": (
        augmented,
        call_augment,
        STORE
        | KEYS
        | {f"skeleton.{name}": PER_CLIP | PLACES | NOT_INT64 for name in ("flip", "parents")}
        | {"impl": WRONG_CHOICE},
    ),
    "Augmentation": (
        lambda: {name: getattr(Augmentation(), name) for name in Augmentation.__annotations__},
        lambda a: Augmentation(**a),
        {
            **{n: [0, -1] for n in ("frames", "bodies", "crop_min_frames")},
            "segment_length": [0, -1, 7],
            **{n: [-0.1, 1.1, NAN, INF] for n in ("crop_min", "scale", "flip")},
            **{n: [-0.1, NAN, INF] for n in ("rotation", "tilt", "translation", "shear")},
            "form": ["", "Body"],
            "stream": ["", "bones"],
        },
    ),
    "SkeletonTables": (
        lambda: dict(SKELETON),
        lambda a: SkeletonTables.of(**a),
        {
            "flip": [(0, 1, 2), (0, 1, 1, 3), (0, 1, 2, 4), ()],
            "parents": [(0, 0, 1), (0, 0, 1, 4), (0, 0, 1, -1), ()],
            "center": [-1, 4],
            "spine_top": [-1, 4],
        },
    ),
    "motion_aware_mask": (
        lambda: mask(tubelets=torch.randn(4, 6, 12), joints=3, tau=0.8),
        lambda a: call_mask(a, motion_aware_mask, "tubelets", "keep", "seed"),
        GRID | MASK | {"tau": WRONG_POSITIVE},
    ),
    "tube_mask": (
        lambda: mask(tubelets=torch.randn(4, 6, 12), joints=3, tube_length=2, scale=0.1, coords=3),
        lambda a: call_mask(a, tube_mask, "tubelets", "keep", "seed"),
        GRID
        | MASK
        | {
            "tube_length": [0, -1, 3],
            "scale": [-0.1, NAN, INF, torch.tensor(-1.0), torch.tensor(NAN), torch.ones(2)],
            "coords": [0, -1, 5],
        },
    ),
    "random_mask": (
        lambda: mask(batch=4, tokens=6),
        lambda a: call_mask(a, random_mask, "batch", "tokens", "keep", "seed"),
        without(MASK, "bodies") | {"batch": [-2, 3], "tokens": [0, -1, 1, 4097]},
    ),
}
