"""What computes values on the null GPU is right by itself: rules, bfloat16, and memory."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.null_gpu.device_memory import alias, poison
from tests.null_gpu.op_rules import RULES

triton = pytest.importorskip("triton")
from tests.null_gpu.interpreter_builder import rounded, widened  # noqa: E402 (needs Triton)

RUNS_ANYWHERE = True
aten = torch.ops.aten


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """The formula, query by query."""
    rows = []
    for n in range(q.shape[2]):
        logits = torch.einsum("bhd,bhmd->bhm", q[:, :, n], k) / q.shape[-1] ** 0.5
        if causal:
            logits = logits[..., : n + 1]
        p = logits.exp() / logits.exp().sum(-1, keepdim=True)
        rows.append(torch.einsum("bhm,bhmd->bhd", p, v[:, :, : p.shape[-1]]))
    return torch.stack(rows, dim=2)


# An op, what follows q, k and v among its arguments, the shape of its row sums; for the backward
# what stands between the row sums and the end.
FUSED: dict[str, tuple[Any, Any, tuple[Any, ...], tuple[int, ...]]] = {
    "flash": (
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_backward.default,
        (),
        (2, 3, 5),
    ),
    "efficient": (
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_efficient_attention_backward.default,
        (None, True),
        (2, 3, 32),
    ),
    "cudnn": (
        aten._scaled_dot_product_cudnn_attention.default,
        aten._scaled_dot_product_cudnn_attention_backward.default,
        (None, True),
        (2, 3, 5, 1),
    ),
}


def backward_arguments(kind: str, grad: Tensor, *saved: Tensor) -> tuple[Any, ...]:
    q, k, v, out, lse = saved
    none = torch.empty(0)
    return {
        "flash": (grad, q, k, v, out, lse, none, none, 5, 7, 0.0, False, none, none),
        "efficient": (grad, q, k, v, None, out, lse, none, none, 0.0, [True, True, True, False]),
        "cudnn": (grad, q, k, v, out, lse, none, none, None, none, none, 5, 7, 0.0, False),
    }[kind]


@pytest.mark.parametrize("kind", FUSED)
def test_fused_attention_and_its_gradients(kind: str) -> None:
    forward, backward, more, shape = FUSED[kind]
    q, k, v = drawn(2, 3, 5, 4), drawn(2, 3, 7, 4, seed=1), drawn(2, 3, 7, 4, seed=2)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    expected = softmax_attention(*leaves)
    grad = drawn(*expected.shape, seed=3)
    wanted = torch.autograd.grad(expected, leaves, grad)
    out, lse = torch.full_like(expected, torch.nan), torch.full(shape, torch.nan, dtype=q.dtype)
    outputs: list[Any] = [out, lse, None, None]
    RULES[forward]((q, k, v, *more), {}, outputs)
    torch.testing.assert_close(out, expected.detach())
    found: list[Any] = [torch.full_like(x, torch.nan) for x in (q, k, v)]
    bias = [None] if kind == "efficient" else []
    RULES[backward](backward_arguments(kind, grad, q, k, v, out, lse), {}, [*found, *bias])
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_fused_attention_with_scale_and_causal() -> None:
    forward = FUSED["flash"][0]
    q, k, v = drawn(1, 1, 5, 4), drawn(1, 1, 5, 4, seed=1), drawn(1, 1, 5, 4, seed=2)
    out, lse = torch.empty_like(q), torch.empty(1, 1, 5, dtype=q.dtype)
    RULES[forward]((q, k, v, 0.0, True), {"scale": 1.0}, [out, lse])
    torch.testing.assert_close(out, softmax_attention(q * 2, k, v, causal=True))


def test_a_norm_of_bfloat16_is_computed_in_float32() -> None:
    x, weight = drawn(4, 8).bfloat16() * 3 + 50, drawn(8, seed=1).bfloat16()
    out = torch.empty_like(x)
    mean, rstd = torch.empty(4, 1), torch.empty(4, 1)
    RULES[aten.native_layer_norm.default]((x, (8,), weight, None, 1e-5), {}, [out, mean, rstd])
    wide = x.double()
    torch.testing.assert_close(mean, wide.mean(1, keepdim=True).float())
    centered = wide - wide.mean(1, keepdim=True)
    normal = centered / (centered.square().mean(1, keepdim=True) + 1e-5).sqrt()
    assert torch.equal(out, (normal * weight.double()).bfloat16())


def test_bfloat16_is_rounded_as_torch_rounds_it() -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint64)
    ties = (np.arange(1000, dtype=np.uint64) << 16) + 0x3F808000
    x = np.concatenate([bits, ties]).astype(np.uint32).view(np.float32)
    expected = torch.from_numpy(x).bfloat16()
    found = torch.from_numpy(widened(rounded(x)))
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=0, equal_nan=True)


def test_an_alias_sees_the_same_elements_and_holds_no_memory() -> None:
    owner = np.arange(12.0)
    x = torch.from_numpy(owner).view(3, 4).t()
    seen = alias(x)
    assert seen.stride() == x.stride() and torch.equal(seen, x)
    seen[0, 1] = 7.0
    assert x[0, 1] == 7.0
    dies = weakref.ref(owner)
    del owner, x
    assert dies() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_poison_is_nan_and_leaves_what_lies_between(dtype: torch.dtype) -> None:
    x = torch.zeros(4, 6, dtype=dtype)
    poison(x[:, ::2])
    assert x[:, ::2].isnan().all() and (x[:, 1::2] == 0).all()


def test_poison_of_integers() -> None:
    x = torch.zeros(5, dtype=torch.int64)
    poison(x)
    assert x.tolist() == [-1] * 5
    assert ctypes.c_int64.from_address(x.data_ptr()).value == -1
