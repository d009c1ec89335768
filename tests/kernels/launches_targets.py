"""Launches of the contextualised targets at the default model's and at odd shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sjepa_kernels import targets


def calls(
    shape: tuple[int, int, int], masked: int, dtype: torch.dtype, norm: str
) -> Callable[[], Any]:
    def run() -> None:
        hidden = torch.empty(shape, dtype=dtype, device="meta")
        total = torch.empty(shape, device="meta")
        ids = torch.empty(shape[0], masked, dtype=torch.int64, device="meta")
        targets._accumulate(total, hidden, torch.empty((), device="meta"), norm)
        targets._finish(total, ids, True)
        targets._finish(total, None, norm == "layer")

    return run


CASES = {
    f"targets-{norm}-{batch}x{tokens}x{width}-{str(dtype)[6:]}{'-odd' * (width % 16 > 0)}": (
        "targets",
        calls((batch, tokens, width), masked, dtype, norm),
    )
    for batch, tokens, width, masked in (
        (512, 750, 256, 690),
        (64, 196, 1024, 98),
        (2, 16, 8192, 8),
        (3, 77, 100, 5),
    )
    for dtype in (torch.bfloat16, torch.float32)
    for norm in ("instance", "layer", "none")
}
