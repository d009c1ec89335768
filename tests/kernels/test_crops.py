"""DINO's loss over crops, and iBOT's masked one, against the published equations in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sjepa_kernels import centered_crop_cross_entropy, centered_softmax_cross_entropy
from tests.kernels.cases import Place, assert_within_budget, compiles, gradients

HAS_CPP = True


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


def random_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, device: str, spread: float = 0.3
) -> list[Tensor]:
    students, teachers, batch, width = shape
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return [
        (spread * torch.randn(students, batch, width)).to(device, dtype).requires_grad_(),
        (spread * torch.randn(teachers, batch, width)).to(device, dtype),
        torch.randn(width).mul(spread).to(device, wide),
    ]


def run(inputs: list[Tensor], impl: str, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    loss, center_sum = centered_crop_cross_entropy(*inputs, impl=impl, **options)
    (grad,) = gradients(loss, [inputs[0]], torch.ones_like(loss))
    return loss, center_sum, grad


def assert_right(inputs: list[Tensor], impl: str, skip_same: bool = True) -> None:
    exact = [x.detach().double() for x in inputs]
    exact[0].requires_grad_()
    loss = dino_loss(*exact, skip_same)
    (grad,) = gradients(loss, exact[:1], torch.ones_like(loss))
    truths = loss, exact[1].sum((0, 1)), grad
    ours, eager = (run(inputs, name, skip_same=skip_same) for name in (impl, "torch"))
    for what, *values in zip(("loss", "center sum", "gradient"), ours, eager, truths, strict=True):
        assert_within_budget(*values, what)


@pytest.mark.parametrize("skip_same", [True, False])
@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (2, 3, 1, 7), (3, 3, 2, 300), (3, 2, 2, 2500)])
def test_odd_shapes_and_several_tiles(
    place: Place, shape: tuple[int, ...], skip_same: bool
) -> None:
    assert_right(random_inputs(shape, torch.float32, place.device), place.impl, skip_same)


@pytest.mark.parametrize("spread", [1e-4, 1e3])
def test_extreme_features(place: Place, spread: float) -> None:
    assert_right(random_inputs((3, 2, 2, 40), torch.float32, place.device, spread), place.impl)


def test_temperatures_as_device_tensors(place: Place) -> None:
    inputs = random_inputs((3, 2, 2, 9), torch.float32, place.device)
    temps = [torch.tensor(t, device=place.device) for t in (0.2, 0.07)]
    as_tensors = run(inputs, place.impl, temp_student=temps[0], temp_target=temps[1])
    as_floats = run(inputs, place.impl, temp_student=0.2, temp_target=0.07)
    for a, b in zip(as_tensors, as_floats, strict=True):
        torch.testing.assert_close(a, b)


def test_strided_inputs_and_expanded_gradient(place: Place) -> None:
    inputs = random_inputs((3, 2, 4, 10), torch.float32, place.device)
    strided = [
        inputs[0].detach().permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_(),
        torch.stack([inputs[1]] * 2, dim=-1)[..., 1],
        inputs[2],
    ]
    one = run(inputs, place.impl)
    for a, b in zip(run(strided, place.impl), one, strict=True):
        torch.testing.assert_close(a, b)
    loss, _ = centered_crop_cross_entropy(*strided, impl=place.impl)
    (three,) = gradients(loss.expand(3), strided[:1], torch.ones(()).to(loss).expand(3))
    torch.testing.assert_close(three, 3 * one[2])


def test_backward_twice_through_a_kept_graph(place: Place) -> None:
    inputs = random_inputs((3, 2, 2, 6), torch.float32, place.device)
    student = inputs[0]
    loss, _ = centered_crop_cross_entropy(*inputs, impl=place.impl)
    loss.backward(torch.full_like(loss, 3.0), retain_graph=True)
    assert student.grad is not None
    three = student.grad.clone()
    student.grad.mul_(7)
    loss.backward(torch.full_like(loss, 2.0))
    torch.testing.assert_close(student.grad, 7 * three + 2 * three / 3)


def test_only_the_student_learns(place: Place) -> None:
    inputs = random_inputs((3, 2, 2, 6), torch.float32, place.device)
    for leaf in inputs[1:]:
        leaf.requires_grad_()
    for output in centered_crop_cross_entropy(inputs[0].detach(), *inputs[1:], impl=place.impl):
        assert not output.requires_grad


def test_repeats_bitwise(place: Place) -> None:
    inputs = random_inputs((3, 2, 9, 130), torch.float32, place.device)
    for a, b in zip(run(inputs, place.impl), run(inputs, place.impl), strict=True):
        assert torch.equal(a, b)


def test_opcheck(place: Place) -> None:
    if place.impl != "triton":
        pytest.skip("only the kernels are registered")
    inputs = random_inputs((3, 2, 2, 6), torch.float32, place.device)
    temps = [torch.tensor(t, device=place.device) for t in (0.1, 0.04)]
    op = torch.ops.sjepa.centered_crop_cross_entropy.default
    torch.library.opcheck(op, (*inputs, *temps, True, True))
    torch.library.opcheck(op, (inputs[0].detach(), *inputs[1:], *temps, False, False))


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
