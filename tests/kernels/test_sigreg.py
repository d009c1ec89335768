"""SIGReg against the published formula in float64, in every implementation that runs here."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from sjepa_kernels import SigReg, sigreg
from sjepa_kernels._triton import INTERPRETED
from sjepa_kernels.losses.directions import unit_directions
from sjepa_kernels.losses.product import project
from tests.kernels.cases import Place, assert_learns_within_budget, in_float64
from tests.kernels.fuzzing import philox_in_integers
from tests.kernels.ops.sigreg import published

HAS_CPP = True

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# V, N, D, K: one number, vector tails in rows and columns, several tiles of both.
SHAPES = [(1, 1, 1, 1), (2, 7, 5, 3), (3, 131, 16, 33), (1, 300, 9, 70)]
SEED, STEP = 2**40 + 7, 3


def features(place: Place, *shape: int, spread: float = 1.0) -> Tensor:
    return (spread * torch.randn(shape)).to(place.device).requires_grad_()


def axes(count: int, width: int, dtype: torch.dtype, device: str, impl: str = "torch") -> Tensor:
    seed, step = (torch.tensor(n, device=device) for n in (SEED, STEP))
    return unit_directions(seed, step, count, width, dtype, impl)


def call(z: Tensor, count: int, place: Place) -> Tensor:
    seed = torch.tensor(SEED, device=place.device)
    return sigreg(z, seed, step=STEP, directions=count, impl=place.impl)


def assert_right(z: Tensor, count: int, place: Place, extra: float = 0.0) -> None:
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
    z = features(place, *sizes).detach().to(dtype).requires_grad_()
    assert_right(z, count, place, 1e-13 if dtype == torch.float64 else 2e-6)


@pytest.mark.parametrize("spread", [0.0, 1e-3, 1e2, 1e4])
def test_collapsed_and_extreme_features(place: Place, spread: float) -> None:
    """Large angles are rounded by eager, and less so by ours; a rounding of z itself costs both."""
    z = features(place, 1, 40, 6, spread=spread)
    assert_right(z, 5, place, 1e-6 * (1 + 3 * spread))


def test_equals_the_published_formula_at_its_own_size(place: Place) -> None:
    """To 1e-5, at LeJEPA's width; fewer samples where each program is interpreted."""
    samples, count = (256, 64) if place.impl == "triton" else (1024, 256)
    z = features(place, 2, samples, 64)
    truth = published(z.double(), axes(count, 64, torch.float64, place.device))
    ours = call(z, count, place)
    assert abs(ours.double() - truth) <= 1e-5 * truth
    mine, true = (torch.autograd.grad(loss, z)[0] for loss in (ours, truth))
    assert (mine - true).norm() <= 1e-5 * true.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_projections_of_several_tiles(place: Place, dtype: torch.dtype) -> None:
    """Tiles along each axis and along each sum, in strides of a view that is turned."""
    if place.impl != "triton":
        pytest.skip("torch's own product")
    stored = torch.randn(2, 130, 70).to(place.device, dtype)
    z, of = stored.mT.requires_grad_(), torch.randn(150, 130).to(place.device)
    exact = in_float64([z])
    truth = exact[0] @ of.double().mT
    torch.library.opcheck(torch.ops.sjepa.project.default, (z.detach().requires_grad_(), of))
    assert_learns_within_budget(project(z, of), z.float() @ of.mT, truth, [z], exact)


@pytest.mark.parametrize("count", [1, 7, 8, 19, 64, 130])
def test_every_vector_width(lanes: int, count: int) -> None:
    assert_right(features(Place("cpu", "cpu"), 2, 67, 4), count, Place("cpu", "cpu"), 2e-6)


def test_a_standard_normal_scores_low_and_others_high(place: Place) -> None:
    """Under the normal the expectation does not depend on N; otherwise it grows like N."""
    calls, samples = (10, 30) if INTERPRETED else (40, 100)
    normal = torch.randn(samples * calls, 4)
    t = 3 / 16 * torch.arange(17, dtype=torch.float64)
    weights = torch.full_like(t, 3 / 8)
    weights[[0, -1]] /= 2
    phi = (-t * t / 2).exp()
    # E |mean of e^(itx) - phi|^2 = (1 - phi^2) / N.
    expected = float((weights * phi * (1 - phi * phi)).sum())
    found = [float(call(z.to(place.device), 64, place)) for z in normal.chunk(calls)]
    assert sum(found) / len(found) == pytest.approx(expected, rel=0.3)
    few = normal[: 2 * samples]
    for other in (0 * few, 3 * few, few + 2):
        assert float(call(other.to(place.device), 64, place)) > 5 * expected


