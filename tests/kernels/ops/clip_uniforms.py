"""The uniform numbers of each clip at a step."""

from __future__ import annotations

import torch

from sjepa_kernels import clip_uniforms
from tests.kernels.fuzzing import Draw, philox_in_integers
from tests.kernels.op_case import Absent, Arguments, Fuzz, OpCase
from tests.kernels.spoils import KEYS, NOT_IDS, PER_CLIP, PLACES, WRONG_PURPOSE, without


def arguments() -> Arguments:
    return {
        "seed": torch.tensor(5),
        "step": torch.tensor(2),
        "ids": torch.tensor([4, 9]),
        "purpose": 1,
        "count": 5,
    }


def random_call(draw: Draw) -> None:
    seed, step = draw.int64(), draw.int64()
    purpose, count, clips = draw.integer(0, 2**32 - 1), draw.size(0, 9), draw.size()
    ids = draw.ids((1, clips), 2**31)[0]
    drawn = clip_uniforms(torch.tensor(seed), torch.tensor(step), ids, purpose, count)
    assert drawn.shape == (clips, count) and drawn.dtype == torch.float32
    for row, clip in zip(drawn.tolist(), ids.tolist(), strict=True):
        words = [w for c in range(3) for w in philox_in_integers(seed, [c, clip, step, purpose])]
        assert row == [(word >> 8) / 2**24 for word in words[:count]]


CASE = OpCase(
    op=clip_uniforms,
    tests=["test_augment.py"],
    arguments=arguments,
    spoils=KEYS
    | {
        "ids": without(PER_CLIP, "wider", "narrower") | PLACES | NOT_IDS,
        "purpose": WRONG_PURPOSE,
        "count": [-1],
    },
    uses=Absent("plain PyTorch; the kernel of augment_clips draws by itself"),
    launches=Absent("plain PyTorch; the kernel of augment_clips draws by itself"),
    fuzz=Fuzz(random_call),
    checked_with="augment_clips",
    in_triton=False,
)
