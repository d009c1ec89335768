"""DINOv2's losses with Sinkhorn-Knopp against the published ones."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from examples.dinov2_loss import dino_loss, ibot_loss, main
from tests.examples.compare import PRECISIONS, assert_loss_as_exact
from tests.kernels.ops.sinkhorn_center import published


def entropy(targets: Tensor, student: Tensor) -> Tensor:
    return -(targets.to(student.dtype) * (student / 0.1).log_softmax(dim=-1)).sum(dim=-1)


@pytest.mark.parametrize("local", [0, 3])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_dinos_loss(precision: str, local: int) -> None:
    """Both global crops are balanced together; pairs of the same crop are left out."""
    torch.manual_seed(0)
    dtype = PRECISIONS[precision][0]
    student = [torch.randn(6, 40).to(dtype).requires_grad_() for _ in range(2 + local)]
    teacher = [(0.3 * torch.randn(6, 40)).to(dtype) for _ in range(2)]

    def plain(leaves: list[Tensor]) -> Tensor:
        targets = published(torch.cat(teacher).to(leaves[0].dtype), 0.05, 3).view(2, 6, 40)
        pairs = [
            entropy(target, x).mean()
            for t, target in enumerate(targets)
            for s, x in enumerate(leaves)
            if s != t
        ]
        return torch.stack(pairs).mean()

    def ours(leaves: list[Tensor]) -> Tensor:
        return dino_loss(leaves, teacher, torch.tensor(0.05))

    assert_loss_as_exact(f"DINOv2, {local} local crops", precision, ours, plain, student)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_ibots_loss(precision: str) -> None:
    """Of images with any number of masked patches, one of them without."""
    torch.manual_seed(0)
    dtype = PRECISIONS[precision][0]
    masks = torch.rand(5, 9) < 0.4
    masks[2] = False
    image = masks.nonzero()[:, 0]
    student = torch.randn(len(image), 30).to(dtype).requires_grad_()
    teacher = (0.3 * torch.randn(len(image), 30)).to(dtype)

    def plain(leaves: list[Tensor]) -> Tensor:
        loss = entropy(published(teacher.to(leaves[0].dtype), 0.07, 3), leaves[0])
        of_images = [loss[image == b] for b in range(5)]
        return torch.stack([x.mean() for x in of_images if len(x)]).sum() / 5

    def ours(leaves: list[Tensor]) -> Tensor:
        return ibot_loss(leaves[0], teacher, masks, 0.07)

    assert_loss_as_exact("iBOT of DINOv2", precision, ours, plain, [student])


def test_ibots_loss_without_a_masked_patch_is_zero() -> None:
    student = torch.randn(4, 7, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    loss = ibot_loss(student[none], student.detach()[none], torch.zeros(3, 9).bool(), 0.07)
    loss.backward()
    assert float(loss.detach()) == 0
    assert student.grad is not None and torch.equal(student.grad, torch.zeros(4, 7))


def test_the_script_shows_that_prototypes_are_used_evenly(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main()
    shares = [float(x) for x in re.findall(r"([\d.]+)%", capsys.readouterr().out)]
    assert len(shares) == 2
    assert shares[0] > 5 and 100 / 64 < shares[1] < 3
