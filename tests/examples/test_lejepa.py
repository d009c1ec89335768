"""LeJEPA's minimal loop against its equations."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from examples.lejepa_loop import LeJepa
from sjepa_kernels import VicReg, VisReg
from sjepa_kernels.losses.directions import unit_directions
from tests.examples.compare import PRECISIONS, assert_model_as_exact


def lejepa_by_definition(z_VND: Tensor, step: int, weight: float) -> Tensor:
    """The loss of MINIMAL.md's formula, in the features' dtype, along the directions of a step."""
    numbers = torch.tensor(0), torch.tensor(step)
    axes_KD = unit_directions(*numbers, 256, z_VND.shape[-1], z_VND.dtype, "torch")
    t = torch.linspace(0, 3, 17, dtype=z_VND.dtype)
    phi = (-t * t / 2).exp()
    angles = (z_VND @ axes_KD.mT)[..., None] * t
    gaps = (angles.cos().mean(1) - phi).square() + angles.sin().mean(1).square()
    statistic = torch.trapezoid(2 * gaps * phi, t).mean() * z_VND.shape[1]
    return (1 - weight) * (z_VND.mean(0) - z_VND).square().mean() + weight * statistic


def test_lejepa_loop_follows_the_equations_and_spreads_its_features() -> None:
    """Losses and gradients of steps in float64; a collapsed start becomes a normal."""
    encoder = nn.Sequential(nn.Linear(12, 32), nn.GELU(), nn.Linear(32, 8))
    with torch.no_grad():
        encoder[-1].weight.mul_(0.01)
    model = LeJepa(encoder, nn.Linear(8, 4), weight=0.1)
    optimizer = torch.optim.AdamW(model.model.parameters(), lr=1e-2)
    exact = copy.deepcopy(model.model).double()
    samples = torch.randn(128, 12)
    statistics = []
    for step in range(80):
        views = [samples + 0.1 * torch.randn_like(samples) for _ in range(2)]
        exact.load_state_dict(model.model.state_dict())
        exact.zero_grad()
        z_VND = torch.stack([exact(view.double()) for view in views])
        truth = lejepa_by_definition(z_VND, step, 0.1)
        statistics.append(float(lejepa_by_definition(z_VND.detach(), 0, 1.0)))
        truth.backward()
        loss = model.step(views, optimizer)
        torch.testing.assert_close(loss.double(), truth.detach(), rtol=1e-5, atol=0)
        for ours, true in zip(model.model.parameters(), exact.parameters(), strict=True):
            assert ours.grad is not None and true.grad is not None
            assert (ours.grad.double() - true.grad).norm() <= 1e-4 * true.grad.norm() + 1e-9
    assert statistics[-1] < 0.25 * statistics[0]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_lejepa_is_as_exact_as_its_formula(precision: str) -> None:
    torch.manual_seed(0)
    encoder, projector = nn.Sequential(nn.Linear(12, 16), nn.GELU()), nn.Linear(16, 4)
    model = LeJepa(encoder, projector, weight=0.1)
    views = [torch.randn(64, 12) for _ in range(2)]

    def published(of: nn.Module, inputs: list[Tensor]) -> Tensor:
        z = torch.stack([of(view) for view in inputs])
        # The formula is written for float32 features, which autocast narrows.
        return lejepa_by_definition(z if z.dtype == torch.float64 else z.float(), 0, 0.1)

    def ours(_: nn.Module, inputs: list[Tensor]) -> Tensor:
        model.regularizer.get_buffer("step").zero_()
        return model.loss(inputs)

    assert_model_as_exact("LeJEPA", precision, model.model, ours, published, views)


@pytest.mark.parametrize("regularizer", [VisReg(64), VicReg()], ids=["VisReg", "VicReg"])
def test_other_regularizers_spread_the_features_too(regularizer: nn.Module) -> None:
    model = LeJepa(nn.Linear(12, 8), nn.Linear(8, 4), 0.1, regularizer)
    with torch.no_grad():
        model.model[1].weight.mul_(0.01)
    optimizer = torch.optim.AdamW(model.model.parameters(), lr=1e-2)
    samples = torch.randn(128, 12)
    for _ in range(100):
        model.step([samples + 0.1 * torch.randn_like(samples) for _ in range(2)], optimizer)
    assert float(model.model(samples).std(dim=0).min().detach()) > 0.5