def test_directions_are_the_definitions(place: Place) -> None:
    for width, count in ((1, 3), (2, 5), (6, 3), (33, 20)):
        ours = axes(count, width, torch.float32, place.device, place.impl)
        for k in (0, count - 1):
            row: list[Tensor] = []
            for block in range(-(-width // 4)):
                words = philox_in_integers(SEED, [block, k, STEP, 1 << 17])
                u = [(w >> 8) / 2**24 for w in words]
                for near, turn in ((u[0], u[1]), (u[2], u[3])):
                    odd = torch.tensor((int(near * 2**24) | 1) / 2**24, dtype=torch.float64)
                    angle = torch.tensor(2 * torch.pi * turn, dtype=torch.float64)
                    radius = (-2 * odd.log()).sqrt()
                    row += [radius * angle.cos(), radius * angle.sin()]
            truth = torch.stack(row[:width])
            expected = (truth / truth.norm()).float().to(place.device)
            torch.testing.assert_close(ours[k], expected, rtol=0, atol=5e-7)


def test_seed_and_step_choose_the_directions(place: Place) -> None:
    z = features(place, 50, 8).detach()
    numbers = [torch.tensor(n, device=place.device) for n in (1, 2)]
    options = {"directions": 6, "impl": place.impl}
    found = [sigreg(z, seed, step=step, **options) for seed in numbers for step in numbers]
    assert len({float(x) for x in found}) == 4
    assert torch.equal(found[1], sigreg(z, numbers[0], step=2, **options))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, under the interpreter
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_shows_in_the_loss(place: Place, bad: float) -> None:
    z = features(place, 70, 3).detach()
    z[66, 1] = bad
    assert torch.isnan(call(z, 17, place))


def test_no_phase_is_left_but_the_loss_is_bounded(place: Place) -> None:
    z = features(place, 20, 3, spread=1e12)
    loss = call(z, 5, place)
    (grad,) = torch.autograd.grad(loss, z)
    assert torch.isfinite(grad).all() and 0 <= loss <= 20 * 17 * 4


def test_half_precision_gradients_survive_a_loss_scale(place: Place) -> None:
    """Of a GradScaler: the scale multiplies before the gradient is rounded to float16."""
    z = features(place, 400, 4).detach().half().requires_grad_()
    exact = in_float64([z])[0]
    truth = published(exact[None], axes(9, 4, torch.float64, place.device))
    (true,) = torch.autograd.grad(truth, exact)
    (scaled,) = torch.autograd.grad(call(z, 9, place) * 65536, z)
    error = (scaled.double() / 65536 - true).norm() / true.norm()
    assert error <= torch.finfo(torch.float16).eps


def test_autocast_changes_nothing(place: Place) -> None:
    z = features(place, 40, 8)
    plain = call(z, 9, place)
    with torch.autocast(place.device, torch.bfloat16):
        assert torch.equal(call(z, 9, place), plain)


def test_nothing_of_every_knot_is_kept(place: Place) -> None:
    """The largest tensor that a kernel's call saves for its backward is the projections."""
    if place.impl == "torch":
        pytest.skip("the reference keeps a wave of each knot")
    saved: list[int] = []

    def keep(x: Tensor) -> Tensor:
        saved.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        call(features(place, 256, 8), 40, place)
    assert sum(saved) <= 256 * 40 + 32 * 40 + 40 * 8 + 256 * 8


@pytest.mark.parametrize("returns", [False, True])
def test_two_processes_have_the_loss_and_gradient_of_all(place: Place, returns: bool) -> None:
    """Of unequal batches; DistributedDataParallel's mean of the gradients is that of the whole."""
    z = features(place, 2, 90, 5)
    whole = call(z, 7, place)
    (true,) = torch.autograd.grad(whole, z)
    seed = torch.tensor(SEED, device=place.device)
    options = {"step": STEP, "directions": 7, "impl": place.impl}
    parts = [z.detach()[:, :30].requires_grad_(), z.detach()[:, 30:].requires_grad_()]
    sums: list[Tensor] = []
    for part in parts:
        sigreg(part, seed, all_reduce=lambda own: sums.append(own.clone()), **options)
    assert [x.tolist() for x in (sums[0][-2:], sums[1][-2:])] == [[30, 1], [60, 1]]

    grads = []
    for part in parts:
        loss = sigreg(part, seed, all_reduce=lambda own: _sum(own, sums, returns), **options)
        torch.testing.assert_close(loss, whole)
        grads += torch.autograd.grad(loss, part)
    torch.testing.assert_close(torch.cat(grads, dim=1) / 2, true, rtol=1e-4, atol=1e-7)


def _sum(own: Tensor, sums: list[Tensor], returns: bool) -> Tensor | None:
    if returns:
        return sums[0] + sums[1]
    own.copy_(sums[0] + sums[1])
    return None


def test_module_counts_its_calls_in_training_and_resumes(place: Place) -> None:
    z = features(place, 60, 6)
    module = SigReg(5, seed=SEED, impl=place.impl).to(place.device)
    seed = torch.tensor(SEED, device=place.device)
    for step in range(3):
        expected = sigreg(z, seed, step=step, directions=5, impl=place.impl)
        assert torch.equal(module.eval()(z), expected)
        assert torch.equal(module.train()(z), expected)
    resumed = SigReg(5, impl=place.impl).to(place.device)
    resumed.load_state_dict(module.state_dict())
    assert torch.equal(resumed(z), sigreg(z, seed, step=3, directions=5, impl=place.impl))


def _one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    z = torch.linspace(-2, 3, 60).view(20, 3)
    own = z[:8] if rank == 0 else z[8:]
    torch.save(SigReg(9, seed=4)(own), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(INTERPRETED, reason="the reduction is the same for all implementations")
def test_module_reduces_over_a_process_group(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_one_of_two, (str(tmp_path),), nprocs=2)
    whole = SigReg(9, seed=4)(torch.linspace(-2, 3, 60).view(20, 3))
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt", weights_only=True), whole)
