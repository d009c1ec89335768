"""Attention of packed queries, keys and values."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sjepa_kernels import attention, self_attention
from sjepa_kernels.attention.cpu import PROCESSOR_HAS_CODE
from tests.kernels.cases import Place, gradients, leaves_of, meta
from tests.kernels.fuzzing import FLOATS, Draw
from tests.kernels.op_case import Arguments, Fuzz, Launch, OpCase, Use
from tests.kernels.spoils import NOT_FLOATS, VECTOR, WRONG_CHOICE


def arguments() -> Arguments:
    packed = torch.randn(2, 5, 3, 2, 4)
    return {"qkv": packed, "first": 1, "impl": "auto", "added_bias": torch.randn(24)}


def in_cpp(place: Place, dtype: torch.dtype, small: bool) -> Use:
    """In bfloat16, which is all that the C++ takes."""
    if place.impl == "cpu" and not PROCESSOR_HAS_CODE:
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
}


def random_call(draw: Draw) -> None:
    """Equal, bit for bit, to `attention` of the unpacked."""
    batch, heads, tokens = draw.size(), draw.size(), draw.size(1, 9)
    width, dtype = draw.one_of(1, 8, 16), draw.one_of(*FLOATS)
    first = draw.size(0, tokens - 1)
    packed = draw.normal((batch, tokens, 3, heads, width), dtype).requires_grad_()
    impl = draw.one_of("auto", "sdpa", "explicit")
    out = self_attention(packed, first=first, impl=impl)
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    truth = attention(q[:, :, first:], k, v, impl=impl).transpose(1, 2)
    assert torch.equal(out, truth)
    grad = draw.normal(tuple(out.shape), dtype)
    ours, theirs = (gradients(x, [packed], grad)[0] for x in (out, truth))
    assert torch.equal(ours, theirs)


CASE = OpCase(
    op=self_attention,
    tests=["test_self_attention.py"],
    arguments=arguments,
    spoils={
        "qkv": NOT_FLOATS
        | {"one axis less": lambda x: x[0], "two of three": lambda x: x[:, :, :2]},
        "first": [-1, 5],
        "impl": [*WRONG_CHOICE, "xformers", "flash", "cudnn", "efficient"],
        "added_bias": VECTOR,
    },
    also_named=["q, k, v"],
    uses=[in_cpp, of_sdpa],
    launches=LAUNCHES,
    fuzz=Fuzz(random_call),
    in_cpp=True,
)
