"""Fused pieces of a transformer block, and the teacher's targets, against eager and compiled.

`pytest benchmarks/bench_blocks.py --benchmark-only`; on a GPU where there is one, in bfloat16. Each
row checks its values before it is timed, and reports its peak memory. The rows "ours" of the block
ops need a GPU: on a CPU these ops are the eager row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, instance_norm, layer_norm, linear

from benchmarks.conftest import COMPILES, Timed, value_checks, variants
from sjepa_kernels import ContextualizedTargets, fused_mlp, gelu_mlp, residual_layer_norm

ON_GPU = torch.cuda.is_available()
DTYPE = torch.bfloat16 if ON_GPU else torch.float32
# Tolerance: one rounding of the result to the dtype.
CLOSE = 2e-2 if ON_GPU else 1e-5
SEQUENCES, TOKENS = (256, 750) if ON_GPU else (4, 750)
VARIANTS = [
    "eager",
    "compiled",
    pytest.param("ours", marks=pytest.mark.skipif(not ON_GPU, reason="Triton needs a GPU")),
]
pytestmark = COMPILES


def assert_close(ours: Tensor, truth: Tensor) -> None:
    with value_checks():
        assert (ours.double() - truth).norm() <= CLOSE * truth.norm()


def plain_targets(layers: list[Tensor], ids: Tensor) -> Tensor:
    """Method 4.3 with all layers alive."""
    total = torch.stack([instance_norm(x.mT.float()).mT for x in layers]).mean(0)
    total = layer_norm(total, total.shape[-1:])
    return total.gather(1, ids[:, :, None].expand(-1, -1, total.shape[2]))


def our_targets(layers: list[Tensor], ids: Tensor) -> Tensor:
    targets = ContextualizedTargets(len(layers))
    for x in layers:
        targets.add_(x)
    return targets.finish(ids)


@pytest.mark.benchmark(group="contextualised targets of 8 layers, width 256")
@pytest.mark.parametrize("variant", ["eager", "compiled", "ours"])
def test_targets(timed: Timed, device: torch.device, variant: str) -> None:
    torch.manual_seed(0)
    width = 256
    # The layers are there before the clock starts in every row; in a model only "ours" can let
    # each one go before the next is computed.
    layers = [torch.randn(SEQUENCES, TOKENS, width, device=device, dtype=DTYPE) for _ in range(8)]
    ids = torch.rand(SEQUENCES, TOKENS, device=device).argsort(1)[:, : TOKENS * 92 // 100]
    form = variants(plain_targets, our_targets, dynamic=False)[variant]
    with torch.no_grad():
        if not ON_GPU or variant == "ours":
            few = [x[:2] for x in layers]
            total = torch.stack([instance_norm(x.double().mT).mT for x in few]).mean(0)
            truth = layer_norm(total, (width,)).gather(1, ids[:2, :, None].expand(-1, -1, width))
            assert_close(form(layers, ids)[:2], truth)
        timed(lambda: form(layers, ids), dtype=DTYPE, rounds=15, warmup=5, sequences=SEQUENCES)


def plain_residual_norm(
    x: Tensor, r: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    total = x + r
    return layer_norm(total, weight.shape, weight, bias), total


def plain_mlp(x: Tensor, *parameters: Tensor) -> Tensor:
    norm_weight, norm_bias, w1, b1, w2, b2 = parameters
    normal = layer_norm(x, norm_weight.shape, norm_weight, norm_bias)
    return x + linear(gelu(linear(normal, w1, b1)), w2, b2)


def timed_with_gradients(
    timed: Timed, form: Callable[..., Any], plain: Callable[..., Any],
    leaves: list[Tensor], grads: list[Tensor],
) -> None:  # fmt: skip
    """Check values and gradients on the first rows, then time forward and backward."""

    def step(form: Callable[..., Any], leaves: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        out = form(*leaves)
        outputs = [out] if isinstance(out, Tensor) else list(out)
        return [*outputs, *torch.autograd.grad(outputs, leaves, grads)]

    rows = leaves[0].shape
    exact = [x.detach().double().requires_grad_() for x in leaves]
    few = [x.detach()[:256].requires_grad_() if x.shape == rows else x for x in leaves]
    exact = [x.detach()[:256].requires_grad_() if x.shape == rows else x for x in exact]
    some = [g[:256] for g in grads]
    for ours, truth in zip(
        step(form, few, some), step(plain, exact, [g.double() for g in some]), strict=True
    ):
        assert_close(ours, truth)
    timed(lambda: step(form, leaves, grads), dtype=DTYPE, rounds=15, warmup=5, shape=list(rows))


def random_leaves(device: torch.device, *shapes: tuple[int, ...]) -> list[Tensor]:
    return [
        (torch.randn(s, device=device) / s[-1] ** (len(s) == 2 and s[0] < 10_000) ** 0.5)
        .to(DTYPE)
        .requires_grad_()
        for s in shapes
    ]


@pytest.mark.benchmark(group="residual addition and LayerNorm, forward and backward")
@pytest.mark.parametrize("width", [256, 1024])
@pytest.mark.parametrize("variant", VARIANTS)
def test_residual_norm(timed: Timed, device: torch.device, variant: str, width: int) -> None:
    torch.manual_seed(0)
    rows = SEQUENCES * TOKENS
    leaves = random_leaves(device, (rows, width), (rows, width), (width,), (width,))
    grads = [torch.randn(rows, width, device=device, dtype=DTYPE) for _ in range(2)]
    form = variants(plain_residual_norm, residual_layer_norm)[variant]
    timed_with_gradients(timed, form, plain_residual_norm, leaves, grads)


def mlp_leaves(device: torch.device, width: int) -> list[Tensor]:
    torch.manual_seed(0)
    stream, wide = (SEQUENCES * TOKENS, width), (4 * width, width)
    return random_leaves(device, stream, (width,), (width,), wide, wide[:1], wide[::-1], (width,))


@pytest.mark.benchmark(group="MLP half of a block, forward and backward")
@pytest.mark.parametrize("width", [128, 256, 512])
@pytest.mark.parametrize("variant", VARIANTS)
def test_mlp(timed: Timed, device: torch.device, variant: str, width: int) -> None:
    leaves = mlp_leaves(device, width)
    grads = [torch.randn(leaves[0].shape, device=device, dtype=DTYPE)]
    form = variants(plain_mlp, fused_mlp)[variant]
    timed_with_gradients(timed, form, plain_mlp, leaves, grads)


@pytest.mark.benchmark(group="MLP half of a block, forward alone as in the teacher")
@pytest.mark.parametrize("variant", VARIANTS)
def test_mlp_of_the_teacher(timed: Timed, device: torch.device, variant: str) -> None:
    leaves = mlp_leaves(device, 256)
    form = variants(plain_mlp, fused_mlp)[variant]
    with torch.no_grad():
        few = [leaves[0][:256], *leaves[1:]]
        assert_close(form(*few), plain_mlp(*(x.double() for x in few)))
        shape = list(leaves[0].shape)
        timed(lambda: form(*leaves), dtype=DTYPE, rounds=15, warmup=5, shape=shape)


def plain_gelu_mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return linear(gelu(linear(x, w1, b1)), w2, b2)


def gelu_mlp_leaves(device: torch.device, width: int) -> list[Tensor]:
    torch.manual_seed(0)
    stream, wide = (SEQUENCES * TOKENS, width), (4 * width, width)
    return random_leaves(device, stream, wide, wide[:1], wide[::-1], (width,))


@pytest.mark.benchmark(group="MLP behind its norm, forward and backward")
@pytest.mark.parametrize("width", [128, 256, 512])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gelu_mlp(timed: Timed, device: torch.device, variant: str, width: int) -> None:
    leaves = gelu_mlp_leaves(device, width)
    grads = [torch.randn(leaves[0].shape, device=device, dtype=DTYPE)]
    form = variants(plain_gelu_mlp, gelu_mlp)[variant]
    timed_with_gradients(timed, form, plain_gelu_mlp, leaves, grads)


@pytest.mark.benchmark(group="MLP behind its norm, forward alone as in the target encoder")
@pytest.mark.parametrize("variant", VARIANTS)
def test_gelu_mlp_forward(timed: Timed, device: torch.device, variant: str) -> None:
    leaves = gelu_mlp_leaves(device, 256)
    form = variants(plain_gelu_mlp, gelu_mlp)[variant]
    with torch.no_grad():
        few = [leaves[0][:256], *leaves[1:]]
        assert_close(form(*few), plain_gelu_mlp(*(x.double() for x in few)))
        shape = list(leaves[0].shape)
        timed(lambda: form(*leaves), dtype=DTYPE, rounds=15, warmup=5, shape=shape)
