"""Launches of the residual addition with LayerNorm at common widths and at an odd one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sjepa_kernels.blocks import residual_norm


def calls(rows: int, width: int, dtype: torch.dtype) -> Callable[[], Any]:
    def run() -> None:
        x = torch.empty(rows, width, dtype=dtype, device="meta")
        weight = torch.empty(width, device="meta")
        y, total, mean, rstd = residual_norm._forward(x, x, weight, weight, 1e-5)
        for needs_affine in (True, False):
            residual_norm._gradients(y, total, total, mean, rstd, weight, needs_affine)

    return run


CASES = {
    f"residual_norm-{width}-{str(dtype)[6:]}{'-odd' * (width % 16 > 0)}": (
        "blocks.residual_norm",
        calls(77 if width == 100 else 192000, width, dtype),
    )
    for width in (128, 256, 512, 1024, 4096, 100)
    for dtype in (torch.bfloat16, torch.float32)
}
