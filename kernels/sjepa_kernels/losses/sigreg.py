# SPDX-License-Identifier: Apache-2.0
"""SIGReg of LeJEPA: how far features are from a standard normal, along random directions.

Shapes: V views, N samples, D features, K directions, P row tiles.
"""

from typing import Any

import torch
from torch import Tensor

from sjepa_kernels._checks import bad_type
from sjepa_kernels._dispatch import choose
from sjepa_kernels._library import Op, is_direct
from sjepa_kernels._triton import TL_DTYPES, cdiv, compute_dtype, tl, triton
from sjepa_kernels.losses.center import Reduce
from sjepa_kernels.losses.directions import check_draw, unit_directions
from sjepa_kernels.losses.features import as_views, check_width
from sjepa_kernels.losses.product import project
from sjepa_kernels.losses.sigreg_cpu import finish_cpu, gradient_cpu, has_cpu_code, sums_cpu

# Knots t_j = 3/16 j for j = 0..16. At t_0 both differences are 0, so 16 knots count.
_KNOTS = 16
_STEP = 3 / 16
# A program of the sums has so many columns, and at least so many rows; of a view there are at most
# so many such tiles of rows, whose sums are in memory for a while.
_SUM_COLUMNS, _SUM_ROWS, _MOST_TILES = 128, 32, 128
# Rows and columns of a tile of the other kernels.
_ROWS, _COLUMNS = 64, 32


def sigreg_ref(x_VNK: Tensor, all_reduce: Reduce | None = None) -> Tensor:
    """Plain PyTorch form of the statistic of projections, knot by knot."""
    t = _STEP * torch.arange(1, _KNOTS + 1, dtype=x_VNK.dtype, device=x_VNK.device)
    waves = [f(x_VNK * knot).sum(1) for f in (torch.cos, torch.sin) for knot in t]
    sums = torch.stack(waves, dim=1)
    samples = x_VNK.shape[1]
    count: int | Tensor = samples
    if all_reduce is not None:
        total, counts = _reduced(sums.detach(), samples, all_reduce)
        count, processes = counts.to(sums.dtype)
        own = sums * processes
        sums = own + (total.to(sums.dtype) - own).detach()
    cos, sin = (sums / count).unflatten(1, (2, _KNOTS)).unbind(1)
    phi = torch.exp(-t * t / 2)
    # The trapezoid rule over [-3, 3], folded; the last knot has half the weight.
    weights = 2 * _STEP * phi * torch.where(t < _KNOTS * _STEP, 1.0, 0.5)
    gaps = (cos - phi[:, None]).square() + sin.square()
    loss: Tensor = (weights @ gaps).mean() * count
    return loss


def _reduced(sums: Tensor, samples: int, all_reduce: Reduce) -> tuple[Tensor, Tensor]:
    """Return the sums of all processes, float64, and the numbers of samples and processes."""
    own = [sums.flatten().double(), sums.new_tensor([samples, 1.0], dtype=torch.float64)]
    flat = torch.cat(own)
    summed = all_reduce(flat)
    flat = flat if summed is None else summed
    return flat[:-2].view(sums.shape), flat[-2:]


@triton.jit
def _first_wave(x):
    """Cosine and sine of 3/16 x."""
    if x.dtype == tl.float64:
        cos = tl.cos(0.1875 * x)
        sin = tl.sin(0.1875 * x)
    else:
        # Less whole periods 2 pi / (3/16), in two parts whose products are exact or small.
        periods = tl.floor(x * 0.02984155182973038 + 0.5)
        a = 0.1875 * ((x - periods * 33.51032257080078) + periods * 9.325096357315488e-07)
        # Above 5e7 a float has no phase left. NaN stays NaN.
        a = tl.where(tl.abs(a) > 3.3, 0.0, a)
        # The polynomials closest to both on [-3.3, 3.3] in float32, to 7e-7, to 7e-8 on [-1, 1].
        u = a * a
        sin = u * 1.3289633282731472e-10 - 2.463194981316974e-08
        sin = sin * u + 2.7524961296876427e-06
        sin = sin * u - 0.0001983997062779963
        sin = sin * u + 0.00833330862224102
        sin = sin * u - 0.1666666567325592
        sin = a + a * (u * sin)
        cos = u * -9.576043950854096e-12 + 2.0555481761164174e-09
        cos = cos * u - 2.752868795141694e-07
        cos = cos * u + 2.4800177925499156e-05
        cos = cos * u - 0.0013888851972296834
        cos = cos * u + 0.0416666604578495
        cos = 1.0 + u * (cos * u - 0.5)
    return cos, sin


