"""Variance and covariance of features."""

from __future__ import annotations

import torch
from torch import Tensor

from sjepa_kernels import vicreg
from tests.kernels.cases import Outputs, Place, leaves_of
from tests.kernels.fuzzing import Draw
from tests.kernels.op_case import Absent, Arguments, Fuzz, OpCase, Use
from tests.kernels.ops._regularizers import FEWER_THAN_TWO, SAYS, assert_close_to, drawn_features
from tests.kernels.spoils import NAN, WRONG_EPS, WRONG_POSITIVE


def published(z: Tensor, gamma: float = 1.0, eps: float = 1e-4) -> list[Tensor]:
    """The loss, 25 variance + covariance, and both, of (N, D) or (V, N, D)."""
    views = z if z.ndim == 3 else z[None]
    each = torch.eye(z.shape[-1], dtype=torch.bool, device=z.device)
    variances, covariances = [], []
    for view in views:
        covariance = view.mT.cov().view(each.shape)
        deviation = (view.var(dim=0) + eps).sqrt()
        variances.append(torch.relu(gamma - deviation).mean())
        covariances.append(covariance[~each].square().sum() / z.shape[-1])
    terms = [torch.stack(x).mean() for x in (variances, covariances)]
    return [25 * terms[0] + terms[1], *terms]


def arguments() -> Arguments:
    return {
        "features": torch.randn(2, 6, 3),
        "gamma": 1.0,
        "eps": 1e-4,
        "weights": (25.0, 1.0),
    }


def use_of_features(place: Place, dtype: torch.dtype, small: bool) -> Use:
    return _use(place, dtype, (2, 5, 3) if small else (2, 40, 9))


def use_of_samples(place: Place, dtype: torch.dtype, small: bool) -> Use:
    """The product is that of the samples."""
    return _use(place, dtype, (2, 3, 6) if small else (2, 9, 40))


def _use(place: Place, dtype: torch.dtype, shape: tuple[int, ...]) -> Use:
    (features,) = leaves_of(place, shape, dtype=dtype)

    def losses(z: Tensor) -> Outputs:
        return vicreg(z, gamma=1.2, weights=(2.0, 0.5))

    return Use(losses, [features])


def random_call(draw: Draw) -> None:
    samples, width = draw.one_of(2, 3, 5, 17), draw.size(1, 9)
    spread, shift = draw.one_of(0.01, 1.0, 30.0), draw.one_of(0.0, 2.0)
    features = drawn_features(draw, samples, width, spread, shift)
    ours = vicreg(features)
    exact = features.detach().double().requires_grad_()
    eager, truth = published(features.to(ours.loss.dtype)), published(exact)
    centred = exact.detach() - exact.detach().mean(-2, keepdim=True)
    sigma = float(centred.square().mean(-2).sqrt().min()) + 1e-6
    eps, largest = torch.finfo(ours.loss.dtype).eps, float(exact.detach().abs().max())
    # A rounding of a feature is one of its size, which may be more than the deviation; that of a
    # covariance one of both deviations; and a variance just below gamma has lost digits.
    every = float(centred.mT.matmul(centred).square().sum() / (samples - 1) ** 2 / width)
    worst = every / max(float(truth[2].detach()), 1e-30) if width > 1 else 1.0
    gap = float(truth[1].detach())
    slack = 16 * eps * (1 + largest / sigma) * (1 + worst) * (1 + 1 / gap if gap else 1.0)
    if width == 1:
        # Without a pair the second term is a 0 that has no size to compare with.
        assert not ours.covariance.any()
        ours, eager, truth = ours[:2], eager[:2], truth[:2]
    assert_close_to(features, ours, eager, truth, exact, slack)


CASE = OpCase(
    op=vicreg,
    tests=["test_vicreg.py"],
    arguments=arguments,
    says=[
        *SAYS,
        ({"features": torch.zeros(1, 3)}, r"features: \(1, 3\); pass at least 2 samples"),
        ({"gamma": 0.0}, "gamma: 0.0; pass a finite number above zero"),
        ({"weights": (1.0, -1.0)}, r"weights: \(1.0, -1.0\); pass 2 finite numbers"),
    ],
    spoils={
        "features": {way: s for way, s in FEWER_THAN_TWO.items() if way != "another device"},
        "gamma": WRONG_POSITIVE,
        "eps": WRONG_EPS,
        "weights": [(1.0,), (1.0, -1.0), (NAN, 1.0), 1.0],
    },
    uses=[use_of_features, use_of_samples],
    launches=Absent("a product of torch's with little around it, without a kernel"),
    fuzz=Fuzz(random_call),
    in_triton=False,
)
