"""VISReg against the published formula in float64, in every implementation that runs here."""

from __future__ import annotations

from functools import partial
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from sjepa_kernels import VisReg, visreg
from sjepa_kernels.losses import sorted_gaps as module
from sjepa_kernels.losses.directions import unit_directions
from sjepa_kernels.losses.sorted_gaps import sorted_gaps
from sjepa_kernels.losses.visreg import VisRegLoss, normal_quantiles
from tests.kernels.cases import Place, assert_learns_within_budget, in_float64
from tests.kernels.ops.visreg import published

HAS_CPP = True

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# V, N, D, K: one number, tails, rows for two tiles and columns for two.
SHAPES = [(1, 1, 1, 1), (2, 2, 3, 4), (3, 7, 5, 3), (1, 131, 18, 1)]
SEED, STEP = 2**40 + 7, 3


def axes(count: int, width: int, dtype: torch.dtype, device: str) -> Tensor:
    seed, step = (torch.tensor(n, device=device) for n in (SEED, STEP))
    return unit_directions(seed, step, count, width, dtype, "torch")


def features(place: Place, *shape: int, spread: float = 1.0, shift: float = 0.0) -> Tensor:
    return (shift + spread * torch.randn(shape)).to(place.device).requires_grad_()


def call(z: Tensor, count: int, place: Place) -> VisRegLoss:
    seed = torch.tensor(SEED, device=place.device)
    return visreg(z, seed, step=STEP, directions=count, impl=place.impl)


def assert_right(z: Tensor, count: int, place: Place, extra: float) -> None:
    exact = in_float64([z])
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    of = partial(axes, count, z.shape[-1])
    truth = published(exact[0], of(torch.float64, place.device))
    eager = published(z.to(wide), of(wide, place.device))
    assert_learns_within_budget(call(z, count, place), eager, truth, [z], exact, extra)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradient(place: Place, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    *sizes, count = shape
    z = features(place, *sizes, spread=2.0, shift=1.0).detach().to(dtype).requires_grad_()
    assert_right(z, count, place, 1e-13 if dtype == torch.float64 else 3e-6)


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_collapsed_features(place: Place, value: float) -> None:
    """Of equal projections the first has the lowest rank; a deviation of 0 has no gradient."""
    z = torch.full((2, 8, 3), value, device=place.device, requires_grad=True)
    assert_right(z, 4, place, 1e-6)


def test_two_numbers_by_hand(place: Place) -> None:
    """With one direction, 1 or -1, the projections are -1 and 1, nearly."""
    z = torch.tensor([[1.0], [4.0]], dtype=torch.float64, device=place.device)
    loss, center, scale, shape = call(z, 1, place)
    assert float(center) == pytest.approx(2.5**2)
    assert float(scale) == pytest.approx((1.5 + 1e-6 - 1) ** 2, rel=1e-12)
    gap = 1.5 / (1.5 + 1e-6) - NormalDist().inv_cdf(2 / 3)
    assert float(shape) == pytest.approx(gap**2, rel=1e-12)
    assert float(loss) == pytest.approx(float(center + scale + shape))


@pytest.mark.parametrize("samples", [1, 2, 5, 4096])
def test_quantiles_are_the_normals(samples: int) -> None:
    ours = normal_quantiles(samples, torch.zeros((), dtype=torch.float64))
    expected = [NormalDist().inv_cdf(i / (samples + 1)) for i in range(1, samples + 1)]
    torch.testing.assert_close(
        ours, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0
    )
    assert torch.equal(ours, -ours.flip(0))
    assert normal_quantiles(samples, torch.zeros(1).half()).dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("longest", [4096, 8])
def test_ranks_are_those_of_a_stable_sort(
    place: Place, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, longest: int
) -> None:
    """To the bit: of ties, of both zeros, infinities and the least numbers; longer rows as well."""
    if place.impl == "torch" or (place.impl == "cpu" and dtype == torch.float64):
        pytest.skip("it has no sort of its own")
    monkeypatch.setattr(module, "_LONGEST", longest)
    x = torch.randn(1, 3, 13, dtype=dtype)
    x[0, 0] = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.0, -0.0, 1.0, 1e18, -1e18, 1e-40, -1e-40, 2, 2])
    x[0, 1] = 2.0
    x, quantiles = x.to(place.device), torch.arange(13.0, dtype=dtype, device=place.device)
    numbers, order = x.sort(dim=-1, stable=True)
    gaps = numbers - quantiles
    losses, found = sorted_gaps(x, quantiles, True, place.impl)
    assert torch.equal(found, torch.empty_like(x).scatter_(-1, order, gaps))
    torch.testing.assert_close(losses, gaps.double().square().sum(-1), rtol=1e-6, atol=0)
    again, none = sorted_gaps(x, quantiles, False, place.impl)
    assert torch.equal(again, losses)
    assert none.numel() == 0


