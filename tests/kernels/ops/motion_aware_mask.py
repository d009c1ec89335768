"""Tokens that stay visible the likelier, the less they move."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sjepa_kernels import TokenMask, motion_aware_mask
from tests.kernels.cases import meta
from tests.kernels.fuzzing import Draw
from tests.kernels.op_case import Arguments, Fuzz, Launch, OpCase
from tests.kernels.ops import _masks
from tests.kernels.spoils import WRONG_POSITIVE


def arguments() -> Arguments:
    return _masks.arguments(tubelets=torch.randn(4, 6, 12), joints=3, tau=0.8)


def call(x: Tensor, seed: Tensor, joints: int, **options: Any) -> TokenMask:
    return motion_aware_mask(x, 6, seed, joints=joints, **options)


def launch(tokens: int, numbers: int, dtype: torch.dtype) -> Launch:
    tubelets, draws = meta(256, tokens, numbers, dtype=dtype), _masks.meta_draws()
    return "masks.tokens", lambda module: module._motion_aware_mask(
        tubelets, tokens // 10, 25, meta(), *draws, bodies=2, purpose=2
    )


def random_call(draw: Draw) -> None:
    of = _masks.RandomGrid(draw, tubes=False)
    tau = draw.one_of(0.05, 0.8, 5.0)
    mask = motion_aware_mask(of.tubelets, of.keep, of.seed, joints=of.joints, tau=tau, **of.options)
    change = np.abs(np.diff(of.frames, axis=1)).mean(axis=(3, 4))
    begin = change[:, :1] if of.segments > 1 else np.zeros((of.batch, 1, of.joints))
    motion = np.concatenate([begin, change], axis=1).reshape(of.uniform.shape)
    heat = motion / (motion.max(axis=2, keepdims=True) * tau + 1e-10)
    rounded = (of.uniform.astype(np.float32) + np.float32(1e-10)).astype(np.float64)
    of.check(mask, heat - np.log(-np.log(rounded) + 1e-10))


CASE = OpCase(
    op=motion_aware_mask,
    tests=["test_masks.py"],
    arguments=arguments,
    says=[
        *_masks.GRID_SAYS,
        ({"tau": 0.0}, "tau: 0.0; pass a finite number above zero"),
    ],
    spoils=_masks.GRID | _masks.SPOILS | {"tau": WRONG_POSITIVE},
    uses=[partial(_masks.use, call)],
    learns=False,
    launches={
        "motion-mask-750x12-fp32": launch(750, 12, torch.float32),
        "motion-mask-4000x12-fp32": launch(4000, 12, torch.float32),
        # An odd number per token: nothing wide to load.
        "motion-mask-4000x9-bf16-narrow": launch(4000, 9, torch.bfloat16),
    },
    fuzz=Fuzz(random_call, examples=27, interpreted=6),
)
