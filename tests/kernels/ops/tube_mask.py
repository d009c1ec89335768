"""Joints that stay visible for the whole of a tube."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sjepa_kernels import TokenMask, tube_mask
from tests.kernels.cases import meta
from tests.kernels.fuzzing import Draw
from tests.kernels.op_case import Arguments, Fuzz, Launch, OpCase
from tests.kernels.ops import _masks
from tests.kernels.spoils import INF, NAN


def arguments() -> Arguments:
    tubelets = torch.randn(4, 6, 12)
    return _masks.arguments(tubelets=tubelets, joints=3, tube_length=2, scale=0.1, coords=3)


def call(x: Tensor, seed: Tensor, joints: int, **options: Any) -> TokenMask:
    return tube_mask(x, 2, seed, joints=joints, tube_length=2, **options)


def launch(joints: int, numbers: int, dtype: torch.dtype) -> Launch:
    tubelets, draws = meta(256, 30 * joints, numbers, dtype=dtype), _masks.meta_draws()
    return "masks.tubes", lambda module: module._tube_mask(
        tubelets, 2, joints, 5, meta(), 3, *draws, bodies=2, purpose=2
    )


def random_call(draw: Draw) -> None:
    of = _masks.RandomGrid(draw, tubes=True)
    scale = draw.one_of(0.0, 0.1, 3.0)
    options = {"tube_length": of.length, "scale": scale, "coords": of.coords}
    mask = tube_mask(of.tubelets, of.keep, of.seed, joints=of.joints, **options, **of.options)
    # All frames of a joint in order, each compared with the next.
    frames = of.frames.shape[3]
    order = np.moveaxis(of.frames, 2, 3).reshape(
        of.batch, of.segments * frames, of.joints, of.coords
    )
    change = np.abs(np.diff(order, axis=1, append=order[:, -1:])).mean(axis=3)
    tubes = change.reshape(of.batch, of.groups, of.length * frames, of.joints)
    motion = tubes.mean(axis=2)
    of.check(mask, of.uniform + scale * motion / (motion.max(axis=2, keepdims=True) + 1e-6))


CASE = OpCase(
    op=tube_mask,
    tests=["test_masks.py"],
    arguments=arguments,
    says=[
        *_masks.GRID_SAYS,
        ({"scale": -0.1}, "scale: -0.1; pass a finite number not below zero"),
        ({"scale": torch.zeros(2)}, r"scale: \(2,\); pass a float or a 0-dim"),
        ({"tube_length": 3}, "tube_length: 3; must divide the 2 segments"),
        ({"coords": 5}, "coords: 5; must divide the 12 numbers"),
    ],
    spoils=_masks.GRID
    | _masks.SPOILS
    | {
        "tube_length": [0, -1, 3],
        "scale": [-0.1, NAN, INF, torch.tensor(-1.0), torch.tensor(NAN), torch.ones(2)],
        "coords": [0, -1, 5],
    },
    uses=[partial(_masks.use, call)],
    learns=False,
    # Half-size or odd numbers per token: nothing wide to load.
    launches={
        "tube-mask-25x9-fp32-narrow": launch(25, 9, torch.float32),
        "tube-mask-128x12-bf16-narrow": launch(128, 12, torch.bfloat16),
    },
    fuzz=Fuzz(random_call, examples=27, interpreted=6),
)
