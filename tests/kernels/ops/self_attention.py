"""Attention of packed queries, keys and values."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sjepa_kernels import self_attention
from sjepa_kernels import use as use_of
from sjepa_kernels.attention.cpu import PROCESSOR_HAS_CODE
from tests.kernels.cases import Place, gradients, leaves_of, meta
from tests.kernels.fuzzing import FLOATS, Draw
from tests.kernels.op_case import Arguments, Fuzz, Launch, MakeUse, OpCase, Use
from tests.kernels.spoils import NOT_FLOATS, VECTOR, WRONG_CHOICE


def arguments() -> Arguments:
    packed = torch.randn(2, 5, 3, 2, 4)
    return {"qkv": packed, "first": 1, "impl": "auto", "added_bias": torch.randn(24)}


def in_cpp(place: Place, dtype: torch.dtype, small: bool) -> Use:
    """In bfloat16, which is all that the C++ takes."""
    if place.impl == "triton" or (place.impl == "cpu" and not PROCESSOR_HAS_CODE):
        pytest.skip("needs C++ and AVX-512 bfloat16")
    shape = (2, 9 if small else 41, 3, 3, 16)
    dtype = torch.bfloat16 if place.impl == "cpu" else dtype
    return Use(partial(self_attention, first=5), leaves_of(place, shape, dtype=dtype))


def after_a_bias(x: Tensor, bias: Tensor, **options: Any) -> Tensor:
    """Attention of `x + bias`, which leaves the gradient of the bias to the op."""
    packed = x + bias.detach().view(x.shape[2:])
    return self_attention(packed, added_bias=bias, **options)


def of_sdpa(place: Place, dtype: torch.dtype, small: bool) -> Use:
    """Its three gradients packed in one pass, with the sums of the bias."""
    if place.impl == "cpu":
        pytest.skip("SDPA is not C++ of ours")
    shape = (2, 5, 3, 2, 4) if small else (3, 41, 3, 3, 20)
    leaves = leaves_of(place, shape, (math.prod(shape[2:]),), dtype=dtype)
    return Use(partial(after_a_bias, first=2, impl="sdpa"), leaves)


def in_triton(tokens: int) -> MakeUse:
    """Our kernel, elsewhere the reference; in float32 up to 64 tokens are one tile."""

    def use(place: Place, dtype: torch.dtype, small: bool) -> Use:
        if place.impl == "cpu":
            pytest.skip("the C++ has a use of its own")
        shape = (1, 2, 3, 2, 16) if small else (1, tokens, 3, 2, 32)
        leaves = leaves_of(place, shape, (math.prod(shape[2:]),), dtype=dtype)
        return Use(partial(after_a_bias, first=1, impl=place.impl), leaves)

    return use


def fused(tokens: int, width: int, dtype: torch.dtype) -> Launch:
    """Forward and backward with the sums of the bias, of student or teacher."""

    def run(module: Any) -> None:
        qkv = meta(256, tokens, 3, 8, width, dtype=dtype)
        out, lse = module._forward(qkv, None, tokens // 10)
        module._gradients(out, qkv, out, lse, tokens // 10, True)

    return "attention.fused", run


def pack(batch: int, tokens: int, heads: int, width: int, dtype: torch.dtype, first: int) -> Launch:
    """Gradients as the backends leave them: by token, and by head."""

    def run(module: Any) -> None:
        dq = meta(batch, tokens - first, heads, width, dtype=dtype).transpose(1, 2)
        dk, dv = (meta(batch, heads, tokens, width, dtype=dtype) for _ in range(2))
        module._pack(dq, dk, dv, first, True)

    return "attention.packed", run


LAUNCHES = {
    "self_attention-pack-bfloat16": pack(256, 750, 8, 32, torch.bfloat16, 80),
    "self_attention-pack-float32": pack(256, 750, 8, 32, torch.float32, 80),
    "self_attention-pack-odd": pack(7, 75, 3, 20, torch.bfloat16, 7),
    "self_attention-750x16-bfloat16": fused(750, 16, torch.bfloat16),
} | {
    f"self_attention-{tokens}-{str(dtype)[6:]}": fused(tokens, 32, dtype)
    for tokens in (750, 75, 50)
    for dtype in (torch.bfloat16, torch.float32)
}


def random_call(draw: Draw) -> None:
    """Any form and any size against float64."""
    batch, heads = draw.size(), draw.size(1, 3)
    tokens, width = draw.size(1, 9), draw.one_of(1, 8, 16, 32)
    dtype, first = draw.one_of(*FLOATS), draw.size(0, tokens - 1)
    packed = draw.normal((batch, tokens, 3, heads, width), dtype).requires_grad_()
    bias = draw.normal((3 * heads * width,), torch.float32).requires_grad_()
    with use_of(draw.impl):
        impl = draw.one_of("auto", "sdpa", "explicit")
        out = self_attention(packed, first=first, impl=impl, added_bias=bias)
    exact = packed.detach().double().requires_grad_()
    q, k, v = exact.permute(2, 0, 3, 1, 4)
    scores = torch.einsum("bhnd,bhmd->bhnm", q[:, :, first:], k) / width**0.5
    truth = torch.einsum("bhnm,bhmd->bnhd", scores.softmax(-1), v)
    grad = draw.normal(tuple(out.shape), dtype)
    (true_grad,) = gradients(truth, [exact], grad.double())
    found = gradients(out, [packed, bias], grad)
    bound = {torch.float64: 1e-13, torch.float32: 4e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}
    scale = max(truth.norm(), grad.double().norm(), exact.norm())
    sums = true_grad.sum((0, 1)).flatten()
    assert out.shape == truth.shape and out.dtype == found[0].dtype == dtype
    for got, true in [(out, truth), (found[0], true_grad)]:
        assert (got.double() - true).norm() <= bound[dtype] * scale
    # Summed in float32, of as many terms as there are tokens.
    rounded = max(bound[dtype], 1e-6) * (batch * tokens) ** 0.5
    assert (found[1].double() - sums).norm() <= rounded * scale


CASE = OpCase(
    op=self_attention,
    tests=["test_self_attention.py"],
    arguments=arguments,
    spoils={
        "qkv": NOT_FLOATS
        | {"one axis less": lambda x: x[0], "two of three": lambda x: x[:, :, :2]},
        "first": [-1, 5],
        "impl": ["triton", *WRONG_CHOICE, "xformers", "flash", "cudnn", "efficient"],
        "added_bias": VECTOR,
    },
    says=[
        ({"added_bias": torch.zeros(23)}, r"added_bias: \(23,\); expected \(3 H d,\) = \(24,\)"),
    ],
    also_named=["q, k, v"],
    uses=[in_cpp, of_sdpa, in_triton(70), in_triton(37)],
    launches=LAUNCHES,
    fuzz=Fuzz(random_call),
    in_cpp=True,
)
