"""What the files of the three masks share: arguments, and which tokens a mask must keep."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sjepa_kernels import TokenMask
from tests.kernels.cases import Place, meta
from tests.kernels.fuzzing import FLOATS, Draw, philox_in_integers
from tests.kernels.op_case import Arguments
from tests.kernels.spoils import (
    COUNTS,
    FLOAT,
    KEYS,
    NOT_IDS,
    PER_CLIP,
    PLACES,
    SCALAR,
    WRONG_CHOICE,
    WRONG_PURPOSE,
    Ways,
    without,
)

Floats = npt.NDArray[np.float64]

SPOILS: dict[str, Ways] = {
    "keep": COUNTS,
    "seed": KEYS["seed"],
    "step": without(SCALAR, "torch.int32") | PLACES,
    "clip_ids": PER_CLIP | PLACES | NOT_IDS,
    "bodies": [0, -1, 3],
    "purpose": WRONG_PURPOSE,
    "impl": WRONG_CHOICE,
}
# Of the masks that measure motion.
GRID: dict[str, Ways] = {
    "tubelets": without(FLOAT, "wider", "narrower")
    | {
        "no numbers": lambda x: x[..., :0],
        "no tokens": lambda x: x[:, :0],
        "too many tokens": lambda x: x.repeat(1, 1000, 1),
    },
    "joints": [0, -1, 4],
}


def arguments(**own: Any) -> Arguments:
    return own | {
        "keep": 2,
        "seed": torch.tensor(5),
        "step": torch.tensor(2),
        "clip_ids": torch.tensor([4, 9]),
        "bodies": 2,
        "purpose": 1,
        "impl": "auto",
    }


def to_poison(place: Place) -> tuple[Tensor, Tensor]:
    """Tubelets of 6 segments of 7 joints, and a seed."""
    return torch.randn(3, 42, 6).to(place.device), torch.tensor(3, device=place.device)


def meta_draws(clips: int = 128) -> tuple[Tensor, Tensor, Tensor]:
    """Seed, step and ids of clips, for a launch."""
    whole = torch.int64
    return meta(dtype=whole), meta(dtype=whole), meta(clips, dtype=whole)


class RandomGrid:
    """Tubelets of any sizes, the numbers drawn for them, and the arguments that all masks take.

    In each of the `groups` of a sequence the same number of its `each` places stays visible.
    """

    def __init__(self, draw: Draw, *, tubes: bool) -> None:
        clips, self.bodies, groups = draw.size(0, 3), draw.size(1, 2), draw.size(1, 3)
        self.joints, self.length = draw.size(1, 9), draw.size(1, 3)
        self.segments, self.batch = groups * self.length, clips * self.bodies
        self.coords = draw.size(1, 3)
        numbers = self.coords * draw.size(1, 3)
        self.tokens = self.segments * self.joints
        shape = (self.batch, self.tokens, numbers)
        self.tubelets = draw.normal(shape, draw.one_of(*FLOATS))
        self.tubelets = self.tubelets * draw.one_of(0.0, 1e-3, 1.0, 1e3)
        if not tubes:
            self.length = 1
        self.groups, self.each = (groups, self.joints) if tubes else (1, self.tokens)
        self.keep = draw.size(0, self.each)
        seed, step, purpose = draw.int64(), draw.int64(), draw.size(0, 5)
        ids = draw.ids((1, clips), 2**31)[0]
        self.seed = torch.tensor(seed, device=draw.device)
        self.options = {
            "step": draw.one_of(step, torch.tensor(step, device=draw.device)),
            "clip_ids_C": ids,
            "bodies": self.bodies,
            "purpose": purpose,
            "impl": draw.impl,
        }
        places = range(self.bodies * self.groups * self.each)
        words = [
            [philox_in_integers(seed, [k // 4, clip, step, purpose])[k % 4] for k in places]
            for clip in ids.tolist()
        ]
        drawn = np.array(words, dtype=np.int64).reshape(self.batch, self.groups, self.each)
        self.uniform: Floats = (drawn >> 8) / 2.0**24
        # Batch, segments, joints, frames, coordinates.
        self.frames: Floats = (
            self.tubelets.double()
            .cpu()
            .numpy()
            .reshape(self.batch, self.segments, self.joints, numbers // self.coords, self.coords)
        )

    def check(self, mask: TokenMask, truth: Floats) -> None:
        """The smallest of `truth` stay visible, but where two at the cut are as good as equal."""
        kept, hidden, restore = (t.cpu().numpy() for t in mask)
        assert kept.shape == (self.batch, self.groups * self.length * self.keep)
        visible = np.zeros((self.batch, self.tokens), dtype=bool)
        np.put_along_axis(visible, kept, True, axis=1)
        for row, keep_row, hide_row, back in zip(visible, kept, hidden, restore, strict=True):
            assert keep_row.tolist() == np.flatnonzero(row).tolist()
            assert hide_row.tolist() == np.flatnonzero(~row).tolist()
            assert np.concatenate([keep_row, hide_row])[back].tolist() == list(range(len(row)))
        of_segments = visible.reshape(self.batch, self.groups, self.length, self.each)
        assert (of_segments == of_segments[:, :, :1]).all(), "a tube's segments differ"
        in_group = of_segments[:, :, 0]
        assert (in_group.sum(axis=2) == self.keep).all()
        largest = np.where(in_group, truth, -np.inf).max(axis=2, initial=-np.inf)
        smallest = np.where(in_group, np.inf, truth).min(axis=2, initial=np.inf)
        slack = 4e-6 * np.maximum(1, np.abs(truth).max(axis=2, initial=0))
        assert (largest <= smallest + slack).all()
