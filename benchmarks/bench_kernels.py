"""Tokens, EMA and optimiser against what they replace: eager PyTorch and `torch.compile`.

`pytest benchmarks/bench_kernels.py --benchmark-only`; on a GPU where there is one. Each row checks
its values against float64 before it is timed; what it notes, `measuring.py` says.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import embedding

from benchmarks import peers
from benchmarks.conftest import COMPILES, value_checks, variants
from benchmarks.measuring import DEVICE, ON_GPU, OURS_BUILT, REGIMES, Step, largest_error, measure
from sjepa_kernels import EmaPlan, FusedAdamWEma, add_positions, pack_tokens, scatter_mask_tokens

pytestmark = COMPILES


def encoder_shapes() -> list[tuple[int, ...]]:
    """Parameters of the default encoder: 8 blocks of width 256 and what surrounds them."""
    block = [(768, 256), (768,), (256, 256), (256,), (1024, 256), (1024,), (256, 1024)]
    block += [(256,)] * 5
    return [(256, 12), (256,), (30, 256), (25, 256), *block * 8, (256,), (256,)]


@pytest.mark.benchmark(group="EMA of the default encoder, float32")
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("shadow", [False, True], ids=["", "bfloat16 shadow"])
@pytest.mark.parametrize(
    "variant", ["loop", "foreach_lerp", pytest.param("ours", marks=OURS_BUILT)]
)
def test_ema(benchmark: Any, variant: str, shadow: bool, regime: str) -> None:
    torch.manual_seed(0)
    targets = [torch.randn(shape, device=DEVICE) for shape in encoder_shapes()]
    sources = [torch.randn(shape, device=DEVICE) for shape in encoder_shapes()]
    shadows = [torch.empty_like(t, dtype=torch.bfloat16) for t in targets] if shadow else []
    pairs = zip(targets, sources, strict=True)
    truths = [0.999 * t.double() + 0.001 * s.double() for t, s in pairs]
    momentum = torch.tensor(0.999, device=DEVICE)
    plan = EmaPlan(targets, sources, shadows)

    def loop() -> None:
        for target, source in zip(targets, sources, strict=True):
            target.mul_(0.999).add_(source, alpha=1e-3)
        for copy, target in zip(shadows, targets, strict=shadow):
            copy.copy_(target)

    def foreach() -> None:
        torch._foreach_lerp_(targets, sources, 1e-3)
        if shadows:
            torch._foreach_copy_(shadows, targets)

    steps = {"loop": loop, "foreach_lerp": foreach, "ours": lambda: plan.update_(momentum)}
    steps[variant]()
    error = largest_error(targets, truths)
    with value_checks():
        assert error <= 1e-6
        assert all(torch.equal(c, t.bfloat16()) for c, t in zip(shadows, targets, strict=shadow))
    numbers = sum(t.numel() for t in targets)
    measure(benchmark, steps[variant], numbers * (14 if shadow else 12) * 1e-9, error, regime)


@pytest.mark.benchmark(group="clipped AdamW, EMA and its bfloat16 shadow, default encoder")
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(
    "variant",
    [
        "foreach",
        "fused, foreach_lerp",
        "fused, EmaPlan",
        pytest.param("ours", marks=OURS_BUILT),
        peers.peer("dion"),
    ],
)
def test_adamw(benchmark: Any, variant: str, regime: str) -> None:
    """Gradients times a factor, then a step of weights, their average and its copy, in float32."""
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(s, device=DEVICE)) for s in encoder_shapes()]
    targets = [w.detach().clone() for w in weights]
    shadows = [torch.empty_like(t, dtype=torch.bfloat16) for t in targets]
    start = [w.detach().double() for w in weights]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    # The factor of a norm that is small enough: it leaves the gradients as they are.
    lr, momentum, clip = (torch.tensor(x, device=DEVICE) for x in (1e-3, 0.999, 1.0))
    if variant == "ours":
        ours = FusedAdamWEma(weights, lr=lr, targets=targets, target_shadows=shadows)
        run: Step = partial(ours.step, momentum=momentum, clip=clip)
    else:
        foreach = variant == "foreach"
        optimizer = torch.optim.AdamW(
            weights, lr=1e-3, foreach=foreach, fused=not foreach, capturable=ON_GPU
        )
        if ON_GPU or not foreach:
            # Only where it can be captured does `foreach` take a rate on the device.
            optimizer.param_groups[0]["lr"] = lr
        plan = EmaPlan(targets, weights, shadows)
        move: Step = optimizer.step
        if variant == "dion":
            raw = [w.detach() for w in weights]
            move = peers.dion_step(raw, [w.grad for w in weights], 1e-3)

        def run() -> None:
            torch._foreach_mul_([w.grad for w in weights], clip)
            move()
            if variant == "fused, EmaPlan":
                plan.update_(momentum)
            else:
                torch._foreach_lerp_(targets, [w.detach() for w in weights], 1e-3)
                torch._foreach_copy_(shadows, targets)

    run()
    # The first step of Adam, in which both moments are the gradient and its square.
    moved = [
        w * (1 - 1e-5) - 1e-3 * g / (g.abs() + 1e-8)
        for w, g in zip(start, (w.grad.double() for w in weights), strict=True)
    ]
    truths = [*moved, *(torch.lerp(w, m, 1e-3) for w, m in zip(start, moved, strict=True))]
    error = largest_error([*weights, *targets], truths)
    with value_checks():
        assert error <= 1e-6
        assert all(torch.equal(c, t.bfloat16()) for c, t in zip(shadows, targets, strict=True))
    numbers = sum(w.numel() for w in weights)
    # Weight, both moments and target are read and written, the gradient is read.
    measure(benchmark, run, numbers * (4 * 9 + 2) * 1e-9, error, regime)


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
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("variant", ["gather", "gather compiled", "ours scatter", "ours pack"])
def test_mask_tokens(benchmark: Any, variant: str, regime: str) -> None:
    torch.manual_seed(0)
    batch, segments, joints, width, kept = (256 if ON_GPU else 16), 30, 25, 256, 75
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

    def step() -> list[Tensor]:
        out = forward()
        return [out, *torch.autograd.grad(out, leaves, packed_grad if packed else grad)]

    # Detached, as in `measure_loss`.
    out, *grads = (x.detach() for x in step())
    # From leaves of their own: those that are timed must belong to no other graph, either.
    exact = [x.detach().double().requires_grad_() for x in leaves]
    truth = gathered_grid(*exact[:2], restore, *exact[2:])
    true_grads = torch.autograd.grad(truth, exact, grad.double())
    if packed:
        truth = truth.gather(1, order[:, :, None].expand_as(truth))
    with value_checks():
        torch.testing.assert_close(out.double(), truth, rtol=1e-6, atol=1e-6)
        for ours, true in zip(grads, true_grads, strict=True):
            assert (ours - true).norm() <= 1e-5 * true.norm()
    error = largest_error([out, *grads], [truth, *true_grads])
    measure(benchmark, step, 2 * (out.numel() + visible.numel()) * 4e-9, error, regime)


def looked_up(x: Tensor, ids: Tensor, temporal: Tensor, spatial: Tensor) -> Tensor:
    """Two lookups, whose backward sorts the ids, and two additions."""
    joints = spatial.shape[0]
    return x + (embedding(ids // joints, temporal) + embedding(ids % joints, spatial))


@pytest.mark.benchmark(group="positions of visible tokens, forward and backward, float32")
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("variant", ["eager", "compiled", "ours"])
def test_positions(benchmark: Any, variant: str, regime: str) -> None:
    torch.manual_seed(0)
    batch, segments, joints, width, kept = (256 if ON_GPU else 16), 30, 25, 256, 75
    ids = torch.rand(batch, segments * joints, device=DEVICE).argsort(dim=1)[:, :kept]
    shapes = [(batch, kept, width), (segments, width), (joints, width)]
    leaves = [torch.randn(s, device=DEVICE, requires_grad=True) for s in shapes]
    form = variants(looked_up, add_positions, dynamic=False)[variant]
    grad = torch.randn(shapes[0], device=DEVICE)

    def step() -> tuple[Tensor, tuple[Tensor, ...]]:
        out = form(leaves[0], ids, *leaves[1:])
        return out, torch.autograd.grad(out, leaves, grad)

    # Detached, and exact ones from leaves of their own, as in `test_mask_tokens`.
    out, grads = step()
    out = out.detach()
    exact = [x.detach().double().requires_grad_() for x in leaves]
    truth = looked_up(exact[0], ids, *exact[1:])
    true_grads = torch.autograd.grad(truth, exact, grad.double())
    with value_checks():
        torch.testing.assert_close(out.double(), truth, rtol=1e-6, atol=1e-6)
        for ours, true in zip(grads, true_grads, strict=True):
            assert (ours - true).norm() <= 1e-5 * true.norm()
    error = largest_error([out, *grads], [truth, *true_grads])
    measure(benchmark, step, 3 * out.numel() * 4e-9, error, regime)
