"""The loss module: its center moves after use, in training, by the mean over all processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from sjepa_kernels import (
    CenteredCropCrossEntropy,
    CenteredCrossEntropy,
    centered_crop_cross_entropy,
    centered_softmax_cross_entropy,
    update_center_,
)
from tests.kernels.cases import Place

HAS_CPP = True


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


@pytest.mark.parametrize("indexed", [False, True], ids=["all rows", "index"])
def test_center_moves_before_use_where_asked(place: Place, indexed: bool) -> None:
    module = CenteredCrossEntropy(3, update="before", impl=place.impl).to(place.device)
    student, teacher = torch.randn(2, 4, 3).to(place.device)
    index = torch.tensor([1, 1, 3, 0], device=place.device) if indexed else None
    used = teacher if index is None else teacher[index]
    center = 0.1 * used.mean(0)
    expected, _ = centered_softmax_cross_entropy(student, used, center, impl="torch")
    torch.testing.assert_close(module(student, teacher, index), expected)
    torch.testing.assert_close(module.center, center)
    before = module.center.clone()
    module.eval()(student, teacher, index)
    assert torch.equal(module.center, before)


def test_crops_loss_moves_its_center_by_the_mean_of_all_teacher_rows(place: Place) -> None:
    module = CenteredCropCrossEntropy(3, 0.2, 0.75, impl=place.impl).to(place.device)
    center = torch.zeros(3, device=place.device)
    for temp in (0.04, 0.07):
        student, teacher = torch.randn(4, 5, 3), torch.randn(2, 5, 3)
        student, teacher = student.to(place.device).requires_grad_(), teacher.to(place.device)
        expected, _ = centered_crop_cross_entropy(
            student, teacher, center, temp_student=0.2, temp_target=temp, impl="torch"
        )
        loss = module(student, teacher, temp)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(value, student)[0] for value in (loss, expected))
        )
        center = 0.75 * center + 0.25 * teacher.mean((0, 1))
        torch.testing.assert_close(module.center, center)
    module.eval()(student, teacher)
    torch.testing.assert_close(module.center, center)
    pairs = CenteredCropCrossEntropy(3, skip_same=False, all_reduce=lambda total: total * 0 + 1)
    pairs(student.cpu(), teacher.cpu())
    torch.testing.assert_close(pairs.center, torch.full((3,), 0.1))


@pytest.mark.parametrize("update", ["after", "before"])
def test_a_batch_without_rows_moves_the_center_by_the_others_alone(
    place: Place, update: str
) -> None:
    center = torch.tensor([1.0, -2.0], device=place.device)
    # Sums and number of rows of another process.
    for others, expected in (([0.0, 0.0, 0.0], [1.0, -2.0]), ([8.0, 4.0, 4.0], [1.5, -0.5])):
        added = torch.tensor(others, device=place.device)
        module = CenteredCrossEntropy(
            2, center_momentum=0.5, update=update, all_reduce=added.add, impl=place.impl
        ).to(place.device)
        module.center.copy_(center)
        loss = module(torch.zeros(0, 2, device=place.device), torch.zeros(0, 2).to(center))
        assert float(loss.detach()) == 0
        torch.testing.assert_close(module.center, torch.tensor(expected, device=place.device))


def test_own_all_reduce_is_called_with_sum_and_rows() -> None:
    seen: list[Tensor] = []

    def twice(total: Tensor) -> None:
        seen.append(total.clone())
        total *= 2

    module = CenteredCrossEntropy(2, center_momentum=0.0, all_reduce=twice)
    teacher = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    module(torch.zeros(2, 2), teacher)
    torch.testing.assert_close(seen, [torch.tensor([4.0, 6.0, 2.0])])
    torch.testing.assert_close(module.center, torch.tensor([2.0, 3.0]))


@pytest.mark.parametrize("count", [2, torch.tensor(2)], ids=["number", "tensor"])
def test_the_function_takes_a_reduction_that_returns_its_sum(count: int | Tensor) -> None:
    center = torch.zeros(2)
    other = torch.tensor([30.0, 60.0, 8.0])  # another process: its sums and its number of rows
    update_center_(center, torch.tensor([4.0, 6.0]), count, 0.5, all_reduce=other.add)
    torch.testing.assert_close(center, torch.tensor([1.7, 3.3]))


def test_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="update: 'during'; choose after or before"):
        CenteredCrossEntropy(2, update="during")


def _one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    module = CenteredCrossEntropy(2, center_momentum=0.0)
    module(torch.zeros(rank + 1, 2), torch.full((rank + 1, 2), 3.0 * rank))
    torch.save(module.center, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_share_one_center(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_one_of_two, (str(tmp_path),), nprocs=2)
    # One row of 0 in the first process, two rows of 3 in the second.
    for rank in (0, 1):
        center = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(center, torch.tensor([2.0, 2.0]))
