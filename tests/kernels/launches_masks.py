"""Launches of the mask kernels for `test_compile_ahead.py`, on meta tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sjepa_kernels.masks import tokens as op
from sjepa_kernels.masks import tubes


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def draws(clips: int) -> tuple[Tensor, Tensor, Tensor]:
    whole = torch.int64
    return meta(dtype=whole), meta(dtype=whole), meta(clips, dtype=whole)


def motion_calls(tokens: int, size: int, dtype: torch.dtype) -> Callable[[], Any]:
    tubelets = meta(256, tokens, size, dtype=dtype)
    return lambda: op._motion_aware_mask(
        tubelets, tokens // 10, 25, meta(), *draws(128), bodies=2, purpose=2
    )


def random_calls(tokens: int) -> Callable[[], Any]:
    return lambda: op._random_mask(tokens, tokens // 10, *draws(128), bodies=2, purpose=2)


def tube_calls(joints: int, size: int, dtype: torch.dtype) -> Callable[[], Any]:
    tubelets = meta(256, 30 * joints, size, dtype=dtype)
    return lambda: tubes._tube_mask(
        tubelets, 2, joints, 5, meta(), 3, *draws(128), bodies=2, purpose=2
    )


HALF, FULL = torch.bfloat16, torch.float32
# Half-size or odd numbers of a token, and kernels that read none, have nothing wide to load.
CASES = {
    "motion-mask-750x12-fp32": ("masks.tokens", motion_calls(750, 12, FULL)),
    "motion-mask-4000x12-fp32": ("masks.tokens", motion_calls(4000, 12, FULL)),
    "motion-mask-4000x9-bf16-narrow": ("masks.tokens", motion_calls(4000, 9, HALF)),
    "random-mask-750-narrow": ("masks.tokens", random_calls(750)),
    "random-mask-4096-narrow": ("masks.tokens", random_calls(4096)),
    "tube-mask-25x9-fp32-narrow": ("masks.tubes", tube_calls(25, 9, FULL)),
    "tube-mask-128x12-bf16-narrow": ("masks.tubes", tube_calls(128, 12, HALF)),
}
