# SPDX-License-Identifier: Apache-2.0
"""VISReg: how far features are from a standard normal, by means, deviations and sorted projections.

Shapes: V views, N samples, D features, K directions.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sjepa_kernels._checks import check_weights
from sjepa_kernels._dispatch import choose
from sjepa_kernels._library import Op
from sjepa_kernels._triton import TL_DTYPES, cdiv, compute_dtype, next_power_of_two, tl, triton
from sjepa_kernels.losses.directions import check_draw, unit_directions
from sjepa_kernels.losses.features import as_views, check_width
from sjepa_kernels.losses.sigreg_cpu import has_cpu_code
from sjepa_kernels.losses.sorted_gaps import sorted_gaps

# Added to a standard deviation, as the authors' code does.
_EPS = 1e-6


class VisRegLoss(NamedTuple):
    """The weighted sum, which is the loss, and its terms; 0-dim, each with a gradient."""

    loss: Tensor
    center: Tensor
    scale: Tensor
    shape: Tensor


def visreg_ref(features_VND: Tensor, axes_KD: Tensor, quantiles_N: Tensor) -> Tensor:
    """Plain PyTorch form of the three terms, stacked."""
    mean_V1D = features_VND.mean(dim=1, keepdim=True)
    apart_VND = features_VND - mean_V1D
    norm_V1D = torch.linalg.vector_norm(apart_VND, dim=1, keepdim=True)
    deviation_V1D = norm_V1D / features_VND.shape[1] ** 0.5 + _EPS
    x_VKN = axes_KD @ (apart_VND / deviation_V1D.detach()).mT
    gaps_VKN = x_VKN.sort(dim=-1, stable=True).values - quantiles_N
    return torch.stack([x.square().mean() for x in (mean_V1D, deviation_V1D - 1, gaps_VKN)])


def normal_quantiles(samples: int, like: Tensor) -> Tensor:
    """Return the standard normal's quantiles at i / (N + 1) for i = 1..N, in the compute dtype."""
    rank = torch.arange(1, samples + 1, dtype=torch.float64, device=like.device)
    y = (2 * rank - (samples + 1)) / (samples + 1)
    # The inverse of erf by Winitzki's formula and Halley's steps: PyTorch's own is compiled on a
    # GPU when it first runs, which a driver without a card cannot do. Two steps leave rounding
    # alone. `x` is written few times, as Inductor follows each use of it back to the ranks: the
    # usual form of three steps took it 45 s.
    logarithm = torch.log1p(-y * y)
    middle = 2 / (math.pi * 0.147) + logarithm / 2
    x = y.sign() * (torch.sqrt(middle * middle - logarithm / 0.147) - middle).sqrt()
    for _ in range(2):
        step = (torch.erf(x) - y) * torch.exp(x * x) * (math.pi**0.5 / 2)
        x = x - 1 / (1 / step + x)
    return (2**0.5 * x).to(compute_dtype(like.dtype))


@triton.jit
def _standardize_kernel(
    z, normal, mean, spread, N, D, COMPUTE: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr
):
    """Of a tile of columns of a view: mean, standard deviation, and the numbers without both."""
    v = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    n = tl.arange(0, BN).to(tl.int64)
    z += v * N * D
    normal += v * N * D
    total = tl.zeros((BN, BD), COMPUTE)
    for start in range(0, N, BN):
        inside = (start + n < N)[:, None] & (d < D)[None, :]
        at = (start + n)[:, None] * D + d[None, :]
        total += tl.load(z + at, mask=inside, other=0.0).to(COMPUTE)
    mu = tl.sum(total, axis=0) / N
    # A pass of its own: a mean square less the square of a mean would lose all digits.
    squares = tl.zeros((BN, BD), COMPUTE)
    for start in range(0, N, BN):
        inside = (start + n < N)[:, None] & (d < D)[None, :]
        at = (start + n)[:, None] * D + d[None, :]
        x = tl.load(z + at, mask=inside, other=0.0).to(COMPUTE) - mu[None, :]
        squares += tl.where(inside, x * x, 0.0)
    sigma = tl.sqrt(tl.sum(squares, axis=0) / N)
    tl.store(mean + v * D + d, mu, mask=d < D)
    tl.store(spread + v * D + d, sigma, mask=d < D)
    for start in range(0, N, BN):
        inside = (start + n < N)[:, None] & (d < D)[None, :]
        at = (start + n)[:, None] * D + d[None, :]
        x = tl.load(z + at, mask=inside, other=0.0).to(COMPUTE) - mu[None, :]
        tl.store(normal + at, x / (sigma + tl.full((), 1e-6, COMPUTE))[None, :], mask=inside)


