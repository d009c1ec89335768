"""Distance of features from a standard normal along random directions."""

from __future__ import annotations

import torch
from torch import Tensor

from sjepa_kernels import sigreg
from sjepa_kernels.losses.directions import unit_directions
from tests.kernels.cases import Outputs, Place, assert_within_budget, gradients, leaves_of, meta
from tests.kernels.fuzzing import FLOATS, Draw
from tests.kernels.op_case import Arguments, Fuzz, Launch, OpCase, Use
from tests.kernels.spoils import FLOAT, KEYS, PLACES, SCALAR, WRONG_CHOICE, without


def published(z_VND: Tensor, axes_KD: Tensor) -> Tensor:
    """The formula with all 17 knots at once, in the dtype of its inputs."""
    t = torch.linspace(0, 3, 17, dtype=z_VND.dtype, device=z_VND.device)
    phi, weights = (-t * t / 2).exp(), torch.full_like(t, 2 * 3 / 16)
    weights[[0, -1]] /= 2
    angles_VNKT = (z_VND @ axes_KD.mT)[..., None] * t
    gaps = (angles_VNKT.cos().mean(1) - phi).square() + angles_VNKT.sin().mean(1).square()
    return (gaps @ (weights * phi)).mean() * z_VND.shape[1]


def arguments() -> Arguments:
    return {
        "features": torch.randn(2, 6, 3),
        "seed": torch.tensor(5),
        "step": torch.tensor(2),
        "directions": 4,
        "all_reduce": None,
        "impl": "auto",
    }


def use(place: Place, dtype: torch.dtype, small: bool) -> Use:
    """Enough rows and columns for several tiles of each; all views, and one with a hook.

    On a CPU the projection is torch's product, of 96 columns the same for any number of threads.
    """
    shape, directions = ((2, 3, 2), 3) if small else ((2, 150, 9), 96)
    (features,) = leaves_of(place, shape, dtype=dtype)
    whole = [torch.randint(99, ()).to(place.device) for _ in range(2)]

    def losses(z: Tensor, seed: Tensor, step: Tensor) -> Outputs:
        of_all = sigreg(z, seed, step=step, directions=directions, impl=place.impl)
        options = {"step": step, "directions": 2, "impl": place.impl}
        return of_all, sigreg(z[0], seed, **options, all_reduce=lambda total: 2 * total)

    return Use(losses, [features, *whole])


def launch(step: str, views: int, samples: int, count: int) -> Launch:
    x, scalar, slopes = meta(views, samples, count), meta(dtype=torch.int64), meta(views, 32, count)
    reduced = meta(views, 1, 32, count, dtype=torch.float64), meta(2, dtype=torch.float64)
    runs = {
        "directions": lambda module: module._launch(scalar, scalar, meta(count, 128)),
        "sums": lambda module: module._sums(x, "triton"),
        "finish": lambda module: module._finish(
            x, module._sums_fake(x, "triton"), None, True, "triton"
        ),
        "reduced": lambda module: module._finish(x, *reduced, True, "triton"),
        "gradient": lambda module: module._gradient(x, slopes, meta(), "triton"),
    }
    return f"losses.{'directions' if step == 'directions' else 'sigreg'}", runs[step]


def launch_products(views: int, samples: int, count: int, width: int, dtype: torch.dtype) -> Launch:
    z, axes = meta(views, samples, width, dtype=dtype), meta(count, width)
    x = meta(views, samples, count)
    return "losses.product", lambda m: [m._project(z, axes), m._gradient(x, axes, dtype)]


# Sizes of 1 are constants to the compiler.
LAUNCHES = {
    f"sigreg-{step}-{samples}x{count}": launch(step, views, samples, count)
    for step in ("directions", "sums", "finish", "reduced", "gradient")
    for views, samples, count in ((2, 2048, 1024), (2, 77, 100), (1, 1, 1))
    if count > 1 or step != "directions"
} | {
    f"sigreg-products-{str(dtype)[6:]}-{sizes[1]}x{sizes[2]}": launch_products(*sizes, dtype)
    for dtype in (torch.float32, torch.bfloat16)
    for sizes in ((2, 2048, 1024, 128), (2, 77, 100, 33), (1, 1, 1, 1))
}


