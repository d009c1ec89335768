"""DINO's loss over crops, and iBOT's masked one, against the published equations in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sjepa_kernels import centered_crop_cross_entropy, centered_softmax_cross_entropy
from tests.kernels.cases import Place, assert_learns_within_budget, in_float64, with_gradients

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


def assert_right(inputs: list[Tensor], impl: str, skip_same: bool = True) -> None:
    exact = in_float64(inputs)
    ours, eager = (
        centered_crop_cross_entropy(*inputs, skip_same=skip_same, impl=name)
        for name in (impl, "torch")
    )
    student, teacher, center = exact
    truth = dino_loss(student, teacher, center, skip_same), teacher.sum((0, 1))
    assert_learns_within_budget(ours, eager, truth, inputs, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("shape", "skip_same"),
    [((5, 2, 3, 33), True), ((5, 2, 3, 33), False), ((2, 2, 1, 7), True), ((1, 2, 2, 5), True)],
    ids=str,
)
def test_equals_the_published_equations(
    place: Place, shape: tuple[int, ...], skip_same: bool, dtype: torch.dtype
) -> None:
    inputs = random_inputs(shape, dtype, place.device, 1.0)
    assert_right(inputs, place.impl, skip_same)


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
    temps = {"temp_student": 0.2, "temp_target": 0.07}
    on_device = {name: torch.tensor(t, device=place.device) for name, t in temps.items()}
    as_tensors, as_floats = (
        with_gradients(centered_crop_cross_entropy(*inputs, **given, impl=place.impl), inputs)
        for given in (on_device, temps)
    )
    torch.testing.assert_close(as_tensors, as_floats)


@pytest.mark.parametrize("name", ["temp_student", "temp_target"])
def test_a_temperature_that_learns_is_refused(place: Place, name: str) -> None:
    inputs = random_inputs((3, 2, 2, 9), torch.float32, place.device)
    learns = {name: torch.tensor(0.1, device=place.device, requires_grad=True)}
    with pytest.raises(ValueError, match=f"^{name}: requires a gradient, .*; detach it"):
        centered_crop_cross_entropy(*inputs, **learns, impl=place.impl)


def test_many_prototypes() -> None:
    inputs = random_inputs((4, 2, 2, 65_536), torch.float32, "cpu", 1.0)
    loss, total = centered_crop_cross_entropy(*inputs)
    student, teacher, center = exact = in_float64(inputs)
    truth = dino_loss(student, teacher, center)
    assert (loss.double() - truth).abs() <= 1e-6 * truth
    grad, true_grad = (torch.autograd.grad(*x)[0] for x in ((loss, inputs[0]), (truth, exact[0])))
    assert (grad.double() - true_grad).norm() <= 1e-5 * true_grad.norm()
    torch.testing.assert_close(total.double(), exact[1].sum((0, 1)), rtol=1e-5, atol=1e-5)


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
    torch.testing.assert_close(*(with_gradients(x, [student]) for x in (loss, published)))
