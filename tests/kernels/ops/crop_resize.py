"""A crop of each clip, resized in time."""

from __future__ import annotations

import numpy as np
import torch

from sjepa_kernels import crop_resize
from tests.kernels.fuzzing import Draw, assert_rounded
from tests.kernels.op_case import Absent, Arguments, Fuzz, OpCase
from tests.kernels.ops import _store
from tests.kernels.ops._store import change
from tests.kernels.spoils import TABLE


def arguments() -> Arguments:
    within = {"start": torch.tensor([1, 0, 2]), "length": torch.tensor([3, 5, 1])}
    return _store.arguments() | within | {"T": 4, "M": 2}


def random_call(draw: Draw) -> None:
    """Every coordinate is NumPy's linear interpolation at half-pixel centers."""
    store = _store.random_store(draw, draw.size(1, 3))
    ids = draw.ids((1, draw.size()), len(store.frames))[0]
    valid = store.frames[ids].tolist()
    length = [draw.size(1, n) for n in valid]
    start = [draw.size(0, all_ - n) for all_, n in zip(valid, length, strict=True)]
    frames, bodies = draw.size(1, 7), draw.size(1, 3)
    starts, lengths = (torch.tensor(x, dtype=torch.int64) for x in (start, length))
    out = crop_resize(*store.args(), ids, starts, lengths, frames, bodies)
    expected = np.zeros(out.shape)
    joints = store.joints.double().numpy()
    for b, clip in enumerate(ids.tolist()):
        at = np.arange(length[b])
        wanted = (np.arange(frames) + 0.5) * length[b] / frames - 0.5
        for m in range(min(int(store.bodies[clip]), bodies)):
            first = int(store.offsets[clip]) + m * valid[b] + start[b]
            for v, c in np.ndindex(joints.shape[1:]):
                column = joints[first : first + length[b], v, c]
                expected[b, m, :, v, c] = np.interp(wanted, at, column)
    assert_rounded(out, torch.from_numpy(expected), "crop", 1e-6)


CASE = OpCase(
    op=crop_resize,
    tests=["test_augment.py"],
    arguments=arguments,
    calls=lambda a: crop_resize(*a.values()),
    spoils=_store.SPOILS
    | {
        "start": TABLE | {"negative": change(0, -1), "too late": change(0, 2)},
        "length": TABLE | {"none": change(0, 0), "too long": change(1, 6)},
        "T": [0, -1],
        "M": [0, -1],
    },
    # As parameters, T and M have the names of the store's tables, which lack the suffix in errors.
    also_named=["frames", "bodies"],
    uses=Absent("plain PyTorch; the kernel of augment_clips crops by itself"),
    launches=Absent("plain PyTorch; the kernel of augment_clips crops by itself"),
    fuzz=Fuzz(random_call),
    checked_with="augment_clips",
    in_triton=False,
)
