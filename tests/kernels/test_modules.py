"""The loss module: its centre moves after use, in training, by the mean over all processes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from sjepa_kernels import CenteredCrossEntropy, centered_softmax_cross_entropy
from tests.kernels.cases import Place


def test_two_steps_and_evaluation(place: Place) -> None:
    module = CenteredCrossEntropy(3, center_momentum=0.75, impl=place.impl).to(place.device)
    center = torch.zeros(3, device=place.device)
    for _ in range(2):
        student, teacher = torch.randn(2, 5, 3).to(place.device)
        student.requires_grad_()
        expected, _ = centered_softmax_cross_entropy(student, teacher, center, impl="torch")
        loss = module(student, teacher)
        torch.testing.assert_close(loss, expected)
        loss.backward()
        grad = torch.autograd.grad(expected, student)[0]
        torch.testing.assert_close(student.grad, grad)
        center = 0.75 * center + 0.25 * teacher.mean(0)
        torch.testing.assert_close(module.center, center)
    module.eval()(student, teacher)
    torch.testing.assert_close(module.center, center)
    assert torch.equal(module.state_dict()["center"], module.center)


def test_center_is_the_mean_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    module = CenteredCrossEntropy(2, center_momentum=0.0)
    teacher = torch.tensor([[1.0, 2.0], [3.0, 4.0]])

    def add_another_process(total: Tensor) -> None:
        total += torch.tensor([30.0, 60.0, 8.0])  # its sums and its number of rows

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", add_another_process)
    module(torch.zeros(2, 2), teacher)
    torch.testing.assert_close(module.center, torch.tensor([3.4, 6.6]))
