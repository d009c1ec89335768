"""DINO's loss over crops, and iBOT's masked one, against the published equations in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sjepa_kernels import centered_crop_cross_entropy, centered_softmax_cross_entropy
from tests.kernels.cases import Place, assert_within_budget, compiles, gradients


def dino_loss(student: Tensor, teacher: Tensor, center: Tensor, skip_same: bool = True) -> Tensor:
    """The published loop: all pairs of crops that are not the same, each a batch mean."""
    terms = []
    for t, target in enumerate(teacher):
        probability = torch.softmax((target - center) / 0.04, dim=-1)
        for s, crop in enumerate(student):
            if s != t or not skip_same:
                terms.append(-(probability * torch.log_softmax(crop / 0.1, -1)).sum(-1).mean())
    return torch.stack(terms).mean()


def random_crops(
    seen: int, targets: int, batch: int, width: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    student = torch.randn(seen, batch, width).to(device, dtype).requires_grad_()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return (
        student,
        torch.randn(targets, batch, width).to(device, dtype),
        torch.randn(width).to(device, wide),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("seen", "targets", "batch", "width", "skip_same"),
    [(5, 2, 3, 33, True), (5, 2, 3, 33, False), (2, 2, 1, 7, True), (1, 2, 2, 5, True)],
)
def test_equals_the_published_equations(
    place: Place,
    seen: int,
    targets: int,
    batch: int,
    width: int,
    skip_same: bool,
    dtype: torch.dtype,
) -> None:
    student, teacher, center = random_crops(seen, targets, batch, width, dtype, place.device)
    exact = [x.detach().double() for x in (student, teacher, center)]
    exact[0].requires_grad_()
    truth = dino_loss(*exact, skip_same)
    true = [truth, *gradients(truth, [exact[0]], torch.ones_like(truth)), exact[1].sum((0, 1))]

    def outcome(impl: str) -> list[Tensor]:
        loss, total = centered_crop_cross_entropy(
            student, teacher, center, skip_same=skip_same, impl=impl
        )
        return [loss, *gradients(loss, [student], torch.ones_like(loss)), total]

    found = zip(
        ("loss", "gradient", "sum"), outcome(place.impl), outcome("torch"), true, strict=True
    )
    for name, ours, eager, expected in found:
        assert_within_budget(ours, eager, expected, name)


def test_gradcheck(place: Place) -> None:
    student, teacher, center = random_crops(3, 2, 2, 5, torch.float64, place.device)

    def loss_of(x: Tensor) -> Tensor:
        return centered_crop_cross_entropy(x, teacher, center, impl=place.impl)[0]

    assert torch.autograd.gradcheck(loss_of, [student])


def test_many_prototypes() -> None:
    student, teacher, center = random_crops(4, 2, 2, 65_536, torch.float32, "cpu")
    loss, total = centered_crop_cross_entropy(student, teacher, center)
    exact = [x.detach().double() for x in (student, teacher, center)]
    exact[0].requires_grad_()
    truth = dino_loss(*exact)
    assert (loss.double() - truth).abs() <= 1e-6 * truth
    (grad,), (true_grad,) = (
        gradients(x, [y], torch.ones_like(x)) for x, y in ((loss, student), (truth, exact[0]))
    )
    assert (grad.double() - true_grad).norm() <= 1e-5 * true_grad.norm()
    torch.testing.assert_close(total.double(), exact[1].sum((0, 1)), rtol=1e-5, atol=1e-5)


@compiles
def test_compiled_values_equal_eager(place: Place) -> None:
    student, teacher, center = random_crops(3, 2, 2, 6, torch.float32, place.device)

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        return centered_crop_cross_entropy(2 * x, teacher, center, impl=place.impl)

    torch.testing.assert_close(torch.compile(step, fullgraph=True)(student), step(student))


def test_mask_weights_give_the_masked_patch_loss_of_ibot(place: Place) -> None:
    """Mean over images of the mean over an image's masked patches: weight 1 / (masked in it)."""
    masked = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0]], device=place.device).bool()
    student = torch.randn(2, 4, 9, dtype=torch.float64, device=place.device, requires_grad=True)
    teacher, center = torch.randn_like(student), torch.zeros(9, dtype=torch.float64)
    center = center.to(place.device)
    per_patch = -(torch.softmax(teacher / 0.06, -1) * torch.log_softmax(student / 0.1, -1)).sum(-1)
    published = ((per_patch * masked).sum(1) / masked.sum(1)).mean()
    patches = masked.flatten().nonzero().flatten()
    weights = (1 / masked.sum(1, keepdim=True)).expand(2, 4)[masked].double()
    loss, _ = centered_softmax_cross_entropy(
        student.flatten(0, 1)[patches],
        teacher.flatten(0, 1),
        center,
        teacher_index_R=patches,
        row_weights_R=weights,
        impl=place.impl,
    )
    torch.testing.assert_close(loss, published)
    one = torch.ones_like(loss)
    torch.testing.assert_close(
        gradients(loss, [student], one), gradients(published, [student], one)
    )


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        ((2, 3), (2, 2, 3), r"student: \(2, 3\); expected \(crops, batch, K\)"),
        ((2, 2, 3), (0, 2, 3), r"teacher: \(0, 2, 3\)"),
        ((2, 2, 3), (2, 1, 3), r"teacher: \(2, 1, 3\); expected \(T, B, K\) = \(T, 2, 3\)"),
        ((1, 2, 3), (1, 2, 3), "student: one crop, the teacher's own"),
    ],
)
def test_bad_input_is_named(student: tuple[int, ...], teacher: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        centered_crop_cross_entropy(torch.zeros(student), torch.zeros(teacher), torch.zeros(3))
