"""What the files of `augment_clips` and `crop_resize` share: stores of clips."""

from __future__ import annotations

import torch
from torch import Tensor

from sjepa_kernels import SkeletonTables
from tests.kernels.augment_truth import Packed
from tests.kernels.fuzzing import FLOATS, Draw
from tests.kernels.op_case import Arguments
from tests.kernels.spoils import FLOAT, IDS, TABLE, Spoil, Ways, without

# Clips of 5, 3 and 4 frames, with one, two and two bodies.
FRAMES, BODIES, ROWS = torch.tensor([5, 3, 4]), torch.tensor([1, 2, 2]), 19


def arguments() -> Arguments:
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


SPOILS: dict[str, Ways] = {
    "joints": FLOAT | {"rows too few": lambda x: x[:-1]},
    "offsets": TABLE | {"negative": change(0, -1), "beyond": change(2, ROWS - 7)},
    "frames": TABLE | {"none": change(1, 0), "negative": change(1, -2), "too many": change(2, 5)},
    "bodies": TABLE | {"negative": change(1, -1), "too many": change(2, 3)},
    # Fewer or more clips than the whole store are as good.
    "ids": without(IDS, "one axis", "wider", "narrower"),
}


def random_store(draw: Draw, joints: int) -> Packed:
    """Up to four clips of 1 to 9 frames with no to 3 bodies, in a dtype and strides of any kind."""
    clips = draw.size(1)
    frames = torch.tensor([draw.size(1, 9) for _ in range(clips)])
    bodies = torch.tensor([draw.size(0, 3) for _ in range(clips)])
    rows = frames * bodies
    flip = draw.permutation(joints)
    parents = [draw.size(0, joints - 1) for _ in range(joints)]
    skeleton = SkeletonTables.of(
        flip, parents, draw.size(0, joints - 1), draw.size(0, joints - 1), draw.device
    )
    values = draw.normal((int(rows.sum()), joints, 3), draw.one_of(*FLOATS))
    offsets, frames, bodies = (x.to(draw.device) for x in (rows.cumsum(0) - rows, frames, bodies))
    return Packed(values, offsets, frames, bodies, skeleton)
