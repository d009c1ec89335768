"""Added positions against float64, in every implementation that runs here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sjepa_kernels import add_positions
from tests.kernels.cases import Place, assert_learns_within_budget, gradients, in_float64

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# B, S, V, D, K: odd sizes, one of everything, tables longer than a tile, a tenth of 750 tokens.
SHAPES = [(2, 3, 5, 7, 4), (1, 1, 1, 1, 1), (2, 2, 40, 33, 61), (1, 30, 25, 260, 75)]


def random_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, device: str, tables: torch.dtype | None = None
) -> tuple[list[Tensor], Tensor]:
    batch, segments, joints, width, kept = shape
    made = [torch.randn(s) for s in ((batch, kept, width), (segments, width), (joints, width))]
    dtypes = [dtype, *[tables or dtype] * 2]
    leaves = [x.to(device, d).requires_grad_() for x, d in zip(made, dtypes, strict=True)]
    ids = torch.stack([torch.randperm(segments * joints)[:kept] for _ in range(batch)])
    return leaves, ids.to(device)


def by_definition(leaves: list[Tensor], ids: Tensor) -> Tensor:
    """The formula, token by token."""
    x, temporal, spatial = leaves
    joints = spatial.shape[0]
    rows = [
        torch.stack([x[b, k] + (temporal[n // joints] + spatial[n % joints])])
        for b, row in enumerate(ids.tolist())
        for k, n in enumerate(row)
    ]
    return torch.cat(rows).view(x.shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients(place: Place, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    leaves, ids = random_inputs(shape, dtype, place.device)
    exact = in_float64(leaves)
    ids = ids.to(torch.int32) if dtype == torch.float32 else ids
    out = add_positions(leaves[0], ids, *leaves[1:], impl=place.impl)
    eager, truth = by_definition(leaves, ids), by_definition(exact, ids)
    assert_learns_within_budget(out, eager, truth, leaves, exact)


@pytest.mark.parametrize("tables", [torch.float32, torch.float64], ids=str)
def test_half_precision_joins_a_stream_of_the_tables_dtype(
    place: Place, tables: torch.dtype
) -> None:
    leaves, ids = random_inputs((2, 3, 5, 24, 9), torch.float16, place.device, tables)
    exact = in_float64(leaves)
    out = add_positions(leaves[0], ids, *leaves[1:], impl=place.impl)
    assert out.dtype == tables
    eager, truth = by_definition(leaves, ids), by_definition(exact, ids)
    assert_learns_within_budget(out, eager, truth, leaves, exact)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7, 0), (0, 3, 5, 7, 4), (2, 0, 5, 7, 0)], ids=str)
def test_empty(place: Place, shape: tuple[int, ...]) -> None:
    leaves, ids = random_inputs((max(shape[0], 1), *shape[1:]), torch.float32, place.device)
    leaves[0] = leaves[0].detach()[: shape[0]].requires_grad_()
    out = add_positions(leaves[0], ids[: shape[0]], *leaves[1:], impl=place.impl)
    assert out.shape == (shape[0], shape[4], shape[3])
    for leaf, grad in zip(leaves, gradients(out, leaves, torch.ones_like(out)), strict=True):
        assert torch.equal(grad, torch.zeros_like(leaf))


def test_kernels_turn_bad_ids_into_nan(place: Place) -> None:
    if place.impl != "triton":
        pytest.skip("the reference checks ids")
    leaves, ids = random_inputs((2, 2, 3, 5, 2), torch.float32, place.device)
    ids[1, 0] = 6
    out = torch.ops.sjepa.add_positions(leaves[0].detach(), ids, *(x.detach() for x in leaves[1:]))
    assert torch.isfinite(out[0]).all() and torch.isfinite(out[1, 1]).all()
    assert torch.isnan(out[1, 0]).all()
