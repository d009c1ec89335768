"""Fused ops against what they replace: eager PyTorch and `torch.compile`.

`pytest benchmarks/bench_kernels.py --benchmark-only`; on a GPU where there is one. Each row checks
its values before it is timed, and reports GB/s of the bytes the op must move.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sjepa_kernels import (
    EmaPlan,
    centered_softmax_cross_entropy,
    pack_tokens,
    scatter_mask_tokens,
)
from sjepa_kernels._native import LIBRARY

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OURS_BUILT = pytest.mark.skipif(
    DEVICE == "cpu" and LIBRARY is None, reason="the C++ library is not built"
)
CE_SHAPES = [(172800, 256), (8192, 65536)] if DEVICE == "cuda" else [(16384, 256), (1024, 4096)]
# Inductor imports a module of torch that torch itself deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method.:DeprecationWarning")

Step = Callable[[], Any]


def measure(benchmark: Any, step: Step, gigabytes: float) -> None:
    """Time a step, synchronised, and note its bandwidth by the bytes it cannot avoid."""

    def synchronised() -> None:
        step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(synchronised, rounds=15, warmup_rounds=5, iterations=1)
    benchmark.extra_info["device"] = (
        torch.cuda.get_device_name() if DEVICE == "cuda" else f"{torch.get_num_threads()} threads"
    )
    benchmark.extra_info["torch"] = torch.__version__
    # stats is None where pytest-benchmark runs each function once (--benchmark-disable).
    if benchmark.stats is not None:
        benchmark.extra_info["GB/s"] = gigabytes / benchmark.stats.stats.median


def plain_centered_ce(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
    target = torch.softmax((teacher - center) / 0.06, dim=-1)
    return -(target * torch.log_softmax(student / 0.1, dim=-1)).sum(-1).mean()


def plain_loss_and_center(
    student: Tensor, teacher: Tensor, center: Tensor
) -> tuple[Tensor, Tensor]:
    return plain_centered_ce(student, teacher, center), teacher.sum(0)


@pytest.mark.benchmark(group="centred cross-entropy, forward, gradient and centre sum")
@pytest.mark.parametrize(
    "shape", [(16384, 256), (1024, 65536 if DEVICE == "cuda" else 4096)], ids=str
)
@pytest.mark.parametrize("variant", ["eager", "compiled", pytest.param("ours", marks=OURS_BUILT)])
def test_centered_ce(benchmark: Any, variant: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    student = torch.randn(shape, device=DEVICE, requires_grad=True)
    teacher, center = torch.randn(shape, device=DEVICE), torch.zeros(shape[1], device=DEVICE)
    losses: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
        "eager": plain_loss_and_center,
        "compiled": torch.compile(plain_loss_and_center, dynamic=False),
        "ours": centered_softmax_cross_entropy,
    }
    loss_of = losses[variant]

    def step() -> Tensor:
        student.grad = None
        loss, _ = loss_of(student, teacher, center)
        loss.backward()
        return loss

    loss = step()
    assert student.grad is not None
    exact = student.detach().double().requires_grad_()
    truth = plain_centered_ce(exact, teacher.double(), center.double())
    (grad,) = torch.autograd.grad(truth, exact)
    assert (loss.double() - truth).abs() <= 1e-6 * truth
    assert (student.grad.double() - grad).norm() <= 2e-6 * grad.norm()
    measure(benchmark, step, 3 * student.numel() * 4e-9)


def encoder_shapes() -> list[tuple[int, ...]]:
    """Parameters of the default encoder: 8 blocks of width 256 and what surrounds them."""
    block = [(768, 256), (768,), (256, 256), (256,), (1024, 256), (1024,), (256, 1024)]
    block += [(256,)] * 5
    return [(256, 12), (256,), (30, 256), (25, 256), *block * 8, (256,), (256,)]


@pytest.mark.benchmark(group="EMA of the default encoder, float32")
@pytest.mark.parametrize(
    "variant", ["loop", "foreach_lerp", pytest.param("ours", marks=OURS_BUILT)]
)
def test_ema(benchmark: Any, variant: str) -> None:
    torch.manual_seed(0)
    targets = [torch.randn(shape, device=DEVICE) for shape in encoder_shapes()]
    sources = [torch.randn(shape, device=DEVICE) for shape in encoder_shapes()]
    expected = [torch.lerp(t, s, 1e-3) for t, s in zip(targets, sources, strict=True)]
    plan = EmaPlan(targets, sources)

    def loop() -> None:
        for target, source in zip(targets, sources, strict=True):
            target.mul_(0.999).add_(source, alpha=1e-3)

    steps: dict[str, Step] = {
        "loop": loop,
        "foreach_lerp": lambda: torch._foreach_lerp_(targets, sources, 1e-3),
        "ours": lambda: plan.update_(0.999),
    }
    steps[variant]()
    torch.testing.assert_close(targets, expected)
    measure(benchmark, steps[variant], 3 * sum(t.numel() for t in targets) * 4e-9)


def gathered_grid(
    visible: Tensor, mask_token: Tensor, restore: Tensor, temporal: Tensor, spatial: Tensor
) -> Tensor:
    """Repeat, cat, gather and two adds: the usual way, with an index repeated to full width."""
    batch, kept, width = visible.shape
    segments, joints = temporal.shape[0], spatial.shape[0]
    hidden = mask_token.repeat(batch, segments * joints - kept, 1)
    grid = torch.cat([visible, hidden], dim=1)
    grid = torch.gather(grid, 1, restore.unsqueeze(-1).repeat(1, 1, width))
    grid = grid.view(batch, segments, joints, width)
    return (grid + temporal[:, None] + spatial[None]).flatten(1, 2)


@pytest.mark.benchmark(group="mask tokens into the grid, forward and backward, float32")
@pytest.mark.parametrize("variant", ["gather", "gather compiled", "ours scatter", "ours pack"])
def test_mask_tokens(benchmark: Any, variant: str) -> None:
    torch.manual_seed(0)
    batch, segments, joints, width, kept = (256 if DEVICE == "cuda" else 16), 30, 25, 256, 75
    tokens = segments * joints
    order = torch.rand(batch, tokens, device=DEVICE).argsort(dim=1)
    restore, keep, hide = order.argsort(dim=1), order[:, :kept], order[:, kept:]
    shapes = [(batch, kept, width), (width,), (segments, width), (joints, width)]
    leaves = [torch.randn(s, device=DEVICE, requires_grad=True) for s in shapes]
    visible, mask_token, temporal, spatial = leaves
    compiled = torch.compile(gathered_grid, dynamic=False)
    forwards: dict[str, Callable[[], Tensor]] = {
        "gather": lambda: gathered_grid(visible, mask_token, restore, temporal, spatial),
        "gather compiled": lambda: compiled(visible, mask_token, restore, temporal, spatial),
        "ours scatter": lambda: scatter_mask_tokens(visible, mask_token, keep, temporal, spatial),
        "ours pack": lambda: pack_tokens(visible, mask_token, keep, hide, temporal, spatial),
    }
    grad = torch.randn(batch, tokens, width, device=DEVICE)
    packed_grad = grad.gather(1, order[:, :, None].expand_as(grad))
    forward, packed = forwards[variant], variant == "ours pack"

    def step() -> tuple[Tensor, tuple[Tensor, ...]]:
        out = forward()
        return out, torch.autograd.grad(out, leaves, packed_grad if packed else grad)

    out, grads = step()
    truth = gathered_grid(
        *(x.double() for x in leaves[:2]), restore, *(x.double() for x in leaves[2:])
    )
    true_grads = torch.autograd.grad(truth, leaves, grad.double())
    if packed:
        truth = truth.gather(1, order[:, :, None].expand_as(truth))
    torch.testing.assert_close(out.double(), truth, rtol=1e-6, atol=1e-6)
    for ours, true in zip(grads, true_grads, strict=True):
        assert (ours - true).norm() <= 1e-5 * true.norm()
    measure(benchmark, step, 2 * (out.numel() + visible.numel()) * 4e-9)
