"""Kernels launched on the null GPU compute, also where Triton's own interpreter is wrong."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from tests.null_gpu.device_memory import StaleAddress
from tests.null_gpu.traces import GPU
from tests.null_gpu.values import compute_values


@triton.jit
def _halve(x):  # noqa: ANN001, ANN202 (a kernel)
    return x * 0.5


@triton.jit
def _product_kernel(a, b, out, sums, N: tl.constexpr):  # noqa: ANN001, ANN202 (a kernel)
    """out = a b / 2 in bfloat16 with its column sums, and a program for each pair of matrices."""
    place = tl.program_id(0) * N * N + tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    x, y = tl.load(a + place), tl.load(b + place)
    found = _halve(tl.dot(x, y)).to(tl.bfloat16)
    # Native bfloat16 arithmetic, with a scalar and between tensors.
    found = found * 3.0 - found
    tl.store(out + place, found)
    tl.atomic_add(sums + tl.arange(0, N), tl.sum(found.to(tl.float32), axis=0))


def drawn(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 16, 16, generator=generator).bfloat16()


def test_products_and_arithmetic_in_bfloat16() -> None:
    a, b = drawn(0), drawn(1)
    with compute_values() as values:
        out, sums = torch.empty_like(a, device=GPU), torch.zeros(16, device=GPU)
        _product_kernel[(2,)](a.to(GPU), b.to(GPU), out, sums, N=16)
        found, found_sums = out.cpu(), sums.cpu()
    assert values.computed["_product_kernel"] == 1
    half = ((a.double() @ b.double()).float() / 2).bfloat16()
    expected = half * 3 - half
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    assert float((found == expected).float().mean()) > 0.98  # sums in another order round apart
    torch.testing.assert_close(found_sums, found.float().sum((0, 1)), rtol=1e-5, atol=1e-5)


@triton.jit
def _follow_kernel(table, out, HOW: tl.constexpr):  # noqa: ANN001, ANN202 (a kernel)
    place = tl.load(table).to(tl.pointer_type(tl.float32))
    if HOW == "read":
        tl.store(out, tl.load(place))
    elif HOW == "masked":
        tl.store(out, tl.load(place, mask=tl.load(out) > 0, other=7.0))
    else:
        tl.store(place, 5.0)


def test_addresses_in_a_table_are_followed() -> None:
    with compute_values():
        x, out = torch.full((4,), 3.0, device=GPU), torch.zeros(1, device=GPU)
        table = torch.tensor([x.data_ptr() + 8], device=GPU)
        _follow_kernel[(1,)](table, out, HOW="read")
        _follow_kernel[(1,)](table, out, HOW="write")
        assert out.tolist() == [3.0] and x.tolist() == [3.0, 3.0, 5.0, 3.0]


@pytest.mark.parametrize("how", ["read", "write"])
@pytest.mark.parametrize("address", [-1, 0, 4096])
def test_addresses_of_no_memory_are_an_error(how: str, address: int) -> None:
    with compute_values():
        out, table = torch.zeros(1, device=GPU), torch.tensor([address], device=GPU)
        with pytest.raises(StaleAddress, match=f"_follow_kernel {how}s"):
            _follow_kernel[(1,)](table, out, HOW=how)
        _follow_kernel[(1,)](table, out, HOW="masked")
        assert out.tolist() == [7.0]


def test_kernels_compile_after_others_were_interpreted() -> None:
    """What makes the language compute is taken back."""
    with compute_values():
        for how in ("read", "write"):
            x = torch.zeros(1, device=GPU)
            _follow_kernel[(1,)](torch.tensor([x.data_ptr()], device=GPU), x, HOW=how)
    assert _follow_kernel.warmup(torch.int64, torch.float16, HOW="masked", grid=(1,)) is not None
