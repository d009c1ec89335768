"""The data2vec step against its equations."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, smooth_l1_loss

from examples.data2vec_loop import Data2Vec, momentum_at
from tests.examples.compare import PRECISIONS, assert_model_as_exact


class ThreeBlocks(nn.Module):
    """Three layers of a linear map and tanh; masked tokens are replaced by a learned one."""

    def __init__(self) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.randn(8))
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor, masked_BN: Tensor | None) -> list[Tensor]:
        if masked_BN is not None:
            x = torch.where(masked_BN[:, :, None], self.mask_token, x)
        layers = []
        for block in self.blocks:
            x = torch.tanh(block(x))
            layers.append(x)
        return layers


def test_data2vec_loop_follows_the_equations() -> None:
    """The losses and the teacher of five steps, recomputed in float64 from the students."""
    student, head = ThreeBlocks(), nn.Linear(8, 8)
    model = Data2Vec(student, head, top=2, beta=0.5)
    optimizer = torch.optim.SGD([*student.parameters(), *head.parameters()], lr=0.1)
    followed, exact_head = ThreeBlocks().double(), nn.Linear(8, 8).double()
    averaged = [p.detach().double() for p in student.parameters()]
    for step in range(5):
        x, masked = torch.randn(3, 6, 8), torch.rand(3, 6) < 0.5
        for p, value in zip(followed.parameters(), averaged, strict=True):
            p.data = value
        top = torch.stack(followed(x.double(), None)[-2:])
        top = (top - top.mean(-1, keepdim=True)) / (
            top.var(-1, unbiased=False, keepdim=True) + 1e-5
        ).sqrt()
        for p, value in zip(followed.parameters(), student.parameters(), strict=True):
            p.data = value.detach().double()
        for p, value in zip(exact_head.parameters(), head.parameters(), strict=True):
            p.data = value.detach().double()
        gap = exact_head(followed(x.double(), masked)[-1])[masked] - top.mean(0)[masked]
        small = gap.abs() < 0.5
        truth = torch.where(small, gap.square() / (2 * 0.5), gap.abs() - 0.5 / 2).mean()
        momentum = momentum_at(step, 0.9, 0.99, 4)
        assert momentum == pytest.approx(min(0.99, 0.9 + 0.0225 * step))
        loss = model.step(x, masked, optimizer, momentum)
        torch.testing.assert_close(loss.double(), truth.detach(), rtol=1e-5, atol=0)
        averaged = [
            momentum * a + (1 - momentum) * p.detach().double()
            for a, p in zip(averaged, student.parameters(), strict=True)
        ]
        for p, value in zip(model.teacher.parameters(), averaged, strict=True):
            torch.testing.assert_close(p.double(), value, rtol=1e-5, atol=1e-6)
            assert not p.requires_grad


@pytest.mark.parametrize("precision", PRECISIONS)
def test_data2vec_is_as_exact_as_the_published_form(precision: str) -> None:
    """The teacher's layers are stacked, normalised and averaged where the example adds them up."""
    torch.manual_seed(0)
    student, head, x = ThreeBlocks(), nn.Linear(8, 8), torch.randn(3, 6, 8)
    teacher, masked = ThreeBlocks().requires_grad_(False), torch.rand(3, 6) < 0.5
    model = Data2Vec(student, head, top=2)
    model.teacher.load_state_dict(teacher.state_dict())

    def published(pair: nn.Module, inputs: list[Tensor]) -> Tensor:
        with torch.no_grad():
            layers = copy.deepcopy(teacher).to(inputs[0].dtype)(*inputs, None)[-2:]
            wide = [y if y.dtype == torch.float64 else y.float() for y in layers]
            target = torch.stack([layer_norm(y, (8,)) for y in wide]).mean(0)
        predicted = pair[1](pair[0](*inputs, masked)[-1])
        return smooth_l1_loss(predicted[masked], target[masked])

    assert_model_as_exact(
        "data2vec",
        precision,
        nn.ModuleList([student, head]),
        lambda _, inputs: model.loss(*inputs, masked),
        published,
        [x],
    )