@triton.jit
def _terms_kernel(mean, spread, losses, terms, columns, rows, N, BLOCK: tl.constexpr):
    """The three means, in one program, in float64."""
    i = tl.arange(0, BLOCK)
    center = tl.zeros((BLOCK,), tl.float64)
    scale = tl.zeros((BLOCK,), tl.float64)
    shape = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, columns, BLOCK):
        inside = start + i < columns
        mu = tl.load(mean + start + i, mask=inside, other=0.0).to(tl.float64)
        sigma = tl.load(spread + start + i, mask=inside, other=0.0).to(tl.float64)
        sigma += tl.full((), 1e-6, tl.float64)
        center += mu * mu
        scale += tl.where(inside, (sigma - 1.0) * (sigma - 1.0), 0.0)
    for start in range(0, rows, BLOCK):
        shape += tl.load(losses + start + i, mask=start + i < rows, other=0.0)
    tl.store(terms, tl.sum(center, axis=0) / columns)
    tl.store(terms + 1, tl.sum(scale, axis=0) / columns)
    tl.store(terms + 2, tl.sum(shape, axis=0) / rows / N)


@triton.jit
def _gradient_kernel(
    products, normal, mean, spread, grads, out, N, D, tiles, columns, rows,
    COMPUTE: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Add up the gradients of the three terms, each 2 x / count of what it is a mean square of."""
    v = (tl.program_id(0) // tiles).to(tl.int64)
    n = tl.program_id(0) % tiles * BN + tl.arange(0, BN)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = (n < N)[:, None] & (d < D)[None, :]
    at = (v * N + n)[:, None] * D + d[None, :]
    # Both means of squares are over the views' columns, and d mean / d z = 1 / N.
    two = tl.full((), 2.0, COMPUTE)
    share = two / N / columns
    mu = tl.load(mean + v * D + d, mask=d < D, other=0.0)
    raw = tl.load(spread + v * D + d, mask=d < D, other=1.0)
    sigma = raw + tl.full((), 1e-6, COMPUTE)
    center = tl.load(grads).to(COMPUTE) * share * mu
    # d raw / d z = (z - mu) / (N raw), and z - mu = sigma normal. Of a constant column it is 0.
    slope = tl.where(raw > 0.0, sigma / tl.where(raw > 0.0, raw, 1.0), 0.0)
    scale = tl.load(grads + 1).to(COMPUTE) * share * (sigma - 1.0) * slope
    # The mean of this gradient over the samples, which centring takes from it, is 0: that of the
    # projections is, and that of the quantiles.
    shape = tl.load(grads + 2).to(COMPUTE) * (two / N / rows) / sigma
    x = shape[None, :] * tl.load(products + at, mask=inside, other=0.0)
    x += scale[None, :] * tl.load(normal + at, mask=inside, other=0.0)
    tl.store(out + at, x + center[None, :], mask=inside)


def _standardized(features_VND: Tensor, impl: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return the features without mean and deviation, and both, (V, 1, D), this without eps."""
    views, samples, width = features_VND.shape
    dtype = compute_dtype(features_VND.dtype)
    if impl == "cpu":
        mean = features_VND.mean(dim=1, keepdim=True)
        normal = features_VND - mean
        spread = torch.linalg.vector_norm(normal, dim=1, keepdim=True) / samples**0.5
        return normal.div_(spread + _EPS), mean, spread
    normal, mean, spread = (
        features_VND.new_empty((views, rows, width), dtype=dtype) for rows in (samples, 1, 1)
    )
    # Narrow, so that a view has many programs.
    _standardize_kernel[(views, cdiv(width, 16))](
        features_VND.contiguous(), normal, mean, spread, samples, width,
        COMPUTE=TL_DTYPES[dtype], BN=min(128, next_power_of_two(samples)), BD=16,
    )  # fmt: skip
    return normal, mean, spread


def _forward(
    features_VND: Tensor, axes_KD: Tensor, quantiles_N: Tensor, needs_grad: bool, impl: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the terms, and what the backward needs (empty gaps where there is none)."""
    normal, mean, spread = _standardized(features_VND, impl)
    x_VKN = axes_KD @ normal.mT
    losses, gaps = sorted_gaps(x_VKN, quantiles_N, needs_grad, impl)
    if impl == "cpu":
        means = mean.square().mean(), (spread + (_EPS - 1)).square().mean()
        shape = (losses.sum() / x_VKN.numel()).to(normal.dtype)
        return torch.stack([*means, shape]), normal, mean, spread, gaps
    return _terms(mean, spread, losses, x_VKN.shape[2]), normal, mean, spread, gaps


def _terms(mean_V1D: Tensor, spread_V1D: Tensor, losses_VK: Tensor, samples: int) -> Tensor:
    terms = mean_V1D.new_empty(3)
    _terms_kernel[(1,)](
        mean_V1D, spread_V1D, losses_VK, terms, mean_V1D.numel(), losses_VK.numel(), samples,
        BLOCK=1024,
    )  # fmt: skip
    return terms


def _fake(*inputs: Any) -> tuple[Tensor, ...]:
    features, axes, quantiles, needs_grad, _ = inputs
    views, samples, width = features.shape
    gaps = (views, axes.shape[0], samples) if needs_grad else (0,)
    shapes = (3,), (views, samples, width), (views, 1, width), (views, 1, width), gaps
    return tuple(quantiles.new_empty(shape) for shape in shapes)


def _gradient(
    normal_VND: Tensor, axes_KD: Tensor, mean_V1D: Tensor, spread_V1D: Tensor, gaps_VKN: Tensor,
    grads: Tensor, dtype: torch.dtype, impl: str,
) -> Tensor:  # fmt: skip
    """Return the gradient of the features, whose dtype is `dtype`."""
    views, samples, width = normal_VND.shape
    products = gaps_VKN.mT @ axes_KD
    columns, rows = views * width, views * axes_KD.shape[0]
    if impl == "cpu":
        # As in the kernel.
        center, scale, shape = grads * 2 / samples
        sigma = spread_V1D + _EPS
        slope = torch.where(spread_V1D > 0, sigma / spread_V1D, 0)
        products *= shape / rows / sigma
        products.addcmul_(normal_VND, scale / columns * (sigma - 1) * slope)
        return products.add_(center / columns * mean_V1D)
    out = normal_VND.new_empty(normal_VND.shape, dtype=dtype)
    tiles = cdiv(samples, 32)
    _gradient_kernel[(views * tiles, cdiv(width, 32))](
        products, normal_VND, mean_V1D, spread_V1D, grads.contiguous(), out, samples, width, tiles,
        columns, rows, COMPUTE=TL_DTYPES[normal_VND.dtype], BN=32, BD=32,
    )  # fmt: skip
    return out


def _gradient_fake(normal_VND: Tensor, *rest: Any) -> Tensor:
    return normal_VND.new_empty(normal_VND.shape, dtype=rest[-2])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, axes, *_, ctx.impl = inputs
    _, normal, mean, spread, gaps = output
    ctx.mark_non_differentiable(normal, mean, spread, gaps)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(normal, axes, mean, spread, gaps)
    ctx.dtype = features.dtype


def _backward(ctx: Any, grads: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grads is None:
        return (None,) * 5
    with torch.autocast(grads.device.type, enabled=False):
        return _gradient_op(*ctx.saved_tensors, grads, ctx.dtype, ctx.impl), *[None] * 4


_gradient_op = Op("visreg_gradient", _gradient, _gradient_fake)
_op = Op("visreg", _forward, _fake, setup=_setup, backward=_backward)


def visreg(
    features: Tensor,
    seed: Tensor,
    *,
    step: Tensor | int = 0,
    directions: int = 256,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    impl: str = "auto",
) -> VisRegLoss:
    """Distance of features from a standard normal, by moments and sorted projections (VISReg).

    With the means mu and the standard deviations sigma of a view's features over its N samples,

    center = mean_d mu_d^2
    scale = mean_d (sigma_d - 1)^2
    shape = mean_{k,i} (sort_i(a_k . (z - mu) / sigma) - Phi^-1(i / (N + 1)))^2

    each the mean over the views (Wu et al. 2026, arXiv 2606.02572). The a_k are random unit vectors
    and sigma has no gradient in the third term. What the formula leaves open is as in the authors'
    code: sigma is the biased one plus 1e-6, and each process regularises its own samples. Equal
    projections are ranked by their place. The paper's loss is (1 - lambda) inv + lambda visreg, and
    lambda = 0.02, with inv as for `sigreg`.

    The directions depend on (seed, step) alone, as those of `sigreg`: nothing is read back.
    Arithmetic is float32 (float64 for float64), also under autocast; projections are torch's own
    matrix products. Triton sorts up to 4,096 samples in registers and leaves more to torch.

    Args:
        features: z, (N, D), or (V, N, D) for the terms of each view and their means.
        seed: 0-dim int64, on the device of the features.
        step: Step of training, an int or a 0-dim tensor.
        directions: K.
        weights: Of center, scale and shape in the loss.
        impl: "auto", "triton", "cpu" or "torch".

    Returns:
        `VisRegLoss`: the loss, and the terms without their weights, for logs or other sums; 0-dim,
        float32 (float64 for float64 features). That the loss comes with its terms is our choice.

    Raises:
        TypeError: A dtype is not usable.
        ValueError: A shape, device, count, weight or `impl` is not usable, there are no samples, or
            the width exceeds 4,096 in Triton.
    """
    features_VND = as_views(features)
    when = check_draw(features, seed, step, directions)
    check_weights("weights", weights, 3)
    dtype = compute_dtype(features.dtype)
    chosen = choose(impl, features.device, cpu=has_cpu_code(features))
    samples, width = features_VND.shape[1:]
    check_width(features, chosen)
    axes_KD = unit_directions(seed, when, directions, width, dtype, chosen)
    quantiles_N = normal_quantiles(samples, features)
    with torch.autocast(features.device.type, enabled=False):
        if chosen != "triton":
            features_VND = features_VND.to(dtype)
        if chosen == "torch":
            terms = visreg_ref(features_VND, axes_KD, quantiles_N)
        else:
            needs_grad = torch.is_grad_enabled() and features.requires_grad
            terms = _op(features_VND, axes_KD, quantiles_N, needs_grad, chosen)[0]
    center, scale, shape = terms.unbind()
    loss = weights[0] * center + weights[1] * scale + weights[2] * shape
    return VisRegLoss(loss, center, scale, shape)
