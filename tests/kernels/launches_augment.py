"""Launches of `augment_clips` for the ahead-of-time compilation, on meta tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from sjepa_kernels import Augmentation
from sjepa_kernels.augment.kernel import launch

DEFAULT = Augmentation(translation=0.1, flip=0.5)
EVERYTHING = Augmentation(
    frames=60, tilt=0.1, translation=0.1, scale=0.1, shear=0.1, flip=0.5, stream="bone_motion"
)
SETTINGS = {
    "default": DEFAULT,
    "mamp": dataclasses.replace(DEFAULT, form="axes", translation=0.0, flip=0.0),
    "all": EVERYTHING,
    "odd": dataclasses.replace(EVERYTHING, frames=33, bodies=1, segment_length=3),
}


def calls(a: Augmentation, dtype: torch.dtype, joints: int) -> Callable[[], Any]:
    """One launch for 128 clips of a store of 40,000."""

    def meta(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    inputs = [meta(4_000_000, joints, 3, dtype=dtype), *(meta(40_000) for _ in range(3))]
    inputs += [meta(128), meta(), meta(), meta(joints), meta(joints)]
    sizes = [a.frames, a.bodies, a.segment_length, a.crop_min_frames, 0, joints - 5]
    ranges = [a.crop_min, a.rotation, a.tilt, a.translation, a.scale, a.shear, a.flip]
    shape = (128 * a.bodies, a.frames // a.segment_length * joints, a.segment_length * 3)
    out = meta(*shape, dtype=torch.float32)
    return lambda: launch(inputs, out, out, sizes, ranges, a.form, a.stream)


CASES = {
    f"augment-{name}-{str(dtype).removeprefix('torch.')}": (
        "augment.kernel",
        calls(a, dtype, 17 if name == "odd" else 25),
    )
    for name, a in SETTINGS.items()
    for dtype in (torch.float16, torch.float32)
}
