"""What the fuzz tests share: settings, random shapes, numbers in random strides, comparisons.

Shapes include 0 and 1; strides are dense, turned, sliced out of NaN, or expanded. The examples are
the same in every run. The place `cpu-triton` runs the kernels themselves, interpreted.
"""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from torch import Tensor

from sjepa_kernels._triton import INTERPRETED
from tests.kernels.cases import Place, assert_within_budget, gradients

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HALVES = FLOATS[2:]
LAYOUTS = ["dense", "turned", "sliced", "expanded"]

fuzz = settings(
    derandomize=True,
    deadline=None,
    max_examples=40 if INTERPRETED else 80,
    # `place` is the same for all examples of a test, so it may be a fixture.
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
Draw = st.DataObject


def one_of(data: Draw, *values: Any) -> Any:
    return data.draw(st.sampled_from(values))


def size(data: Draw, least: int = 0, most: int = 4) -> int:
    return data.draw(st.integers(least, most))


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same numbers in other strides ("expanded": its first row for all)."""
    if layout == "turned" and values.ndim > 1:
        return values.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "sliced":
        gap = float("nan") if values.dtype.is_floating_point else 2**31 - 1
        return torch.stack([values, torch.full_like(values, gap)], dim=-1)[..., 0]
    if layout == "expanded" and values.ndim > 1 and values.shape[0] > 0:
        return values[:1].expand(values.shape)
    return values


def whole(data: Draw, place: Place, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Whole numbers: a sum of a few is exact in every dtype, so only the last rounding is left."""
    torch.manual_seed(size(data, 0, 99))
    values = torch.randint(-8, 9, shape).to(place.device, dtype)
    return laid_out(values, one_of(data, *LAYOUTS))


def normal(data: Draw, place: Place, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    torch.manual_seed(size(data, 0, 99))
    values = torch.randn(shape).to(place.device, dtype)
    return laid_out(values, one_of(data, *LAYOUTS))


def assert_rounded(ours: Tensor, truth: Tensor, what: str, extra: float = 0.0) -> None:
    """Demand float64's result, rounded once, up to `extra` of its size."""
    assert_within_budget(ours, truth.detach().to(ours.dtype), truth, what, extra)


def assert_all_rounded(
    out: Tensor, leaves: list[Tensor], true_out: Tensor, exact: list[Tensor], grad: Tensor
) -> None:
    """The output and every gradient are the float64 ones, rounded."""
    assert_rounded(out, true_out, "output")
    theirs = gradients(true_out, exact, grad.double())
    for k, (got, true) in enumerate(zip(gradients(out, leaves, grad), theirs, strict=True)):
        assert_rounded(got, true, f"gradient {k}")


def random_ids(
    data: Draw, place: Place, shape: tuple[int, int], bound: int, *, distinct: bool
) -> Tensor:
    torch.manual_seed(size(data, 0, 99))
    if distinct:
        rows = [torch.randperm(bound)[: shape[1]] for _ in range(shape[0])]
        ids = torch.stack(rows) if rows else torch.empty(shape, dtype=torch.int64)
    else:
        ids = torch.randint(max(bound, 1), shape)
    ids = ids.to(place.device, one_of(data, torch.int32, torch.int64))
    return laid_out(ids, one_of(data, *LAYOUTS))
