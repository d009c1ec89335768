"""Launches of the fused MLP at common widths and at an odd one.

Its backward ends with a launch of `residual_norm`, which has cases of its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch


def calls(rows: int, width: int, dtype: torch.dtype, dot: torch.dtype) -> Callable[[], Any]:
    module = importlib.import_module("sjepa_kernels.blocks.fused_mlp")
    hidden = 4 * width
    shapes = [(width,), (width,), (hidden, width), (hidden,), (width, hidden), (width,)]

    def run() -> None:
        x = torch.empty(rows, width, dtype=dtype, device="meta")
        parameters = [torch.empty(s, device="meta") for s in shapes]
        module._forward(x, *parameters, 1e-5, dot)
        weights = [p.to(dot) for p in parameters[2:5]]
        module._chunks(x, x, (*parameters[:2], 1e-5), weights, torch.float32, True)

    return run


# Rows are few: the backward repeats one launch for each chunk of them.
CASES = {
    f"fused_mlp-{width}-{str(dtype)[6:]}{'-odd' * (width % 16 > 0)}": (
        "blocks.fused_mlp",
        calls(77 if width == 100 else 1920, width, dtype, dtype),
    )
    for width in (128, 256, 512, 100)
    for dtype in (torch.bfloat16, torch.float32)
} | {
    f"fused_mlp-{width}-autocast": (
        "blocks.fused_mlp",
        calls(1920, width, torch.float32, torch.bfloat16),
    )
    for width in (256, 512)
}
