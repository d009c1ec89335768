"""Means, deviations and sorted projections of features against a standard normal's."""

from __future__ import annotations

import torch
from torch import Tensor

from sjepa_kernels import visreg
from sjepa_kernels.losses.directions import unit_directions
from tests.kernels.cases import Outputs, Place, leaves_of, meta
from tests.kernels.fuzzing import Draw
from tests.kernels.op_case import Arguments, Fuzz, Launch, OpCase, Use
from tests.kernels.ops._regularizers import (
    IMPL,
    NO_SAMPLES,
    SAYS,
    assert_close_to,
    drawn_features,
)
from tests.kernels.spoils import INF, KEYS, NAN, PLACES, SCALAR, without


def published(z: Tensor, axes_KD: Tensor) -> list[Tensor]:
    """The sum of the three terms, and each, of (N, D) or (V, N, D), in the dtype of its inputs."""
    samples = z.shape[-2]
    mean = z.mean(-2, keepdim=True)
    sigma = (z - mean).norm(dim=-2, keepdim=True) / samples**0.5 + 1e-6
    ranks = torch.arange(1, samples + 1, dtype=torch.float64, device=z.device) / (samples + 1)
    x = ((z - mean) / sigma.detach()) @ axes_KD.mT
    gaps = torch.sort(x, dim=-2, stable=True).values - torch.special.ndtri(ranks).to(z)[:, None]
    terms = [part.square().mean() for part in (mean, sigma - 1, gaps)]
    return [terms[0] + terms[1] + terms[2], *terms]


def arguments() -> Arguments:
    return {
        "features": torch.randn(2, 6, 3),
        "seed": torch.tensor(5),
        "step": torch.tensor(2),
        "directions": 4,
        "weights": (1.0, 0.5, 2.0),
        "impl": "auto",
    }


def use(place: Place, dtype: torch.dtype, small: bool) -> Use:
    """The small one is of features whose deviations are fixed where those have no gradient.

    Only so are differences of the third term what its gradient predicts.
    """
    shape, directions = ((1, 4, 2), 2) if small else ((2, 12, 9), 5)
    (features,) = leaves_of(place, shape, dtype=dtype)
    whole = [torch.randint(99, ()).to(place.device) for _ in range(2)]

    def losses(z: Tensor, seed: Tensor, step: Tensor) -> Outputs:
        options = {"step": step, "directions": directions, "impl": place.impl}
        found = visreg(z, seed, weights=(1.0, 0.5, 2.0), **options)
        if not small:
            return found
        fixed = z / (z - z.mean(1, keepdim=True)).norm(dim=1, keepdim=True)
        return found.center, found.scale, visreg(fixed, seed, **options).shape

    return Use(losses, [features, *whole])


def launch(step: str, samples: int, width: int) -> Launch:
    """Of two views along as many directions as there are features."""
    z, column = meta(2, samples, width), meta(2, 1, width)
    x = meta(2, width, samples)
    losses = meta(2, width, dtype=torch.float64)
    runs = {
        "standardize": lambda module: module._standardized(z, "triton"),
        "sort": lambda module: module.sorted_gaps(x, meta(samples), True, "triton"),
        "terms": lambda module: module._terms(column, column, losses, samples),
        "gradient": lambda module: module._gradient(
            z, meta(width, width), column, column, x, meta(3), torch.float32, "triton"
        ),
    }
    return f"losses.{'sorted_gaps' if step == 'sort' else 'visreg'}", runs[step]


LAUNCHES = {
    f"visreg-{step}-{samples}x{width}": launch(step, samples, width)
    for step in ("standardize", "sort", "terms", "gradient")
    for samples, width in ((512, 256), (77, 100))
}


def random_call(draw: Draw) -> None:
    samples, width, count = draw.one_of(1, 2, 5, 17), draw.size(1, 9), draw.one_of(1, 3, 6)
    spread, shift = draw.one_of(0.01, 1.0, 30.0), draw.one_of(0.0, 2.0)
    features = drawn_features(draw, samples, width, spread, shift)
    seed = torch.tensor(draw.int64(), device=draw.device)
    step = draw.int64()
    passed = draw.one_of(step, torch.tensor(step, device=draw.device))
    ours = visreg(features, seed, step=passed, directions=count, impl=draw.impl)
    drawn = [
        unit_directions(seed, torch.tensor(step, device=draw.device), count, width, d, "torch")
        for d in (ours.loss.dtype, torch.float64)
    ]
    exact = features.detach().double().requires_grad_()
    eager = published(features.to(ours.loss.dtype), drawn[0])
    truth = published(exact, drawn[1])
    # A rounding of a feature is one of its size, which may be more than the deviation, and the
    # square of a small difference is as many times less exact.
    apart = exact.detach() - exact.detach().mean(-2, keepdim=True)
    sigma = float(apart.square().mean(-2).sqrt().min()) + 1e-6
    eps, largest = torch.finfo(ours.loss.dtype).eps, float(exact.detach().abs().max())
    least = min(float(x.detach().sqrt()) for x in truth if x > 1e-12)
    slack = 16 * eps * (1 + largest / sigma) * (1 + 1 / least)
    assert_close_to(features, ours, eager, truth, exact, slack)


CASE = OpCase(
    op=visreg,
    tests=["test_visreg.py"],
    arguments=arguments,
    says=[
        *SAYS,
        ({"seed": torch.tensor(0.5)}, "seed: torch.float32; pass an int64"),
        ({"step": torch.tensor([1])}, r"step: \(1,\); expected a 0-dim tensor"),
        ({"directions": 0}, "directions: 0; pass how many"),
        ({"weights": (1.0, 1.0)}, r"weights: \(1.0, 1.0\); pass 3 finite numbers"),
    ],
    spoils={
        "features": NO_SAMPLES,
        "seed": KEYS["seed"],
        "step": without(SCALAR, "torch.int32") | PLACES,
        "directions": [0, -1, 1 << 31],
        "weights": [(1.0, 1.0), (1.0, -1.0, 1.0), (NAN, 1.0, 1.0), (1.0, 1.0, INF), 1.0],
        **IMPL,
    },
    uses=[use],
    launches=LAUNCHES,
    fuzz=Fuzz(random_call, examples=60, interpreted=8),
    in_cpp=True,
)
