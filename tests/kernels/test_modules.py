"""The loss module: its center moves after use, in training, by the mean over all processes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

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


@pytest.mark.parametrize("kind", [CenteredCrossEntropy, CenteredCropCrossEntropy])
@pytest.mark.parametrize("key", ["loss.center", "loss.center.center"])
@pytest.mark.parametrize("shape", [(3,), (1, 3), (1, 1, 3)], ids=str)
def test_other_projects_checkpoints_are_read(kind: type[nn.Module], key: str, shape: tuple) -> None:
    """(1, K): DINO and iBOT; (1, 1, K): iBOT's patches and lightly, also in a module."""
    values = torch.tensor([1.0, -2.0, 0.5])
    model = nn.ModuleDict({"loss": kind(3)})
    model.load_state_dict({key: values.view(shape)})
    assert torch.equal(model["loss"].center, values)
    assert list(model.state_dict()) == ["loss.center"]


def test_a_center_of_another_width_is_refused() -> None:
    for shape in ((1, 4), (3, 1), (2, 3), ()):
        with pytest.raises(RuntimeError, match=r"size mismatch for center"):
            CenteredCrossEntropy(3).load_state_dict({"center": torch.zeros(shape)})


class Later:
    """A sum over two equal processes that is done when it is waited for."""

    def __init__(self, total: Tensor) -> None:
        self.total = total
        self.waited = 0

    def wait(self) -> None:
        self.waited += 1
        self.total *= 2


@pytest.mark.parametrize("update", ["after", "before"])
def test_a_sum_under_way_moves_the_center_before_its_next_use(place: Place, update: str) -> None:
    works: list[Later] = []

    def begin(total: Tensor) -> Later:
        works.append(Later(total))
        return works[-1]

    kinds = {"update": update, "impl": place.impl}
    late = CenteredCrossEntropy(3, all_reduce=begin, **kinds).to(place.device)
    at_once = CenteredCrossEntropy(3, all_reduce=lambda total: 2 * total, **kinds).to(place.device)
    for step in range(3):
        student, teacher = torch.randn(2, 5, 3).to(place.device)
        assert torch.equal(late(student, teacher), at_once(student, teacher))
        # DINO's order leaves the sum to the backward pass and to the step.
        assert [work.waited for work in works] == [1] * (step + (update == "before")) + [0] * (
            update == "after"
        )
    assert torch.equal(late.state_dict()["center"], at_once.center)
    assert [work.waited for work in works] == [1, 1, 1]
    late.settle()
    assert torch.equal(late.center, at_once.center)


def test_a_loaded_center_is_not_moved_by_an_older_sum() -> None:
    module = CenteredCrossEntropy(2, all_reduce=Later)
    module(torch.zeros(2, 2), torch.ones(2, 2))
    module.load_state_dict({"center": torch.tensor([5.0, 6.0])})
    module.settle()
    assert module.center.tolist() == [5.0, 6.0]


def test_crops_in_a_list_are_the_stacked_ones(place: Place) -> None:
    student, teacher = torch.randn(4, 5, 3), torch.randn(2, 5, 3)
    stacked, listed = (student.clone().to(place.device).requires_grad_() for _ in range(2))
    teacher = teacher.to(place.device)
    modules = [CenteredCropCrossEntropy(3, impl=place.impl).to(place.device) for _ in range(2)]
    one = modules[0](stacked, teacher)
    other = modules[1](listed.unbind(), list(teacher))
    assert torch.equal(one, other)
    assert torch.equal(modules[0].center, modules[1].center)
    one.backward()
    other.backward()
    assert torch.equal(stacked.grad, listed.grad)


def test_crops_of_different_sizes_are_named() -> None:
    crops, center = [torch.zeros(2, 3), torch.zeros(1, 3)], torch.zeros(3)
    with pytest.raises(ValueError, match=r"student\[1\]: \(1, 3\); expected student\[0\].shape"):
        centered_crop_cross_entropy(crops, crops[:1], center)
    with pytest.raises(ValueError, match="teacher: no crops; pass at least one"):
        centered_crop_cross_entropy(torch.zeros(2, 2, 3), [], center)


def _one_of_two(rank: int, folder: str, late: bool) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    options = {"all_reduce": partial(dist.all_reduce, async_op=True)} if late else {}
    module = CenteredCrossEntropy(2, center_momentum=0.0, **options)
    module(torch.zeros(rank + 1, 2), torch.full((rank + 1, 2), 3.0 * rank))
    torch.save(module.state_dict()["center"], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("late", [False, True], ids=["waiting", "asynchronous"])
def test_two_processes_share_one_center(tmp_path: Path, late: bool) -> None:
    torch.multiprocessing.spawn(_one_of_two, (str(tmp_path), late), nprocs=2)
    # One row of 0 in the first process, two rows of 3 in the second.
    for rank in (0, 1):
        center = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(center, torch.tensor([2.0, 2.0]))