def test_a_standard_normal_scores_low_and_others_high(place: Place) -> None:
    """Each term tells of what it is named for."""
    normal = torch.randn(32, 3)
    normal = ((normal - normal.mean(0)) / normal.std(0)).to(place.device)
    low = call(normal, 2, place)
    assert float(low.loss) < 0.2
    assert float(call(normal + 2, 2, place).center) == pytest.approx(4, rel=1e-4)
    assert float(call(3 * normal, 2, place).scale) == pytest.approx(4, rel=0.1)
    assert float(call(normal.sign(), 2, place).shape) > 2 * float(low.shape)
    # Neither a shift nor a scale changes the shape.
    torch.testing.assert_close(call(3 * normal + 2, 2, place).shape, low.shape, rtol=1e-3, atol=0)


def test_weights_and_step_and_seed(place: Place) -> None:
    z = features(place, 9, 8).detach()
    numbers = [torch.tensor(n, device=place.device) for n in (1, 2)]
    options = {"directions": 2, "impl": place.impl}
    found = [visreg(z, seed, step=step, **options) for seed in numbers for step in numbers]
    assert len({float(x.shape) for x in found}) == 4
    same = visreg(z, numbers[0], step=2, weights=(3.0, 0.5, 2.0), **options)
    assert all(map(torch.equal, same[1:], found[1][1:]))
    torch.testing.assert_close(same.loss, 3 * same.center + 0.5 * same.scale + 2 * same.shape)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, under the interpreter
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_shows_in_the_loss(place: Place, bad: float) -> None:
    z = features(place, 9, 3).detach()
    z[6, 1] = bad
    assert torch.isnan(call(z, 2, place).shape)


def test_autocast_changes_nothing(place: Place) -> None:
    z = features(place, 9, 8)
    plain = call(z, 3, place).loss
    with torch.autocast(place.device, torch.bfloat16):
        cast = call(z, 3, place).loss
    assert torch.equal(cast, plain)
    assert all(map(torch.equal, *(torch.autograd.grad(x, z) for x in (cast, plain))))


def test_module_counts_its_calls_in_training_and_resumes(place: Place) -> None:
    z = features(place, 9, 6)
    layer = VisReg(2, seed=SEED, weights=(1.0, 2.0, 3.0), impl=place.impl).to(place.device)
    seed = torch.tensor(SEED, device=place.device)
    options = {"directions": 2, "weights": (1.0, 2.0, 3.0), "impl": place.impl}
    for step in range(2):
        expected = visreg(z, seed, step=step, **options).loss
        assert torch.equal(layer.eval()(z), expected)
        assert torch.equal(layer.train()(z), expected)
    resumed = VisReg(2, weights=(1.0, 2.0, 3.0), impl=place.impl).to(place.device)
    resumed.load_state_dict(layer.state_dict())
    assert torch.equal(resumed(z), visreg(z, seed, step=2, **options).loss)
