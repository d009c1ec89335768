# SPDX-License-Identifier: Apache-2.0
"""VICReg's terms on one view: how far features are from varying, and how much they covary.

Both are a matrix product with little around it, on every device, so this is PyTorch's own, with a
backward of its own: autograd would multiply the features by the covariance's gradient and by its
transpose, which are the same, and keep further matrices of D x D.

Shapes: V views, N samples, D features, M the side of the product, D or N.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sjepa_kernels._checks import check_positive, check_weights
from sjepa_kernels._library import Op
from sjepa_kernels._triton import compute_dtype
from sjepa_kernels.losses.features import as_views


class VicRegLoss(NamedTuple):
    """The weighted sum, which is the loss, and its terms; 0-dim, each with a gradient."""

    loss: Tensor
    variance: Tensor
    covariance: Tensor


def _multiplies_samples(samples: int, width: int) -> bool:
    """Whether the product is that of samples, (N, N), instead of features, (D, D).

    Their squares have the same sum. The features' own squares must be taken from it, which leaves
    half of it or more where N <= D / 2 and the variances are alike.
    """
    return 2 * samples <= width


def _forward(
    features_VND: Tensor, gamma: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the two terms stacked, and what the backward reads: centred features, product, var."""
    views, samples, width = features_VND.shape
    dtype = compute_dtype(features_VND.dtype)
    apart_VND = features_VND - features_VND.mean(dim=1, keepdim=True, dtype=dtype)
    of_samples = _multiplies_samples(samples, width)
    pair = (apart_VND, apart_VND.mT) if of_samples else (apart_VND.mT, apart_VND)
    # What is multiplied by beta = 0 is not read.
    product_VMM = torch.baddbmm(apart_VND.new_empty(()), *pair, beta=0, alpha=1 / (samples - 1))
    if of_samples:
        var_VD = torch.linalg.vector_norm(apart_VND, dim=1).square() / (samples - 1)
        # In float64, because of the difference.
        total = torch.linalg.vector_norm(product_VMM, dtype=torch.float64).square()
        squares = total - torch.linalg.vector_norm(var_VD.square(), 1, dtype=torch.float64)
    else:
        diagonal_VD = product_VMM.diagonal(dim1=1, dim2=2)
        var_VD = diagonal_VD.clone()
        diagonal_VD.zero_()
        squares = torch.linalg.vector_norm(product_VMM, dtype=torch.float64).square()
    variance = torch.relu(gamma - torch.sqrt(var_VD + eps)).mean()
    covariance = (squares / (views * width)).to(dtype)
    return torch.stack([variance, covariance]), apart_VND, product_VMM, var_VD


def _fake(*inputs: Any) -> tuple[Tensor, ...]:
    features = inputs[0]
    views, samples, width = features.shape
    side = samples if _multiplies_samples(samples, width) else width
    shapes = (2,), features.shape, (views, side, side), (views, width)
    dtype = compute_dtype(features.dtype)
    return tuple(features.new_empty(shape, dtype=dtype) for shape in shapes)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, ctx.gamma, ctx.eps = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])
    ctx.dtype = features.dtype


def _backward(ctx: Any, grads: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grads is None:
        return None, None, None
    apart_VND, product_VMM, var_VD = ctx.saved_tensors
    views, samples, width = apart_VND.shape
    grad_variance, grad_covariance = (grads / (views * width)).unbind()
    share = 4 * grad_covariance / (samples - 1)
    deviation_VD = torch.sqrt(var_VD + ctx.eps)
    # Of each variance: d (gamma - sqrt(var + eps)) / d var, and d var / d z = 2 z / (N - 1).
    slope_VD = torch.where(deviation_VD < ctx.gamma, -grad_variance / deviation_VD, 0)
    slope_VD = slope_VD / (samples - 1)
    with torch.autocast(apart_VND.device.type, enabled=False):
        if _multiplies_samples(samples, width):
            mixed_VND = product_VMM @ apart_VND
            slope_VD = slope_VD - share * var_VD
        else:
            mixed_VND = apart_VND @ product_VMM
    # Its mean over the samples, which centring takes from it, is 0: that of z is.
    grad = (mixed_VND * share).addcmul_(apart_VND, slope_VD[:, None])
    return grad.to(ctx.dtype), None, None


_op = Op("vicreg", _forward, _fake, setup=_setup, backward=_backward)


def vicreg(
    features: Tensor,
    *,
    gamma: float = 1.0,
    eps: float = 1e-4,
    weights: tuple[float, float] = (25.0, 1.0),
) -> VicRegLoss:
    """How far features are from varying, and how much they covary (VICReg).

    variance = mean_d relu(gamma - sqrt(C_dd + eps))
    covariance = sum_{i != j} C_ij^2 / D

    of the unbiased covariance C of a view's features over its N samples, each the mean over the
    views (Bardes et al. 2022, arXiv 2105.04906). The paper's third term, 25 times the mean squared
    distance of two views, is the caller's. The paper adds up the other two over its two views; its
    code takes the mean of the variances and the sum of the covariances, which is weights (25, 2)
    here, and gathers the samples of all processes, which is the caller's, too.

    Arithmetic is float32 (float64 for float64), also under autocast; matrix products are torch's.
    Where N <= D / 2 the product is that of the samples, N x N, with the same sum of squares: D / N
    times fewer operations. Its error is relative to the sum of all C_ij^2, the diagonal included.

    Args:
        features: z, (N, D), or (V, N, D) for the terms of each view and their means.
        gamma: Deviation that is enough.
        eps: Added to the variances.
        weights: Of variance and covariance in the loss.

    Returns:
        `VicRegLoss`: the loss, and the terms without their weights; 0-dim, float32 (float64 for
        float64 features).

    Raises:
        TypeError: The dtype is not usable.
        ValueError: There are fewer than two samples, or a shape or number is not usable.
    """
    features_VND = as_views(features, least=2)
    check_positive("gamma", gamma)
    check_positive("eps", eps)
    check_weights("weights", weights, 2)
    with torch.autocast(features.device.type, enabled=False):
        variance, covariance = _op(features_VND, gamma, eps)[0].unbind()
    return VicRegLoss(weights[0] * variance + weights[1] * covariance, variance, covariance)
