"""Launches of the crop cross-entropy and of what surrounds both losses, to compile ahead."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch


def crop_calls(shape: tuple[int, ...], dtype: torch.dtype, full: bool) -> Callable[[], Any]:
    module = importlib.import_module("sjepa_kernels.losses.crop_pairs_ce")
    students, teachers, batch, width = shape
    student = torch.empty(students, batch, width, dtype=dtype, device="meta")
    teacher = torch.empty(teachers, batch, width, dtype=dtype, device="meta")
    center, temp = torch.empty(width, device="meta"), torch.empty((), device="meta")
    return lambda: module._launch(student, teacher, center, temp, temp, full, full)


def scale_calls(count: int, dtype: torch.dtype) -> Callable[[], Any]:
    module = importlib.import_module("sjepa_kernels.losses.scale")
    grad = torch.empty(count, dtype=dtype, device="meta")
    return lambda: module._scale_(grad, torch.empty((), device="meta"))


CASES = {
    f"crops-{'x'.join(map(str, shape))}-{str(dtype)[6:]}{'-all' * full}": (
        "losses.crop_pairs_ce",
        crop_calls(shape, dtype, full),
    )
    for shape in ((10, 2, 64, 65536), (2, 2, 1024, 4096), (8, 4, 64, 8192))
    for dtype in (torch.bfloat16, torch.float32)
    for full in (False, True)
}
CASES["crops-odd"] = ("losses.crop_pairs_ce", crop_calls((5, 3, 7, 1001), torch.float32, True))
CASES |= {
    f"scale-{str(dtype)[6:]}": ("losses.scale", scale_calls(1 << 20, dtype))
    for dtype in (torch.bfloat16, torch.float32)
}
