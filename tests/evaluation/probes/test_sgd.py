"""Linear probes: the logistic optimum, and the papers' SGD recipe."""

import math

import pytest
import torch
from torch import nn

from sjepa_fast.evaluation.probes.logistic import fit_logistic, penalised_loss
from sjepa_fast.evaluation.probes.sgd import linear_probe


def data(rows: int = 120, width: int = 8, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(classes, width, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    return means[labels] + 0.8 * torch.randn(rows, width, generator=generator), labels


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_logistic_is_at_the_optimum(c: float) -> None:
    x, labels = data()
    fitted = fit_logistic(x, labels, 3, c)
    weight = fitted.weight_DC.clone().requires_grad_()
    bias = fitted.bias_C.clone().requires_grad_()
    loss = penalised_loss(x.double(), labels, weight, bias, c)
    gradients = torch.autograd.grad(loss, (weight, bias))
    assert max(g.abs().max().item() for g in gradients) < 1e-4


def test_logistic_on_more_features_than_rows() -> None:
    x, labels = data(rows=30, width=200)
    fitted = fit_logistic(x, labels, 3, 0.1)
    weight = fitted.weight_DC.clone().requires_grad_()
    loss = penalised_loss(x.double(), labels, weight, fitted.bias_C, 0.1)
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient.abs().max().item() < 1e-4
    assert (fitted.predict(x) == labels).float().mean() > 0.95


def test_probe_equals_a_plain_torch_loop() -> None:
    x, labels = data()
    test, test_labels = data(60)
    ours = linear_probe(
        lambda _: x, labels, test, test_labels, 3, lrs=(0.5, 0.1), epochs=6, batch=40, seed=3
    )
    for result in ours:
        generator = torch.Generator().manual_seed(3)
        norm, layer = nn.BatchNorm1d(8, eps=1e-6, affine=False), nn.Linear(8, 3)
        weight = nn.init.trunc_normal_(torch.empty(8, 3), std=0.01, generator=generator)
        layer.weight.data.copy_(weight.T)
        nn.init.zeros_(layer.bias)
        optimizer = torch.optim.SGD(layer.parameters(), lr=result.lr, momentum=0.9)
        step, best = 0, 0.0
        for _ in range(6):
            norm.train()
            for chunk in torch.randperm(120, generator=generator).split(40):
                optimizer.param_groups[0]["lr"] = (
                    result.lr * 0.5 * (1 + math.cos(math.pi * step / 18))
                )
                optimizer.zero_grad()
                nn.functional.cross_entropy(layer(norm(x[chunk])), labels[chunk]).backward()
                optimizer.step()
                step += 1
            guess = layer(norm.eval()(test)).argmax(dim=1)
            best = max(best, 100 * (guess == test_labels).double().mean().item())
        assert torch.equal(guess, result.predicted_Q)
        assert result.best == pytest.approx(best)
        assert result.last == pytest.approx(100 * (guess == test_labels).double().mean().item())


def test_probe_learns_separable_features_and_asks_for_them_every_epoch() -> None:
    x, labels = data()
    epochs: list[int] = []

    def features(epoch: int) -> torch.Tensor:
        epochs.append(epoch)
        return x

    (result,) = linear_probe(features, labels, x, labels, 3, epochs=20)
    assert result.last > 85 and epochs == list(range(20))