def random_call(draw: Draw) -> None:
    views, samples = draw.size(1, 3), draw.one_of(1, 2, 5, 67, 130)
    width, count = draw.size(1, 9), draw.one_of(1, 3, 16, 33, 70)
    dtype, spread = draw.one_of(*FLOATS), draw.one_of(1e-3, 1.0, 30.0)
    values = (spread * draw.normal((views, samples, width), dtype)).detach()
    features = draw.lay_out(values).requires_grad_()
    seed = torch.tensor(draw.int64(), device=draw.device)
    step = draw.int64()
    passed = draw.one_of(step, torch.tensor(step, device=draw.device))
    loss = sigreg(features, seed, step=passed, directions=count, impl=draw.impl)
    drawn = [
        unit_directions(seed, torch.tensor(step, device=draw.device), count, width, d, "torch")
        for d in (loss.dtype, torch.float64)
    ]
    exact = features.detach().double().requires_grad_()
    eager = published(features.to(loss.dtype), drawn[0])
    truth = published(exact, drawn[1])
    scale = draw.one_of(1.0, 3.0)
    grads = [
        gradients(y, [leaf], torch.full_like(y, scale))[0]
        for y, leaf in ((loss, features), (eager, features), (truth, exact))
    ]
    # With as few numbers as here, eager's roundings may happen to cancel, so ours are allowed for:
    # a mean of waves is rounded at the size of 1, and an angle at its own size, 3 times the
    # projection.
    eps, largest = torch.finfo(loss.dtype).eps, float(exact.detach().norm(dim=-1).max())
    rounding = 8 * eps * (1 + 3 * largest)
    size = max(float(truth.detach()), 1e-30)
    # d loss = 2 N sum w (C - phi) dC, at most sqrt(N loss) as large as that of one wave.
    assert_within_budget(loss, eager, truth, "loss", rounding * max(1.0, (samples / size) ** 0.5))
    most = scale * (samples / views / samples**0.5)
    slack = rounding * most / max(float(grads[2].norm()), 1e-30) + torch.finfo(dtype).eps
    assert_within_budget(*grads, "gradient", slack)


CASE = OpCase(
    op=sigreg,
    tests=["test_sigreg.py"],
    arguments=arguments,
    says=[
        ({"features": torch.zeros(3)}, r"features: \(3,\); expected \(N, D\) or \(V, N, D\)"),
        ({"features": torch.zeros(0, 3)}, r"features: \(0, 3\); .*pass samples"),
        ({"features": torch.zeros(4, 3).int()}, "features: torch.int32"),
        ({"seed": torch.tensor(0.5)}, "seed: torch.float32; pass an int64"),
        ({"seed": torch.tensor([1])}, r"seed: \(1,\); expected a 0-dim tensor"),
        ({"step": torch.tensor([1])}, r"step: \(1,\); expected a 0-dim tensor"),
        ({"step": torch.tensor(1.0)}, "step: torch.float32"),
        ({"directions": 0}, "directions: 0; pass how many"),
    ],
    spoils={
        "features": without(FLOAT, "wider", "narrower")
        | {"no samples": lambda x: x[:, :0], "no views": lambda x: x[:0]},
        "seed": KEYS["seed"],
        "step": without(SCALAR, "torch.int32") | PLACES,
        "directions": [0, -1, 1 << 31],
        "all_reduce": ["sum", 3],
        "impl": WRONG_CHOICE,
    },
    uses=[use],
    launches=LAUNCHES,
    fuzz=Fuzz(random_call, examples=60, interpreted=15),
    in_cpp=True,
)