@triton.jit
def _sums_kernel(
    x, parts, N, K, tiles, rows, COMPUTE: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    """Sums of cosines and sines at all knots, over a tile of a view's rows.

    Row by row with all sums in registers: a thread has its columns for itself, so that nothing is
    added across threads, which takes longer than the waves.
    """
    v = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    cosines = ()
    sines = ()
    for _ in tl.static_range(16):
        cosines += (tl.zeros((BK,), COMPUTE),)  # type: ignore[assignment]
        sines += (tl.zeros((BK,), COMPUTE),)  # type: ignore[assignment]
    first = tile * rows
    place = x + (v * N + first) * K + k
    for _ in range(first, tl.minimum(N, first + rows)):
        cos1, sin1 = _first_wave(tl.load(place, mask=k < K, other=0.0))
        place += K
        cos = cos1
        sin = sin1
        more_cosines = ()
        more_sines = ()
        for j in tl.static_range(16):
            more_cosines += (cosines[j] + cos,)  # type: ignore[assignment]
            more_sines += (sines[j] + sin,)  # type: ignore[assignment]
            next_cos = cos * cos1 - sin * sin1
            sin = sin * cos1 + cos * sin1
            cos = next_cos
        cosines = more_cosines
        sines = more_sines
    to = parts + (v * tiles + tile) * 32 * K + k
    for j in tl.static_range(16):
        tl.store(to + j * K, cosines[j], mask=k < K)
        tl.store(to + (16 + j) * K, sines[j], mask=k < K)


@triton.jit
def _finish_kernel(
    parts, counts, losses, slopes, N, K, tiles, views,
    HAS_COUNTS: tl.constexpr, NEEDS_GRAD: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """From a view's sums at one knot: the loss of a tile of columns, the slopes of the gradient.

    In float64, because a mean and the normal's value nearly cancel.
    """
    v = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    j = tl.program_id(2)
    p = tl.arange(0, BP)
    count = tl.zeros((), tl.float64) + N
    processes = tl.zeros((), tl.float64) + 1.0
    if HAS_COUNTS:
        count = tl.load(counts)
        processes = tl.load(counts + 1)
    # Added to a number, because sizes of 1 are constants, which have no type.
    share = 1.0 / (tl.zeros((), tl.float64) + views * K)
    cos = tl.zeros((BK,), tl.float64)
    sin = tl.zeros((BK,), tl.float64)
    for start in range(0, tiles, BP):
        inside = (start + p < tiles)[:, None] & (k < K)[None, :]
        at = parts + ((v * tiles + start + p)[:, None] * 32 + j) * K + k[None, :]
        cos += tl.sum(tl.load(at, mask=inside, other=0.0).to(tl.float64), axis=0)
        sin += tl.sum(tl.load(at + 16 * K, mask=inside, other=0.0).to(tl.float64), axis=0)
    t = (tl.zeros((), tl.float64) + j + 1.0) * 0.1875
    phi = tl.exp(-0.5 * t * t)
    weight = phi * tl.where(j < 15, 0.375, 0.1875)
    gap = cos / count - phi
    sin = sin / count
    loss = tl.where(k < K, weight * (gap * gap + sin * sin), 0.0)
    if NEEDS_GRAD:
        slope = 2.0 * weight * t * share * processes
        to = slopes + (v * 32 + j) * K + k
        tl.store(to, slope * sin, mask=k < K)
        tl.store(to + 16 * K, slope * gap, mask=k < K)
    to = losses + (v * tl.num_programs(1) + tl.program_id(1)) * 16 + j
    tl.store(to, tl.sum(loss, axis=0) * count * share)


@triton.jit
def _total_kernel(losses, loss, count, BLOCK: tl.constexpr):
    """The sum, in one program, in float64, rounded on its way to memory.

    Of torch's own a cast would be a launch of its own.
    """
    i = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        total += tl.load(losses + start + i, mask=start + i < count, other=0.0)
    tl.store(loss, tl.sum(total, axis=0))


@triton.jit
def _gradient_kernel(
    x, slopes, grad_loss, out, N, K, tiles,
    COMPUTE: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The real part of sum_j (slope_j + i slope_(16+j)) e^(i j 3/16 x), by Horner's rule."""
    v = (tl.program_id(0) // tiles).to(tl.int64)
    n = tl.program_id(0) % tiles * BN + tl.arange(0, BN)
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    inside = (n < N)[:, None] & (k < K)[None, :]
    place = (v * N + n)[:, None] * K + k[None, :]
    cos, sin = _first_wave(tl.load(x + place, mask=inside, other=0.0))
    of = slopes + v * 32 * K + k
    real = tl.zeros((BN, BK), COMPUTE)
    imag = tl.zeros((BN, BK), COMPUTE)
    for j in tl.static_range(15, -1, -1):
        real += tl.load(of + j * K, mask=k < K, other=0.0)[None, :]
        imag += tl.load(of + (16 + j) * K, mask=k < K, other=0.0)[None, :]
        next_real = real * cos - imag * sin
        imag = imag * cos + real * sin
        real = next_real
    tl.store(out + place, real * tl.load(grad_loss).to(COMPUTE), mask=inside)


def _sums(x_VNK: Tensor, impl: str) -> Tensor:
    """Return the sums over samples, (V, P, 32, K): at each knot cosines, then sines."""
    parts = _sums_fake(x_VNK, impl)
    views, samples, count = x_VNK.shape
    if impl == "cpu":
        sums_cpu(x_VNK.contiguous(), parts)
    else:
        tiles = parts.shape[1]
        _sums_kernel[(views * tiles, cdiv(count, _SUM_COLUMNS))](
            x_VNK.contiguous(), parts, samples, count, tiles, cdiv(samples, tiles),
            COMPUTE=TL_DTYPES[x_VNK.dtype], BK=_SUM_COLUMNS,
        )  # fmt: skip
    return parts


def _sums_fake(x_VNK: Tensor, impl: str) -> Tensor:
    views, samples, count = x_VNK.shape
    if impl == "cpu":
        return x_VNK.new_empty((views, 1, 2 * _KNOTS, count), dtype=torch.float64)
    tiles = min(cdiv(samples, _SUM_ROWS), _MOST_TILES)
    return x_VNK.new_empty((views, tiles, 2 * _KNOTS, count))


def _finish(
    x_VNK: Tensor, parts: Tensor, counts: Tensor | None, needs_grad: bool, impl: str
) -> tuple[Tensor, Tensor]:
    """Return the loss and the slopes of its gradient (empty where it is not needed)."""
    views, samples, count = x_VNK.shape
    columns = cdiv(count, _COLUMNS)
    shape = (views, 1) if impl == "cpu" else (views, columns, _KNOTS)
    losses = parts.new_empty(shape, dtype=torch.float64)
    loss, slopes = _finish_fake(x_VNK, parts, counts, needs_grad, impl)
    if impl == "cpu":
        finish_cpu(parts, counts, samples, losses, slopes)
        return losses.sum().to(x_VNK.dtype), slopes
    # Pointers that the constexpr flag switches off still need a tensor to stand for them.
    _finish_kernel[(views, columns, _KNOTS)](
        parts, losses if counts is None else counts, losses, slopes, samples, count,
        parts.shape[1], views, HAS_COUNTS=counts is not None, NEEDS_GRAD=needs_grad,
        BP=64, BK=_COLUMNS,
    )  # fmt: skip
    _total_kernel[(1,)](losses, loss, losses.numel(), BLOCK=1024)
    return loss, slopes


def _finish_fake(*inputs: Any) -> tuple[Tensor, Tensor]:
    x_VNK, _, _, needs_grad, _ = inputs
    views, _, count = x_VNK.shape
    shape = (views, 2 * _KNOTS, count) if needs_grad else (0,)
    return x_VNK.new_empty(()), x_VNK.new_empty(shape)


def _gradient(x_VNK: Tensor, slopes: Tensor, grad_loss: Tensor, impl: str) -> Tensor:
    """Return the gradient of the projections."""
    x_VNK = x_VNK.contiguous()
    out = torch.empty_like(x_VNK)
    _write_gradient(x_VNK, slopes, grad_loss, out, impl)
    return out


def _write_gradient(
    x_VNK: Tensor, slopes: Tensor, grad_loss: Tensor, out: Tensor, impl: str
) -> None:
    """Write the gradient of the projections to `out`, which may be the projections themselves."""
    views, samples, count = x_VNK.shape
    if impl == "cpu":
        gradient_cpu(x_VNK, slopes, grad_loss, out)
    else:
        tiles = cdiv(samples, _ROWS)
        _gradient_kernel[(views * tiles, cdiv(count, _COLUMNS))](
            x_VNK, slopes, grad_loss, out, samples, count, tiles,
            COMPUTE=TL_DTYPES[x_VNK.dtype], BN=_ROWS, BK=_COLUMNS,
        )  # fmt: skip


def _gradient_fake(x_VNK: Tensor, *_: Any) -> Tensor:
    return x_VNK.new_empty(x_VNK.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x_VNK, *_, ctx.impl = inputs
    _, slopes = output
    ctx.mark_non_differentiable(slopes)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x_VNK, slopes)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 5
    x_VNK, slopes = ctx.saved_tensors
    if (
        is_direct((x_VNK, slopes, grad_loss))
        and x_VNK.is_contiguous()
        and not torch._C._autograd._get_current_graph_task_keep_graph()
    ):
        # Nobody else has the projections, and no other backward will read them.
        _write_gradient(x_VNK, slopes, grad_loss, x_VNK, ctx.impl)
        return x_VNK, *[None] * 4
    return _gradient_op(x_VNK, slopes, grad_loss, ctx.impl), *[None] * 4


_sums_op = Op("sigreg_sums", _sums, _sums_fake)
_gradient_op = Op("sigreg_gradient", _gradient, _gradient_fake)
_op = Op("sigreg", _finish, _finish_fake, setup=_setup, backward=_backward)


def sigreg(
    features: Tensor,
    seed: Tensor,
    *,
    step: Tensor | int = 0,
    directions: int = 1024,
    all_reduce: Reduce | None = None,
    impl: str = "auto",
) -> Tensor:
    """Distance of features from a standard normal, along random directions (LeJEPA's SIGReg).

    loss = mean_{v,k} N sum_j w_j phi_j |mean_n exp(i t_j x_nk) - phi_j|^2

    with the projections x_nk = a_k . z_n on unit directions a_k, the knots t_j = 3/16 j, j = 0..16,
    phi_j = exp(-t_j^2 / 2) and the trapezoid rule w_j = 3/8 (3/16 at both ends): the Epps-Pulley
    statistic (Balestriero and LeCun 2025). Arithmetic is float32 (float64 for float64), also under
    autocast; the sums are finished in float64. One sine and one cosine per projection give all
    knots by angle addition; nothing of size N x K x 17 is made, in the backward neither.

    The directions depend on (seed, step) alone, which may change on the device: nothing is read
    back. Every process must pass the same ones. In Triton the projection and the gradient through
    it are products of three in TF32, which err like float32's own whatever torch's settings are.
    Elsewhere, and in float64, they are torch's products, so its settings (TF32, and on a CPU the
    number of threads) may change their rounding.

    How codes weigh it differs. LeJEPA: (1 - lambda) inv + lambda sigreg(z_VND), lambda = 0.02, with
    inv = mean (mean_v z - z)^2; up to a factor that is inv + lambda / (1 - lambda) sigreg. Others
    (stable-pretraining) use inv + lambda sigreg of all views in one sample, `z_VND.flatten(0, 1)`:
    one statistic of V N samples instead of V of N, so a published lambda does not carry over.
    The factor N counts the samples of all processes.

    Args:
        features: z, (N, D), or (V, N, D) for a statistic of each view and their mean.
        seed: 0-dim int64, on the device of the features.
        step: Step of training, an int or a 0-dim tensor.
        directions: K.
        all_reduce: Sums its argument over processes, in place or as a new tensor: the sums of
            cosines and sines with the numbers of samples and processes appended, float64
            (32 V K + 2,). For instance `torch.distributed.all_reduce`, or a `functools.partial` of
            it that names a group. The gradient is then multiplied by the number of processes, so
            that DistributedDataParallel's mean over processes is the gradient of the loss of all.
        impl: "auto", "triton", "cpu" or "torch".

    Returns:
        The loss, 0-dim, float32 (float64 for float64 features).

    Raises:
        TypeError: A dtype is not usable.
        ValueError: A shape, device, count or `impl` is not usable, there are no samples, or the
            width exceeds 4,096 in Triton.
    """
    features_VND = as_views(features)
    when = check_draw(features, seed, step, directions)
    if all_reduce is not None and not callable(all_reduce):
        raise bad_type("all_reduce", type(all_reduce), "pass a function that sums over processes")
    dtype = compute_dtype(features.dtype)
    chosen = choose(impl, features.device, cpu=has_cpu_code(features))
    check_width(features, chosen)
    axes_KD = unit_directions(seed, when, directions, features.shape[-1], dtype, chosen)
    with torch.autocast(features.device.type, enabled=False):
        if chosen == "triton" and dtype == torch.float32:
            x_VNK = project(features_VND, axes_KD)
        else:
            # TF32 has no parts for float64.
            x_VNK = features_VND.to(dtype) @ axes_KD.mT
        if chosen == "torch":
            return sigreg_ref(x_VNK, all_reduce)
    parts, counts = _sums_op(x_VNK.detach(), chosen), None
    if all_reduce is not None:
        total, counts = _reduced(parts.sum(1, dtype=torch.float64), x_VNK.shape[1], all_reduce)
        parts = total[:, None]
    needs_grad = torch.is_grad_enabled() and x_VNK.requires_grad
    loss: Tensor = _op(x_VNK, parts, counts, needs_grad, chosen)[0]
    return loss
