"""DINO's and iBOT's losses against the published ones."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from examples.ibot_loss import IbotLoss
from sjepa_kernels import CenteredCropCrossEntropy
from tests.examples.compare import PRECISIONS, assert_loss_as_exact


def dino_by_definition(
    student: list[Tensor], teacher: list[Tensor], center: Tensor, temps: tuple[float, float]
) -> Tensor:
    """The mean over pairs of different crops of H(P_t, P_s), in the dtype of the crops."""
    terms = []
    for t, teacher_BD in enumerate(teacher):
        p_t = ((teacher_BD - center) / temps[1]).softmax(dim=1)
        for s, student_BD in enumerate(student):
            if s != t:
                terms.append(-(p_t * (student_BD / temps[0]).log_softmax(dim=1)).sum(1).mean())
    return torch.stack(terms).mean()


def crops(count: int, dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(6, 40, dtype=dtype) for _ in range(count)]


@pytest.mark.parametrize("local", [0, 1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_dino_loss_is_the_published_one_over_a_warmup(dtype: torch.dtype, local: int) -> None:
    loss_of = CenteredCropCrossEntropy(40).to(dtype)
    center = torch.zeros(40, dtype=torch.float64)
    for temp in (0.04, 0.055, 0.07):
        student, teacher = crops(2 + local, dtype), crops(2, dtype)
        leaves = [x.requires_grad_() for x in student]
        wide = [[x.double() for x in crops] for crops in (leaves, teacher)]
        truth = dino_by_definition(*wide, center, (0.1, temp))
        ours = loss_of(leaves, teacher, temp)
        torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=0)
        pairs = zip(
            torch.autograd.grad(ours, leaves), torch.autograd.grad(truth, leaves), strict=True
        )
        for mine, true in pairs:
            assert (mine.double() - true).norm() <= 1e-5 * true.norm()
        center = 0.9 * center + 0.1 * torch.cat(teacher).double().mean(0)
        torch.testing.assert_close(loss_of.center.double(), center, rtol=1e-5, atol=1e-7)


def test_dino_loss_equals_lightlys() -> None:
    pytest.importorskip("lightly", reason="lightly is not installed")
    module = pytest.importorskip("lightly.loss.dino_loss", reason="lightly cannot be imported")
    theirs, ours = module.DINOLoss(output_dim=40, teacher_temp=0.05), CenteredCropCrossEntropy(40)
    for _ in range(3):
        student, teacher = crops(5, torch.float32), crops(2, torch.float32)
        expected = theirs(teacher, student, teacher_temp=0.05)
        torch.testing.assert_close(ours(student, teacher, 0.05), expected, rtol=1e-5, atol=0)
        torch.testing.assert_close(ours.center, theirs.center.flatten(), rtol=1e-5, atol=1e-7)


@dataclass
class Ibot:
    """The published loss of crops and masked patches, with both centers as they were before."""

    teacher: list[Tensor]
    of_patches: Tensor
    masked: Tensor
    centers: tuple[Tensor, Tensor]
    temps: tuple[float, float]

    def loss(self, student: list[Tensor], patches: Tensor) -> tuple[Tensor, Tensor]:
        dtype = patches.dtype
        teacher = [x.to(dtype) for x in self.teacher]
        centers = [c.to(dtype) for c in self.centers]
        of_cls = dino_by_definition(student, teacher, centers[0], (0.1, self.temps[0]))
        p = ((self.of_patches.to(dtype) - centers[1]) / self.temps[1]).softmax(dim=-1)
        rows = -(p * (patches / 0.1).log_softmax(dim=-1)).sum(dim=-1)
        hidden = self.masked.to(dtype)
        of_images = (rows * hidden).sum(dim=1) / hidden.sum(dim=1).clamp(min=1)
        return of_cls, of_images.mean()


def ibot_case(dtype: torch.dtype) -> tuple[Ibot, list[Tensor], Tensor]:
    """Two global and two local crops of 6 images, 5 patches each; one image hides none."""
    masked = torch.rand(12, 5) < 0.4
    masked[0] = False
    centers = torch.randn(40) / 4, torch.randn(24) / 4
    patches = torch.randn(2, 12, 5, 24).to(dtype)
    published = Ibot(crops(2, dtype), patches[1], masked, centers, (0.04, 0.07))
    return published, crops(4, dtype), patches[0]


def loaded(published: Ibot) -> IbotLoss:
    """The example with centers from a checkpoint of iBOT's."""
    loss = IbotLoss(40, 24)
    cls, patch = published.centers
    loss.load_state_dict({"cls.center": cls.view(1, -1), "patch.center": patch.view(1, 1, -1)})
    return loss


def test_ibot_is_the_published_one_and_moves_both_centers() -> None:
    torch.manual_seed(0)
    published, student, patches = ibot_case(torch.float64)
    loss_of = loaded(published).double()
    of_patches = published.of_patches
    ours = loss_of(
        (student, published.teacher), (patches, of_patches), published.masked, published.temps
    )
    # The weights of patches are float32.
    torch.testing.assert_close(ours, published.loss(student, patches), rtol=1e-7, atol=0)
    cls, patch = (c.double() for c in published.centers)
    expected = 0.9 * cls + 0.1 * torch.cat(published.teacher).mean(0)
    torch.testing.assert_close(loss_of.cls.center, expected)
    # Of all patches, not of the masked ones.
    torch.testing.assert_close(loss_of.patch.center, 0.9 * patch + 0.1 * of_patches.mean((0, 1)))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_losses_are_as_exact_as_the_published_ones(precision: str) -> None:
    """Of heads that put out the dtype of the precision."""
    torch.manual_seed(0)
    published, student, patches = ibot_case(PRECISIONS[precision][0])
    leaves = [x.requires_grad_() for x in (*student, patches)]
    hidden = published.of_patches, published.masked, published.temps

    def ours(leaves: list[Tensor]) -> Tensor:
        crops_of = leaves[:-1], published.teacher
        return sum(loaded(published)(crops_of, (leaves[-1], hidden[0]), *hidden[1:]))

    def plain(leaves: list[Tensor]) -> Tensor:
        return sum(published.loss(leaves[:-1], leaves[-1]))

    assert_loss_as_exact("DINO and iBOT", precision, ours, plain, leaves)
