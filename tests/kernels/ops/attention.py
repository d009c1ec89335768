"""Attention of queries to keys, on a CPU in our own code for bfloat16."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from sjepa_kernels import attention
from sjepa_kernels.attention.cpu import PROCESSOR_HAS_CODE
from tests.kernels.cases import Place, gradients, leaves_of
from tests.kernels.fuzzing import FLOATS, Draw
from tests.kernels.op_case import Absent, Arguments, Fuzz, OpCase, Use, normals
from tests.kernels.spoils import FLOAT, WRONG_CHOICE, Ways

FULL, SHAPE = torch.float32, (1, 2, 3, 4)


def arguments() -> Arguments:
    return normals(**dict.fromkeys("qkv", (2, 2, 3, 4))) | {"impl": "auto"}


def zeros(*shapes: tuple[int, ...], dtype: torch.dtype = FULL, **other: Any) -> Arguments:
    """Queries, keys and values of these shapes."""
    return dict(zip("qkv", (torch.zeros(s, dtype=dtype) for s in shapes), strict=True)) | other


def use(place: Place, dtype: torch.dtype, small: bool) -> Use:
    """Of the C++ alone, which is for bfloat16."""
    if not PROCESSOR_HAS_CODE:
        pytest.skip("needs C++ and AVX-512 bfloat16")
    shapes = [(2, 3, tokens, 16) for tokens in ((9, 11, 11) if small else (37, 41, 41))]
    return Use(partial(attention, impl="cpu"), leaves_of(place, *shapes, dtype=torch.bfloat16))


def random_call(draw: Draw) -> None:
    batch, heads, queries = draw.size(), draw.size(), draw.size(0, 9)
    keys, width = draw.size(1, 9), draw.one_of(1, 3, 8, 16)
    dtype = draw.one_of(*FLOATS)
    leaves = [
        draw.normal((batch, heads, n, width), dtype).requires_grad_() for n in (queries, keys, keys)
    ]
    out = attention(*leaves, impl=draw.one_of("auto", "sdpa", "explicit"))
    exact = [x.detach().double().requires_grad_() for x in leaves]
    scores = torch.einsum("bhnd,bhmd->bhnm", *exact[:2]) / width**0.5
    truth = (scores - scores.logsumexp(-1, keepdim=True)).exp() @ exact[2]
    grad = draw.normal(tuple(out.shape), dtype)
    assert out.shape == truth.shape and out.dtype == dtype
    bound = {torch.float64: 1e-13, torch.float32: 4e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}
    scale = max(truth.norm(), grad.double().norm(), *(x.norm() for x in exact))
    pairs = zip(gradients(out, leaves, grad), gradients(truth, exact, grad.double()), strict=True)
    for got, true in [(out, truth), *pairs]:
        assert (got.double() - true).norm() <= bound[dtype] * scale


TENSOR: Ways = FLOAT | {"bfloat16": lambda x: x.bfloat16()}
CASE = OpCase(
    op=attention,
    tests=["test_attention.py"],
    arguments=arguments,
    says=[
        ({"impl": "fast"}, "impl: 'fast'; choose one of"),
        ({"impl": "flash"}, "impl: 'flash' on cpu; it needs CUDA"),
        ({"impl": "triton"}, "'triton'; it takes packed tokens: call self_attention"),
        (
            zeros(*[SHAPE] * 3, dtype=torch.bfloat16, impl="xformers"),
            "half precision on CUDA",
        ),
        (zeros(*[SHAPE] * 3, dtype=torch.int32), "q: torch.int32"),
        (zeros(*[(2, 3, 4)] * 3), r"q: \(2, 3, 4\); expected"),
        (zeros(SHAPE, (1, 2, 5, 4), (1, 2, 6, 4)), "pair up"),
        (zeros(SHAPE, (1, 1, 3, 4), (1, 1, 3, 4)), "agree"),
    ],
    spoils={
        **dict.fromkeys("qkv", TENSOR),
        "impl": [*WRONG_CHOICE, "xformers", "flash", "cudnn", "efficient"],
    },
    also_named=["q, k, v"],
    uses=[use],
    launches=Absent("no Triton code: SDPA on a GPU, C++ on a CPU"),
    fuzz=Fuzz(random_call),
    in_cpp=True,
    in_triton=False,
)
