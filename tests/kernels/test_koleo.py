"""KoLeo against DINOv2's formula in float64, in every implementation that runs here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sjepa_kernels import koleo
from sjepa_kernels.losses import koleo as module
from sjepa_kernels.losses.koleo import nearest_ids
from tests.kernels.cases import Place, assert_learns_within_budget, in_float64
from tests.kernels.ops.koleo import products, published

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# V, N, D: a pair, tails, features for two tiles.
SHAPES = [(1, 2, 3), (2, 7, 5), (1, 12, 37)]


def assert_right(z: Tensor, place: Place, extra: float) -> None:
    exact = in_float64([z])
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    truth, eager = published(exact[0]), published(z.to(wide))
    assert_learns_within_budget(koleo(z, impl=place.impl), eager, truth, [z], exact, extra)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradient(place: Place, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    z = (0.5 + torch.randn(shape)).to(place.device, dtype).requires_grad_()
    assert_right(z, place, 1e-13 if dtype == torch.float64 else 3e-6)


@pytest.mark.parametrize("parts", [1, 2])
def test_any_cut_of_the_columns(place: Place, monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    """One program along all tiles of columns, or two that take turns; chunks of rows."""
    monkeypatch.setattr(module, "_PARTS", parts)
    monkeypatch.setattr(module, "_TILE", {"BM": 16, "BN": 16, "BD": 16})
    monkeypatch.setattr(module, "_CHUNK", 7)
    z = torch.randn(1, 34, 19).to(place.device).requires_grad_()
    assert_right(z, place, 3e-6)


def test_a_row_that_all_others_are_near_to(place: Place) -> None:
    """More rows than a tile of the backward has; their sum is in a fixed order."""
    z = torch.randn(1, 40, 300)
    z[0, 5] = z[0].sum(dim=0)
    z = z.to(place.device).requires_grad_()
    nearest = products(z.detach()).argmax(dim=-1)
    assert int((nearest == 5).sum()) > 20
    assert_right(z, place, 3e-6)


def test_of_equally_near_rows_the_first(place: Place) -> None:
    """All equal: each has the first for its neighbour and the first the second, in other tiles."""
    z = torch.ones(1, 70, 4, dtype=torch.float64, device=place.device).requires_grad_()
    loss = koleo(z, impl=place.impl)
    # |eps, eps, eps, eps| = 2 eps, and eps.
    assert float(loss.detach()) == pytest.approx(
        -torch.tensor(3e-8).double().log().item(), rel=1e-7
    )
    (grad,) = torch.autograd.grad(loss, z)
    # What a row's norm takes from a gradient along it leaves nothing of one by eps alone.
    assert float(grad.abs().max()) < 1.0
    if place.impl == "torch":
        assert nearest_ids(z.detach()).tolist() == [1] + [0] * 69


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_equal_rows_and_a_row_of_zeros(place: Place, dtype: torch.dtype) -> None:
    """The distance is then that by eps; the norm's is a constant."""
    z = torch.randn(1, 9, 4, dtype=dtype)
    z[0, 7] = z[0, 2]
    z[0, 4] = 0
    z = z.to(place.device).requires_grad_()
    assert_right(z, place, 3e-6)


def test_opposite_rows_are_neighbours(place: Place) -> None:
    """Where DINOv2's -1 on the diagonal may be larger than their product as it is rounded."""
    z = normalize(torch.randn(1, 5), dim=1)
    pair = torch.cat([z, -3 * z]).to(place.device)
    loss = float(koleo(pair, impl=place.impl))
    assert loss == pytest.approx(-torch.tensor(2.0).log().item(), rel=1e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, under the interpreter
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("row", [0, 6])
def test_what_is_no_number_shows_in_the_loss(place: Place, bad: float, row: int) -> None:
    z = torch.randn(9, 3, device=place.device)
    z[row, 1] = bad
    assert torch.isnan(koleo(z, impl=place.impl))


def test_autocast_changes_nothing(place: Place) -> None:
    z = torch.randn(9, 8, device=place.device, requires_grad=True)
    plain = koleo(z, impl=place.impl)
    with torch.autocast(place.device, torch.bfloat16):
        cast = koleo(z, impl=place.impl)
    assert torch.equal(cast, plain)
    assert all(map(torch.equal, *(torch.autograd.grad(x, z) for x in (cast, plain))))


def test_rows_of_a_view_have_neighbours_there(place: Place) -> None:
    """The mean of the views' losses, though the other view's rows are equal."""
    z = torch.randn(8, 4, device=place.device)
    each = koleo(z, impl=place.impl)
    both = koleo(torch.stack([z, 2 * z]), impl=place.impl)
    torch.testing.assert_close(both, each)


def test_the_triton_kernels_take_so_wide_rows(place: Place) -> None:
    if place.impl != "triton":
        pytest.skip("plain PyTorch takes any")
    with pytest.raises(ValueError, match="features: width 4097; up to 4096"):
        koleo(torch.zeros(2, 4097, device=place.device), impl="triton")
