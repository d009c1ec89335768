"""The centered cross-entropy against float64, in every implementation that runs here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sjepa_kernels import centered_softmax_cross_entropy, update_center_
from tests.kernels.cases import (
    Place,
    assert_learns_within_budget,
    compiles,
    in_float64,
    with_gradients,
)

HAS_CPP = True

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# R, D: one number, one row, odd widths, vector tails, whole tiles, and wide rows (two reads).
SHAPES = [(1, 1), (5, 7), (70, 33), (9, 256), (2, 4096), (3, 5000)]


def by_definition(
    student: Tensor, teacher: Tensor, center: Tensor, index: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """The formula with the temperatures 0.1 and 0.06, in the dtype of its inputs."""
    rows = teacher[index.long()]
    y = (rows - center) / 0.06
    p_t = (y - y.logsumexp(1, keepdim=True)).exp()
    x = student / 0.1
    loss = (p_t * (x.logsumexp(1, keepdim=True) - x)).sum(1)
    return (weights * loss).sum() / weights.sum(), rows.sum(0)


def random_inputs(
    rows: int, width: int, dtype: torch.dtype, device: str, spread: float = 1.0
) -> dict[str, Tensor]:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "student": (spread * torch.randn(rows, width)).to(device, dtype).requires_grad_(),
        "teacher": (spread * torch.randn(rows + 4, width)).to(device, dtype),
        "center": torch.randn(width).to(device, wide),
        "index": torch.randint(rows + 4, (rows,)).to(device),
        "weights": (torch.rand(rows) + 0.1).to(device, wide),
    }


def call(inputs: dict[str, Tensor], impl: str, **options: Any) -> tuple[Tensor, Tensor]:
    student, teacher, center, index, weights = inputs.values()
    options |= {"teacher_index_R": index, "row_weights_R": weights, "impl": impl}
    return centered_softmax_cross_entropy(student, teacher, center, **options)


def assert_right(inputs: dict[str, Tensor], impl: str) -> None:
    student, teacher, center, index, weights = inputs.values()
    s, t, c, w = exact = in_float64([student, teacher, center, weights])
    truth = by_definition(s, t, c, index, w)
    assert_learns_within_budget(call(inputs, impl), call(inputs, "torch"), truth, [student], exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradient(place: Place, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    assert_right(random_inputs(*shape, dtype, place.device), place.impl)


@pytest.mark.parametrize("spread", [1e-4, 1e3])
def test_extreme_features(place: Place, spread: float) -> None:
    assert_right(random_inputs(6, 40, torch.float32, place.device, spread), place.impl)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_nan_feature_shows_in_the_loss(place: Place, side: str) -> None:
    for at in (2, 33):  # inside a vector, and after the last whole one
        inputs = random_inputs(3, 35, torch.float32, place.device)
        with torch.no_grad():
            inputs[side][inputs["index"][1] if side == "teacher" else 1, at] = float("nan")
        assert torch.isnan(call(inputs, place.impl)[0])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, under the interpreter
def test_weights_without_a_sum_give_no_number(place: Place) -> None:
    student, teacher = torch.randn(2, 3, 5).to(place.device)
    for weights in (torch.zeros(3), torch.tensor([1.0, -1.0, 0.0]), torch.full((3,), torch.nan)):
        loss, _ = centered_softmax_cross_entropy(
            student,
            teacher,
            torch.zeros(5, device=place.device),
            row_weights_R=weights.to(place.device),
            impl=place.impl,
        )
        assert not torch.isfinite(loss)


def test_a_gradient_too_large_for_the_caches(place: Place) -> None:
    """Enough numbers for the stores that bypass them, on their alignment and beside it."""
    if place.impl != "cpu":
        pytest.skip("only the C++ has such stores")
    for width in (256, 248):
        assert_right(random_inputs(8500, width, torch.float32, "cpu"), "cpu")


@pytest.mark.parametrize("width", [1, 7, 8, 19, 64, 257])
def test_every_vector_width(lanes: int, width: int) -> None:
    assert_right(random_inputs(67, width, torch.float32, "cpu", 3.0), "cpu")


def test_without_index_and_weights(place: Place) -> None:
    inputs = random_inputs(6, 12, torch.float64, place.device)
    teacher = inputs["teacher"][:6]
    loss, center_sum = centered_softmax_cross_entropy(
        inputs["student"], teacher, inputs["center"], impl=place.impl
    )
    truth, total = by_definition(
        inputs["student"], teacher, inputs["center"], torch.arange(6), torch.ones(6).to(teacher)
    )
    torch.testing.assert_close(loss, truth)
    torch.testing.assert_close(center_sum, total)


def test_temperatures_as_device_tensors(place: Place) -> None:
    inputs = random_inputs(5, 9, torch.float32, place.device)
    temps = [torch.tensor(t, device=place.device) for t in (0.2, 0.04)]
    as_tensors, as_floats = (
        with_gradients(call(inputs, place.impl, temp_student=s, temp_target=t), [inputs["student"]])
        for s, t in (temps, (0.2, 0.04))
    )
    torch.testing.assert_close(as_tensors, as_floats)


def test_shift_of_teacher_and_center_changes_nothing(place: Place) -> None:
    inputs = random_inputs(6, 12, torch.float64, place.device)
    moved = dict(inputs)
    moved["teacher"], moved["center"] = inputs["teacher"] + 5, inputs["center"] + 5
    moved["student"] = (inputs["student"].detach() - 3).requires_grad_()
    a, b = (with_gradients(call(x, place.impl), [x["student"]]) for x in (inputs, moved))
    torch.testing.assert_close([a[0], a[2]], [b[0], b[2]])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy, under the interpreter
def test_kernels_turn_a_bad_index_into_nan(place: Place) -> None:
    if place.impl != "triton":
        pytest.skip("the other implementations check the index")
    op = torch.ops.sjepa.centered_softmax_cross_entropy
    temps = [torch.tensor(t, device=place.device) for t in (0.1, 0.06)]
    for width in (5, 4100):
        student, teacher = torch.randn(2, 3, width).to(place.device).unbind()
        index = torch.tensor([0, 3, 1], device=place.device)
        loss, *_ = op(student, teacher, teacher[0], *temps, index, None, True, place.impl)
        assert torch.isnan(loss)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("given", ["nothing", "index", "weights", "both"])
def test_no_rows_give_zeros(place: Place, given: str, dtype: torch.dtype) -> None:
    """As a batch without a masked patch has it in iBOT and DINOv2."""
    patches = torch.randn(4, 9, device=place.device).to(dtype).requires_grad_()
    none = torch.zeros(0, dtype=torch.int64, device=place.device)
    index = none if given in ("index", "both") else None
    teacher = torch.randn(4 if index is not None else 0, 9).to(patches)
    weights = torch.ones(0, device=place.device) if given in ("weights", "both") else None
    loss, center_sum = centered_softmax_cross_entropy(
        patches[none],
        teacher,
        torch.randn(9).to(teacher),
        teacher_index_R=index,
        row_weights_R=weights,
        impl=place.impl,
    )
    full, _ = centered_softmax_cross_entropy(
        patches.detach(), patches.detach(), torch.zeros(9).to(patches), impl=place.impl
    )
    assert loss.shape == () and loss.dtype == full.dtype and loss.requires_grad
    assert float(loss.detach()) == 0
    assert torch.equal(center_sum, torch.zeros(9).to(full)) and not center_sum.requires_grad
    (3 * loss).backward()
    assert patches.grad is not None and torch.equal(patches.grad, torch.zeros_like(patches))


@compiles
def test_no_rows_in_a_compiled_graph(place: Place) -> None:
    student = torch.randn(0, 9, device=place.device, requires_grad=True)
    center = torch.zeros(9, device=place.device)
    torch.compiler.reset()
    call = torch.compile(centered_softmax_cross_entropy, fullgraph=True)
    loss, center_sum = call(student, student.detach(), center, impl=place.impl)
    loss.backward()
    assert float(loss.detach()) == 0 and torch.equal(center_sum, center)
    assert student.grad is not None and student.grad.shape == (0, 9)


@pytest.mark.parametrize("name", ["temp_student", "temp_target"])
def test_a_temperature_that_learns_is_refused(place: Place, name: str) -> None:
    inputs = random_inputs(3, 5, torch.float32, place.device)
    learns = {name: torch.tensor(0.1, device=place.device, requires_grad=True)}
    with pytest.raises(ValueError, match=f"^{name}: requires a gradient, .*; detach it"):
        call(inputs, place.impl, **learns)
    with torch.no_grad():
        loss, _ = call(inputs, place.impl, **learns)
    torch.testing.assert_close(loss, call(inputs, place.impl, **{name: 0.1})[0])


def test_a_temperature_is_learned_through_the_student(place: Place) -> None:
    """What its error says to do."""
    inputs = random_inputs(3, 5, torch.float64, place.device)
    temp = torch.tensor(0.1, dtype=torch.float64, device=place.device, requires_grad=True)
    student, teacher, center, index, weights = inputs.values()
    truth, _ = by_definition(student / (10 * temp), teacher, center, index, weights)
    scaled = inputs | {"student": student / temp}
    loss, _ = call(scaled, place.impl, temp_student=1.0)
    torch.testing.assert_close(loss, truth)
    torch.testing.assert_close(*(torch.autograd.grad(x, temp)[0] for x in (loss, truth)))


@pytest.mark.parametrize("count", [70_000, torch.tensor(70_000)], ids=["number", "tensor"])
def test_a_half_precision_sum_of_many_rows_moves_the_center(count: int | Tensor) -> None:
    """The number of rows has no place in float16."""
    sums = torch.tensor([60000.0, -7.0]).half()
    for all_reduce in (None, lambda total: None):
        center = torch.zeros(2)
        update_center_(center, sums, count, 0.5, all_reduce=all_reduce)
        torch.testing.assert_close(center, 0.5 * sums.float() / 70_000)


@pytest.mark.parametrize("count", [0, torch.tensor(0), torch.tensor(0.0)], ids=repr)
def test_no_rows_leave_the_center_where_it_is(count: int | Tensor) -> None:
    for all_reduce in (None, lambda total: None):
        center = torch.tensor([1.0, -2.0])
        update_center_(center, torch.zeros(2), count, 0.5, all_reduce=all_reduce)
        assert torch.equal(center, torch.tensor([1.0, -2.0]))


def test_center_moves_towards_the_batch_mean() -> None:
    center, total = torch.tensor([1.0, -2.0]), torch.tensor([8.0, 4.0])
    expected = 0.9 * center + 0.1 * total / 4
    for count, momentum in ((4, 0.9), (torch.tensor(4), torch.tensor(0.9))):
        moved = center.clone()
        update_center_(moved, total, count, momentum)
        torch.testing.assert_close(moved, expected)
