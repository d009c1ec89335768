"""Fused ops against what they replace: eager PyTorch and `torch.compile`.

`pytest benchmarks/bench_kernels.py --benchmark-only`; on a GPU where there is one. Each row checks
its values against float64 before it is timed and notes, beside the statistics:

us                  median of one call
GB/s                by the bytes the op cannot avoid
% of copy           the same over the bandwidth of a plain copy, measured in this run
peak MiB            allocated above what was there before (GPU only)
error               largest deviation from float64, over the largest number of each output
regime              "call" from Python, or "graph": replays of a CUDA graph (GPU only)
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import embedding

from benchmarks import peers
from benchmarks.conftest import COMPILES, value_checks, variants
from benchmarks.report.book import captured
from sjepa_kernels import (
    EmaPlan,
    FusedAdamWEma,
    add_positions,
    centered_crop_cross_entropy,
    centered_softmax_cross_entropy,
    pack_tokens,
    scatter_mask_tokens,
    sigreg,
    sinkhorn_center,
    soft_cross_entropy,
)
from sjepa_kernels.losses.directions import unit_directions
from sjepa_kernels.native import LIBRARY

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
OURS_BUILT = pytest.mark.skipif(
    not ON_GPU and LIBRARY is None, reason="the C++ library is not built"
)
REGIMES = ["call", "graph"] if ON_GPU else ["call"]
# Steps in one graph: enough for the launch of the graph to vanish beside them.
CALLS = {"call": 1, "graph": 20}
LOSSES = ["eager", "compiled", pytest.param("ours", marks=OURS_BUILT), "ours compiled"]
pytestmark = COMPILES

Step = Callable[[], Any]


@cache
def copy_bandwidth() -> float:
    """GB/s, read and written, of copying what no cache holds."""
    source = torch.ones((1 << 28) if ON_GPU else (1 << 24), device=DEVICE)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(15):
        start = time.perf_counter()
        target.copy_(source)
        if ON_GPU:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * source.numel() * 4e-9 / statistics.median(seconds)


def largest_error(values: Sequence[Tensor], truths: Sequence[Tensor]) -> float:
    """Largest deviation over the largest number, of the worst output."""
    pairs = zip(values, truths, strict=True)
    with torch.no_grad():
        return max(float((x - t).abs().max() / t.abs().max()) for x, t in pairs)


def measure(
    benchmark: Any, step: Step, gigabytes: float, error: float, regime: str = "call"
) -> None:
    """Time a step, synchronised, and note what the module's docstring lists."""
    calls = CALLS[regime]
    run = captured(step, calls) if regime == "graph" else step

    def synchronised() -> None:
        run()
        if ON_GPU:
            torch.cuda.synchronize()

    info = benchmark.extra_info
    if ON_GPU:
        step()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        info["peak MiB"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    benchmark.pedantic(synchronised, rounds=15, warmup_rounds=5, iterations=1)
    info["device"] = (
        torch.cuda.get_device_name() if ON_GPU else f"{torch.get_num_threads()} threads"
    )
    info.update({"torch": torch.__version__, "regime": regime, "error": error})
    # stats is None where pytest-benchmark runs each function once (--benchmark-disable).
    if benchmark.stats is not None:
        seconds = benchmark.stats.stats.median / calls
        info["us"] = 1e6 * seconds
        info["GB/s"] = gigabytes / seconds
        info["% of copy"] = 100 * info["GB/s"] / copy_bandwidth()


def measure_loss(
    benchmark: Any,
    loss_of: Callable[..., tuple[Tensor, Tensor]],
    exactly: Callable[..., tuple[Tensor, Tensor]],
    inputs: list[Tensor],
    regime: str,
) -> None:
    """Check loss, center sum and gradient of a loss of (student, teacher, center), then time it."""
    student, teacher, _ = inputs

    def step() -> tuple[Tensor, Tensor]:
        student.grad = None
        loss, center_sum = loss_of(*inputs)
        loss.backward()
        return loss, center_sum

    # Detached: a loss that lives would bring its stream, the default one, into a later capture.
    values = [x.detach() for x in step()]
    assert student.grad is not None
    exact = [x.detach().double() for x in inputs]
    truths = exactly(exact[0].requires_grad_(), *exact[1:])
    (grad,) = torch.autograd.grad(truths[0], exact[0])
    loss, true_loss = values[0].double(), truths[0]
    with value_checks():
        assert (loss - true_loss).abs() <= 1e-6 * true_loss
        assert (student.grad.double() - grad).norm() <= 2e-6 * grad.norm()
    error = largest_error([*values, student.grad], [*truths, grad])
    measure(benchmark, step, (2 * student.numel() + teacher.numel()) * 4e-9, error, regime)


def plain_loss_and_center(
    student: Tensor, teacher: Tensor, center: Tensor
) -> tuple[Tensor, Tensor]:
    target = torch.softmax((teacher - center) / 0.06, dim=-1)
    loss = -(target * torch.log_softmax(student / 0.1, dim=-1)).sum(-1).mean()
    return loss, teacher.sum(0)


@pytest.mark.benchmark(group="centered cross-entropy, forward, gradient and center sum")
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(
    "shape", [(172800, 256), (8192, 65536)] if ON_GPU else [(16384, 256), (1024, 4096)], ids=str
)
@pytest.mark.parametrize("variant", [*LOSSES, peers.peer("Fast-LLM")])
def test_centered_ce(benchmark: Any, variant: str, shape: tuple[int, int], regime: str) -> None:
    torch.manual_seed(0)
    student = torch.randn(shape, device=DEVICE, requires_grad=True)
    inputs = [student, torch.randn(shape, device=DEVICE), torch.zeros(shape[1], device=DEVICE)]
    losses = variants(plain_loss_and_center, centered_softmax_cross_entropy, dynamic=False)
    losses["Fast-LLM"] = peers.fast_llm
    measure_loss(benchmark, losses[variant], plain_loss_and_center, inputs, regime)


def plain_crop_loss(student: Tensor, teacher: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """DINO as published: softmaxes once per crop, a product and sums per pair."""
    targets = torch.softmax((teacher - center) / 0.04, dim=-1)
    log_p = torch.log_softmax(student / 0.1, dim=-1)
    total, pairs = student.new_zeros(()), 0
    for t, target in enumerate(targets):
        for s, crop in enumerate(log_p):
            if s != t:
                total = total - (target * crop).sum(-1).mean()
                pairs += 1
    return total / pairs, teacher.sum((0, 1))


@pytest.mark.benchmark(group="DINO over pairs of crops, forward, gradient and center sum")
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(
    "shape", [(10, 2, 64, 65536), (2, 2, 1024, 4096)] if ON_GPU else [(10, 2, 8, 4096)], ids=str
)
@pytest.mark.parametrize("variant", LOSSES)
def test_crop_ce(benchmark: Any, variant: str, shape: tuple[int, ...], regime: str) -> None:
    torch.manual_seed(0)
    students, teachers, batch, width = shape
    inputs = [
        (0.3 * torch.randn(students, batch, width, device=DEVICE)).requires_grad_(),
        0.3 * torch.randn(teachers, batch, width, device=DEVICE),
        torch.zeros(width, device=DEVICE),
    ]
    losses = variants(plain_crop_loss, centered_crop_cross_entropy, dynamic=False)
    measure_loss(benchmark, losses[variant], plain_crop_loss, inputs, regime)


def plain_soft_loss(student: Tensor, given: Tensor) -> Tensor:
    return -(given * torch.log_softmax(student / 0.1, dim=-1)).sum(-1).mean()


@pytest.mark.benchmark(group="cross-entropy of given probabilities, forward and gradient")
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(
    "shape", [(172800, 256), (8192, 65536)] if ON_GPU else [(16384, 256), (1024, 4096)], ids=str
)
@pytest.mark.parametrize("variant", [*LOSSES, peers.peer("Automodel"), peers.peer("Liger")])
def test_soft_ce(benchmark: Any, variant: str, shape: tuple[int, int], regime: str) -> None:
    if (variant, regime) == ("Liger", "graph"):
        pytest.skip("it copies from the host, which no graph can")
    torch.manual_seed(0)
    student = torch.randn(shape, device=DEVICE, requires_grad=True)
    given = torch.softmax(3 * torch.randn(shape, device=DEVICE), dim=-1)
    forms = variants(plain_soft_loss, soft_cross_entropy, dynamic=False)
    forms["Automodel"] = peers.automodel
    form = peers.liger(given) if variant == "Liger" else forms[variant]

    def step() -> Tensor:
        student.grad = None
        loss = form(student, given)
        loss.backward()
        return loss

    loss, exact = step().detach(), student.detach().double().requires_grad_()
    assert student.grad is not None
    truth = plain_soft_loss(exact, given.double())
    (grad,) = torch.autograd.grad(truth, exact)
    with value_checks():
        assert (loss - truth).abs() <= 1e-6 * truth
        assert (student.grad.double() - grad).norm() <= 2e-6 * grad.norm()
    error = largest_error([loss, student.grad], [truth, grad])
    measure(benchmark, step, 3 * student.numel() * 4e-9, error, regime)


def sinkhorn_in_exponentials(teacher: Tensor) -> Tensor:
    """Three iterations as published, to the probabilities."""
    q_KB = torch.exp(teacher / 0.06).T
    prototypes, samples = q_KB.shape
    q_KB = q_KB / q_KB.sum()
    for _ in range(3):
        q_KB = q_KB / q_KB.sum(dim=1, keepdim=True) / prototypes
        q_KB = q_KB / q_KB.sum(dim=0, keepdim=True) / samples
    return samples * q_KB.T


def sinkhorn_in_logarithms(teacher: Tensor) -> Tensor:
    """The same as scalings of rows and columns: the prototypes'."""
    y = teacher / 0.06
    prototype = -torch.logsumexp(y, dim=0)
    for _ in range(2):
        sample = -torch.logsumexp(y + prototype, dim=1)
        prototype = -torch.logsumexp(y + sample[:, None], dim=0)
    return prototype


def own_sinkhorn(teacher: Tensor) -> Tensor:
    return sinkhorn_center(teacher, 0.06) / -0.06


@pytest.mark.benchmark(group="Sinkhorn-Knopp, three iterations")
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("shape", [(4096, 4096), (512, 65536)], ids=str)
@pytest.mark.parametrize(
    "variant",
    ["exponentials", "logarithms", "logarithms compiled", pytest.param("ours", marks=OURS_BUILT)],
)
def test_sinkhorn(benchmark: Any, variant: str, shape: tuple[int, int], regime: str) -> None:
    """The exponentials end in probabilities, the others in scalings that a loss takes."""
    torch.manual_seed(0)
    teacher = 0.3 * torch.randn(shape, device=DEVICE)
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "exponentials": sinkhorn_in_exponentials,
        "logarithms": sinkhorn_in_logarithms,
        "logarithms compiled": torch.compile(sinkhorn_in_logarithms, dynamic=False),
        "ours": own_sinkhorn,
    }
    form = forms[variant]
    found = form(teacher)
    if variant != "exponentials":
        found = torch.softmax(teacher / 0.06 + found, dim=1)
    truth = sinkhorn_in_exponentials(teacher.double())
    with value_checks():
        assert (found - truth).norm() <= 1e-5 * truth.norm()
    error = largest_error([found], [truth])
    # One read for the first iteration's sums and two for each of the others.
    measure(benchmark, lambda: form(teacher), 5 * teacher.numel() * 4e-9, error, regime)


def plain_sigreg(z: Tensor, axes: Tensor) -> Tensor:
    """LeJEPA's formula with all knots at once, along directions that are columns."""
    t = torch.linspace(0, 3, 17, dtype=z.dtype, device=z.device)
    phi = (-t * t / 2).exp()
    angles = (z @ axes)[..., None] * t
    gaps = (angles.cos().mean(0) - phi).square() + angles.sin().mean(0).square()
    return torch.trapezoid(2 * gaps * phi, t).mean() * z.shape[0]


def drawn_sigreg(z: Tensor, seed: Tensor, directions: int) -> Tensor:
    """The same along directions of torch's own generator."""
    axes = torch.randn(z.shape[1], directions, device=z.device)
    return plain_sigreg(z, axes / torch.linalg.vector_norm(axes, dim=0))


def own_sigreg(z: Tensor, seed: Tensor, directions: int) -> Tensor:
    return sigreg(z, seed, directions=directions)


@pytest.mark.benchmark(group="SIGReg with its directions, forward and gradient")
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("shape", [(2048, 1024), (2048, 256)], ids=str)
@pytest.mark.parametrize("variant", LOSSES)
def test_sigreg(benchmark: Any, variant: str, shape: tuple[int, int], regime: str) -> None:
    """128 features; ours is checked along its own directions, the others have random ones."""
    torch.manual_seed(0)
    samples, directions = shape
    z = torch.randn(samples, 128, device=DEVICE, requires_grad=True)
    seed = torch.tensor(7, device=DEVICE)
    form = variants(drawn_sigreg, own_sigreg, dynamic=False)[variant]

    def step() -> Tensor:
        z.grad = None
        loss = form(z, seed, directions)
        loss.backward()
        return loss

    values = [step().detach(), z.grad]
    error = 0.0
    if variant.startswith("ours"):
        first = torch.zeros((), dtype=torch.int64, device=DEVICE)
        axes = unit_directions(seed, first, directions, 128, torch.float64, "torch")
        exact = z.detach().double().requires_grad_()
        truth = plain_sigreg(exact, axes.mT)
        truths = [truth, *torch.autograd.grad(truth, exact)]
        error = largest_error(values, truths)
        with value_checks():
            assert error <= 1e-5
    # The features are read and their gradient is written; projections could stay in caches.
    measure(benchmark, step, 2 * z.numel() * 4e-9, error, regime)


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
