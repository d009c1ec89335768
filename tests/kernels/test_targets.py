"""Contextualised targets against float64, in every implementation that runs here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import instance_norm, layer_norm

from sjepa_kernels import ContextualizedTargets, accumulate_normalized_
from tests.kernels.cases import Place, assert_within_budget

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
NORMS = ["instance", "layer", "none"]
# B, N, D, Q: all one, one token, odd sizes, exact and broken tiles, wide rows, no mask.
SHAPES = [
    (1, 1, 1, 1),
    (2, 1, 5, 1),
    (2, 7, 33, 3),
    (1, 64, 64, 64),
    (2, 75, 70, 9),
    (1, 3, 2100, 0),
]


def random_layers(
    shape: tuple[int, ...], dtype: torch.dtype, device: str, layers: int = 3
) -> tuple[list[Tensor], Tensor]:
    batch, tokens, width, masked = shape
    hidden = [(2 * torch.randn(batch, tokens, width) + 1).to(device, dtype) for _ in range(layers)]
    order = torch.stack([torch.randperm(tokens)[:masked] for _ in range(batch)])
    return hidden, order.to(device)


def by_definition(hidden: list[Tensor], norm: str, final: bool, ids: Tensor | None) -> Tensor:
    """Method 4.3 step by step, in the dtype of its inputs, K layers alive."""
    width = hidden[0].shape[2]
    if norm == "instance":
        hidden = [
            (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
            for x in hidden
        ]
    elif norm == "layer":
        hidden = [layer_norm(x, (width,)) for x in hidden]
    target = torch.stack(hidden).mean(0)
    target = layer_norm(target, (width,)) if final else target
    return target if ids is None else target.gather(1, ids[:, :, None].expand(-1, -1, width))


def run(
    hidden: list[Tensor], ids: Tensor | None, impl: str, norm: str, final: bool = True
) -> Tensor:
    targets = ContextualizedTargets(len(hidden), norm, final_norm=final, impl=impl)
    for x in hidden:
        targets.add_(x)
    return targets.finish(ids)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(place: Place, norm: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    hidden, ids = random_layers(shape, dtype, place.device)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    # A LayerNorm of one channel, or of a mean that is zero, is all rounding.
    final = shape[2] > 1 and not (norm == "instance" and shape[1] == 1)
    for chosen in (ids, None):
        ours = run(hidden, chosen, place.impl, norm, final)
        eager = by_definition([x.to(wide) for x in hidden], norm, final, chosen)
        truth = by_definition([x.double() for x in hidden], norm, final, chosen)
        assert ours.dtype == wide
        assert_within_budget(ours, eager, truth, "targets")


def test_equals_torch_instance_norm(place: Place) -> None:
    hidden, _ = random_layers((2, 50, 12, 1), torch.float64, place.device, 1)
    ours = run(hidden, None, place.impl, "instance", final=False)
    torch.testing.assert_close(ours, instance_norm(hidden[0].mT).mT, rtol=1e-12, atol=1e-12)


def test_mean_far_above_the_spread(place: Place) -> None:
    x = (1e4 + torch.randn(1, 100, 40)).to(place.device)
    for norm in ("instance", "layer"):
        truth = by_definition([x.double()], norm, False, None)
        ours = run([x], None, place.impl, norm, final=False)
        # A naive E[x^2] - E[x]^2 in float32 would lose the variance here entirely.
        assert (ours - truth).norm() <= 1e-3 * truth.norm()


def test_constant_channels_become_zero(place: Place) -> None:
    x = torch.full((2, 70, 3), 3.0, device=place.device)
    assert torch.equal(run([x], None, place.impl, "instance", final=False), torch.zeros_like(x))


def test_the_object_starts_again_after_finish(place: Place) -> None:
    hidden, ids = random_layers((2, 9, 6, 4), torch.float32, place.device)
    targets = ContextualizedTargets(3, impl=place.impl)
    runs = []
    for _ in range(2):
        for x in hidden:
            targets.add_(x)
        runs.append(targets.finish(ids))
    assert torch.equal(*runs)
    assert torch.equal(runs[0], run(hidden, ids, place.impl, "instance"))


@pytest.mark.parametrize("norm", NORMS)
def test_strided_layers_and_int32_ids(place: Place, norm: str) -> None:
    hidden, ids = random_layers((3, 10, 6, 4), torch.float32, place.device)
    turned = [
        hidden[0].mT.contiguous().mT,
        torch.stack([hidden[1]] * 2, dim=-1)[..., 1],
        hidden[2][:1].expand(3, -1, -1),
    ]
    plain = [*hidden[:2], turned[2].contiguous()]
    assert not any(x.is_contiguous() for x in turned)
    ours = run(turned, ids.int().mT.contiguous().mT, place.impl, norm)
    # Not equal to the bit: the reference's reductions follow the memory layout.
    torch.testing.assert_close(ours, run(plain, ids, place.impl, norm), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 3, 4, 2), (2, 0, 4, 0), (2, 3, 4, 0)], ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_empty(place: Place, norm: str, shape: tuple[int, ...]) -> None:
    batch, tokens, width, masked = shape
    hidden = [torch.randn(batch, tokens, width, device=place.device)]
    ids = torch.zeros(batch, masked, dtype=torch.long, device=place.device)
    assert run(hidden, ids, place.impl, norm).shape == (batch, masked, width)
    total = torch.zeros_like(hidden[0])
    accumulate_normalized_(total, hidden[0], 1.0, norm=norm, impl=place.impl)
    assert torch.isfinite(total).all()


@pytest.mark.parametrize("norm", NORMS)
def test_adds_in_place_with_a_weight(place: Place, norm: str) -> None:
    (x,), _ = random_layers((2, 9, 6, 1), torch.float64, place.device, 1)
    start = torch.randn_like(x)
    expected = start - 0.25 * by_definition([x], norm, False, None)
    for weight in (-0.25, torch.tensor(-0.25, device=place.device)):
        total, before = start.clone(), x.clone()
        accumulate_normalized_(total, x, weight, norm=norm, impl=place.impl)
        torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(x, before)


def test_kernels_turn_a_bad_id_into_nan(place: Place) -> None:
    if place.impl != "triton":
        pytest.skip("the other implementations check the ids")
    total = torch.randn(2, 5, 6, device=place.device)
    ids = torch.tensor([[0, 5], [-1, 4]], device=place.device)
    for norm in (True, False):
        out = torch.ops.sjepa.finish_targets(total, ids, norm)
        bad = torch.tensor([[False, True], [True, False]], device=place.device)
        assert torch.equal(torch.isnan(out).all(-1), bad)
        assert torch.equal(torch.isnan(out).any(-1), bad)


def test_layers_are_counted(place: Place) -> None:
    x = torch.randn(2, 5, 6, device=place.device)
    targets = ContextualizedTargets(2, impl=place.impl)
    with pytest.raises(ValueError, match=r"layers: 0 of 2 added; add the others"):
        targets.finish()
    targets.add_(x)
    with pytest.raises(ValueError, match=r"layers: 1 of 2 added; add the others"):
        targets.finish()
    targets.add_(x)
    with pytest.raises(ValueError, match=r"hidden: layer 3 of 2; call finish"):
        targets.add_(x)
    assert torch.isfinite(targets.finish()).all()


def test_kernels_name_the_widest_row(place: Place) -> None:
    if place.impl != "triton":
        pytest.skip("the reference takes any width")
    x = torch.zeros(1, 1, 8193, device=place.device)
    with pytest.raises(ValueError, match=r'hidden: width 8193; up to 8192, or impl="torch"'):
        run([x], None, place.impl, "layer")
    assert run([x], None, place.impl, "instance", final=False).shape == x.shape
