"""Attention of packed queries, keys and values."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from sjepa_kernels import attention, self_attention
from sjepa_kernels.attention.cpu import PROCESSOR_HAS_CODE
from tests.kernels.cases import Place, gradients, leaves_of
from tests.kernels.fuzzing import FLOATS, Draw
from tests.kernels.op_case import Absent, Arguments, Fuzz, OpCase, Use
from tests.kernels.spoils import NOT_FLOATS, WRONG_CHOICE


def arguments() -> Arguments:
    return {"qkv": torch.randn(2, 5, 3, 2, 4), "first": 1, "impl": "auto"}


def use(place: Place, dtype: torch.dtype, small: bool) -> Use:
    """Of the C++ alone, which is for bfloat16."""
    if not PROCESSOR_HAS_CODE:
        pytest.skip("needs C++ and AVX-512 bfloat16")
    shape = (2, 9 if small else 41, 3, 3, 16)
    return Use(partial(self_attention, first=5), leaves_of(place, shape, dtype=torch.bfloat16))


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
    tests=["test_attention.py"],
    arguments=arguments,
    spoils={
        "qkv": NOT_FLOATS
        | {"one axis less": lambda x: x[0], "two of three": lambda x: x[:, :, :2]},
        "first": [-1, 5],
        "impl": [*WRONG_CHOICE, "xformers"],
    },
    also_named=["q, k, v"],
    uses=[use],
    launches=Absent("no Triton code: SDPA on a GPU, C++ on a CPU"),
    fuzz=Fuzz(random_call),
    in_cpp=True,
    in_triton=False,
)
