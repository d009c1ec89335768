"""What the files of the three masks share: arguments, and which tokens a mask must keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sjepa_kernels import TokenMask
from tests.kernels.cases import Place, meta
from tests.kernels.fuzzing import FLOATS, Draw, philox_in_integers
from tests.kernels.op_case import Arguments, Use
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
SAYS: list[tuple[Arguments, str]] = [
    ({"keep": 13}, "keep: 13; keep 0 to "),
    ({"keep": -1}, "keep: -1; keep 0 to "),
    ({"seed": torch.tensor(0.5)}, "seed: torch.float32; pass an int64"),
    ({"seed": torch.tensor([1])}, r"seed: \(1,\); expected a 0-dim tensor"),
    ({"step": torch.tensor([1])}, r"step: \(1,\); expected a 0-dim tensor"),
    ({"step": torch.tensor(1.0)}, "step: torch.float32"),
    ({"bodies": 3}, "bodies: 3; must divide the batch of 4"),
    ({"bodies": 0}, "bodies: 0"),
    ({"clip_ids": torch.arange(3)}, r"clip_ids: \(3,\); expected \(C,\) = \(2,\)"),
    ({"clip_ids": torch.zeros(2)}, "clip_ids: torch.float32"),
    ({"purpose": -1}, "purpose: -1"),
    ({"impl": "fast"}, "impl: 'fast'; choose one of auto, triton, cpu, torch"),
]
GRID_SAYS: list[tuple[Arguments, str]] = [
    *SAYS,
    ({"tubelets": torch.zeros(4, 12)}, r"tubelets: \(4, 12\); expected \(B, N, P"),
    ({"tubelets": torch.zeros(4, 6, 0)}, r"tubelets: .*with P > 0"),
    ({"tubelets": torch.zeros(4, 6, 12).int()}, "tubelets: torch.int32"),
    ({"joints": 5}, "joints: 5; must divide the 6 tokens"),
    ({"tubelets": torch.zeros(4, 0, 12)}, "tubelets: 0 tokens; pass 1 to 4096"),
]


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


def use(op: Callable[..., TokenMask], place: Place, dtype: torch.dtype, small: bool) -> Use:
    """Call `op` with tubelets of even segments, a seed, how many joints they have, and options."""
    segments, joints = (4, 5) if small else (6, 7)
    tubelets = torch.randn(4, segments * joints, 6).to(place.device, dtype)
    whole = [torch.randint(99, shape).to(place.device) for shape in ((), (), (2,))]

    def mask(x: Tensor, seed: Tensor, step: Tensor, ids: Tensor) -> TokenMask:
        options = {"clip_ids_C": ids, "bodies": 2, "purpose": 5, "impl": place.impl}
        return op(x, seed, joints, step=step, **options)

    return Use(mask, [tubelets, *whole])


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
