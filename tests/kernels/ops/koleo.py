"""Distances of features to their nearest neighbours on the sphere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, pairwise_distance

from sjepa_kernels import koleo
from tests.kernels.cases import Outputs, Place, leaves_of, meta
from tests.kernels.fuzzing import Draw
from tests.kernels.op_case import Arguments, Fuzz, Launch, OpCase, Use
from tests.kernels.ops._regularizers import (
    FEWER_THAN_TWO,
    IMPL,
    SAYS,
    assert_close_to,
    drawn_features,
)


def products(z: Tensor) -> Tensor:
    """Of the unit vectors of each view with all others; minus infinity with themselves."""
    unit = normalize(z, dim=-1, eps=1e-8)
    dots = unit @ unit.mT
    dots.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
    return dots


def published(z: Tensor) -> Tensor:
    """DINOv2's loss of (N, D), or the mean of those of (V, N, D), in the dtype of its input."""
    losses = []
    for view in z if z.ndim == 3 else z[None]:
        unit = normalize(view, dim=-1, eps=1e-8)
        near = unit[products(view.detach()).argmax(dim=1)]
        losses.append(-torch.log(pairwise_distance(unit, near, 2, eps=1e-8) + 1e-8).mean())
    return torch.stack(losses).mean()


def arguments() -> Arguments:
    return {"features": torch.randn(2, 6, 3), "impl": "auto"}


def use(place: Place, dtype: torch.dtype, small: bool) -> Use:
    """More rows than a tile of products has."""
    (features,) = leaves_of(place, (2, 3, 2) if small else (1, 70, 9), dtype=dtype)

    def loss(z: Tensor) -> Outputs:
        return koleo(z, impl=place.impl)

    return Use(loss, [features])


def launch(step: str, samples: int, width: int, dtype: torch.dtype) -> Launch:
    z, row = meta(2, samples, width, dtype=dtype), meta(2 * samples)
    ids = meta(2 * samples, dtype=torch.int64)
    runs = {
        "forward": lambda module: module._forward(z),
        "gradient": lambda module: module._gradient(z, row, ids, row, meta()),
    }
    return "losses.koleo", runs[step]


LAUNCHES = {
    f"koleo-{step}-{samples}x{width}-{str(dtype)[6:]}": launch(step, samples, width, dtype)
    for step, samples, width, dtype in (
        ("forward", 1024, 1024, torch.bfloat16),
        ("forward", 1024, 1024, torch.float32),
        ("forward", 77, 100, torch.float32),
        ("gradient", 1024, 1024, torch.bfloat16),
        ("gradient", 77, 100, torch.float32),
    )
}


def random_call(draw: Draw) -> None:
    samples, width = draw.one_of(2, 3, 9, 20), draw.size(3, 9)
    features = drawn_features(draw, samples, width, draw.one_of(0.01, 1.0, 30.0), 0.0)
    ours = koleo(features, impl=draw.impl)
    exact = features.detach().double().requires_grad_()
    eager, truth = published(features.to(ours.dtype)), published(exact)
    eps = torch.finfo(ours.dtype).eps
    largest = products(exact.detach()).sort(dim=-1, descending=True).values
    if samples > 2 and float((largest[..., 0] - largest[..., 1]).min()) < 16 * eps:
        return  # Which of two is nearer is for the rounding to say.
    # The rounding of a unit vector, over the least distance; a mean of logarithms may be near 0.
    least = float((2 - 2 * largest[..., 0]).clamp_min(1e-30).min()) ** 0.5
    slack = 16 * eps / least * (1 + 1 / abs(float(truth.detach())))
    assert_close_to(features, ours, eager, truth, exact, slack)


CASE = OpCase(
    op=koleo,
    tests=["test_koleo.py"],
    arguments=arguments,
    says=[
        *SAYS,
        ({"features": torch.zeros(1, 3)}, r"features: \(1, 3\); pass at least 2 samples"),
    ],
    spoils={
        "features": {way: s for way, s in FEWER_THAN_TWO.items() if way != "another device"},
        **IMPL,
    },
    uses=[use],
    launches=LAUNCHES,
    fuzz=Fuzz(random_call, examples=60, interpreted=8),
)
