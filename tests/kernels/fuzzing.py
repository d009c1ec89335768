"""What the random calls of `ops/` share: settings, shapes, numbers in random strides, comparisons.

Shapes include 0 and 1; strides are dense, turned, sliced out of NaN, or expanded. The examples are
the same in every run. The place `cpu-triton` runs the kernels themselves, interpreted.
"""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.cases import Place, assert_within_budget, gradients

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HALVES = FLOATS[2:]
LAYOUTS = ["dense", "turned", "sliced", "expanded"]

FUZZ = settings(
    derandomize=True,
    deadline=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow],
)


class Draw:
    """The choices of one random call at a place."""

    def __init__(self, place: Place, data: st.DataObject) -> None:
        self.place, self.data = place, data
        self.device, self.impl = place.device, place.impl

    def one_of(self, *values: Any) -> Any:
        return self.data.draw(st.sampled_from(values))

    def flag(self) -> bool:
        return self.data.draw(st.booleans())

    def integer(self, least: int, most: int) -> int:
        return self.data.draw(st.integers(least, most))

    def int64(self) -> int:
        return self.integer(-(2**63), 2**63 - 1)

    def size(self, least: int = 0, most: int = 4) -> int:
        return self.integer(least, most)

    def permutation(self, count: int) -> list[int]:
        return self.data.draw(st.permutations(range(count)))

    def seed_torch(self) -> None:
        torch.manual_seed(self.size(0, 99))

    def lay_out(self, values: Tensor) -> Tensor:
        return laid_out(values, self.one_of(*LAYOUTS))

    def whole(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Whole numbers: a sum of a few is exact in any dtype, but for the last rounding."""
        self.seed_torch()
        return self.lay_out(torch.randint(-8, 9, shape).to(self.device, dtype))

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        self.seed_torch()
        return self.lay_out(torch.randn(shape).to(self.device, dtype))

    def ids(self, shape: tuple[int, int], bound: int, *, distinct: bool = False) -> Tensor:
        self.seed_torch()
        if distinct:
            rows = [torch.randperm(bound)[: shape[1]] for _ in range(shape[0])]
            ids = torch.stack(rows) if rows else torch.empty(shape, dtype=torch.int64)
        else:
            ids = torch.randint(max(bound, 1), shape)
        return self.lay_out(ids.to(self.device, self.one_of(torch.int32, torch.int64)))


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


def assert_norms_close(found: list[Tensor], truth: list[Tensor], eps: float, spread: float) -> None:
    """Each tensor within rounding: a norm multiplies that of its input by `spread` each way."""
    for k, (ours, true) in enumerate(zip(found, truth, strict=True)):
        assert ours.shape == true.shape, k
        if true.numel():
            allowed = 8 * eps * spread * max(float(true.detach().abs().max()), 1.0)
            assert ((ours.double() - true).abs() <= allowed).all(), k


def spread_of(x: Tensor, *axes: int) -> float:
    """The largest of |x| / sqrt(var + 1e-5): how much a norm magnifies a rounding of x."""
    if x.numel() == 0:
        return 1.0
    deviation = (x.var(axes, correction=0, keepdim=True) + 1e-5).sqrt()
    return max(float((x.abs() / deviation).max()), 1.0)


def philox_in_integers(seed: int, counter: list[int]) -> list[int]:
    """The definition in Python's integers."""
    mask = 2**32 - 1
    k0, k1 = seed & mask, seed >> 32 & mask
    c0, c1, c2, c3 = (c & mask for c in counter)
    for _ in range(10):
        high, low = divmod(c0 * 0xD2511F53, 2**32), divmod(c2 * 0xCD9E8D57, 2**32)
        c0, c1, c2, c3 = low[0] ^ c1 ^ k0, low[1], high[0] ^ c3 ^ k1, high[1]
        k0, k1 = k0 + 0x9E3779B9 & mask, k1 + 0xBB67AE85 & mask
    return [c0, c1, c2, c3]
