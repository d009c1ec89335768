"""Cross-entropy of given probabilities against float64, in every implementation that runs here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sjepa_kernels import centered_softmax_cross_entropy, soft_cross_entropy
from tests.kernels.cases import (
    Place,
    assert_learns_within_budget,
    in_float64,
    with_gradients,
)

HAS_CPP = True

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# R, D: one number, odd widths, vector tails, whole tiles, and wide rows (two reads).
SHAPES = [(1, 1), (5, 7), (70, 33), (9, 256), (3, 5000)]


def by_definition(student: Tensor, given: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """The formula with the temperature 0.1, in the dtype of its inputs."""
    x = student / 0.1
    loss = (given[index.long()] * (x.logsumexp(1, keepdim=True) - x)).sum(1)
    return (weights * loss).sum() / weights.sum()


def random_inputs(
    rows: int, width: int, dtype: torch.dtype, device: str, spread: float = 1.0
) -> dict[str, Tensor]:
    """Rows of probabilities whose sums are 1 / 2 to 3 / 2, in float16."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    given = torch.softmax(3 * torch.randn(rows + 4, width), 1) * (0.5 + torch.rand(rows + 4, 1))
    return {
        "student": (spread * torch.randn(rows, width)).to(device, dtype).requires_grad_(),
        "given": given.to(device, torch.float16),
        "index": torch.randint(rows + 4, (rows,)).to(device),
        "weights": (torch.rand(rows) + 0.1).to(device, wide),
    }


def call(inputs: dict[str, Tensor], impl: str, **options: Any) -> Tensor:
    student, given, index, weights = inputs.values()
    options |= {"probabilities_index_R": index, "row_weights_R": weights, "impl": impl}
    return soft_cross_entropy(student, given, **options)


def assert_right(inputs: dict[str, Tensor], impl: str) -> None:
    student, given, index, weights = inputs.values()
    s, p, w = exact = in_float64([student, given, weights])
    truth = by_definition(s, p, index, w)
    assert_learns_within_budget(call(inputs, impl), call(inputs, "torch"), truth, [student], exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradient(place: Place, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    assert_right(random_inputs(*shape, dtype, place.device), place.impl)


@pytest.mark.parametrize("spread", [1e-4, 1e3])
def test_extreme_features(place: Place, spread: float) -> None:
    assert_right(random_inputs(6, 40, torch.float32, place.device, spread), place.impl)


@pytest.mark.parametrize("width", [1, 7, 8, 19, 64, 257])
def test_every_vector_width(lanes: int, width: int) -> None:
    assert_right(random_inputs(67, width, torch.float32, "cpu", 3.0), "cpu")


def test_a_gradient_too_large_for_the_caches(place: Place) -> None:
    """Enough numbers for the stores that bypass them."""
    if place.impl != "cpu":
        pytest.skip("only the C++ has such stores")
    assert_right(random_inputs(8500, 256, torch.float32, "cpu"), "cpu")


@pytest.mark.parametrize("width", [9, 4100])
def test_the_gradient_is_of_rows_with_any_sum(place: Place, width: int) -> None:
    """(sum(p) softmax - p) / (temp R): a row of sum 0 has none, of negative numbers its own."""
    student = torch.randn(4, width, dtype=torch.float64, device=place.device)
    given = torch.rand(4, width, dtype=torch.float64, device=place.device)
    given[1] = 0
    given[2] = -given[2]
    s = student.requires_grad_() if place.impl != "cpu" else student.float().requires_grad_()
    (grad,) = torch.autograd.grad(soft_cross_entropy(s, given, impl=place.impl), s)
    softmax = torch.softmax(student.detach() / 0.1, 1)
    truth = (given.sum(1, keepdim=True) * softmax - given) / (0.1 * 4)
    torch.testing.assert_close(grad.double(), truth, rtol=1e-5, atol=1e-5)
    assert torch.equal(grad[1], torch.zeros_like(grad[1]))


@pytest.mark.parametrize("width", [40, 4500])
def test_equals_the_centered_loss_on_its_own_probabilities(place: Place, width: int) -> None:
    (student,), teacher = [torch.randn(6, width).to(place.device)], torch.randn(6, width)
    student.requires_grad_()
    teacher, center = teacher.to(place.device), torch.randn(width).to(place.device)
    given = torch.softmax((teacher - center) / 0.06, 1)
    ours = soft_cross_entropy(student, given, impl=place.impl)
    other, _ = centered_softmax_cross_entropy(student, teacher, center, impl=place.impl)
    torch.testing.assert_close(
        with_gradients(ours, [student]), with_gradients(other, [student]), rtol=2e-5, atol=2e-6
    )


@pytest.mark.parametrize("width", [8, 4500])
def test_the_largest_half_precision_gradients_fit(place: Place, width: int) -> None:
    """A sure student, probabilities of something else that sum to 1.9, and a loss scale."""
    student = torch.zeros(2, width, dtype=torch.float16, device=place.device)
    student[:, 0] = 1000
    student.requires_grad_()
    given = torch.zeros(2, width, device=place.device)
    given[:, 1] = 1.9
    loss = soft_cross_entropy(student, given, temp_student=1.0, impl=place.impl)
    (grad,) = torch.autograd.grad(loss, student, torch.tensor(65536.0 / 2).to(loss))
    expected = torch.zeros(2, width, device=place.device)
    expected[:, 0], expected[:, 1] = 1.9 * 2**14, -1.9 * 2**14
    torch.testing.assert_close(grad.float(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("side", ["student", "given"])
def test_a_nan_shows_in_the_loss(place: Place, side: str) -> None:
    for at in (2, 33):  # inside a vector, and after the last whole one
        inputs = random_inputs(3, 35, torch.float32, place.device)
        with torch.no_grad():
            inputs[side][inputs["index"][1] if side == "given" else 1, at] = float("nan")
        assert torch.isnan(call(inputs, place.impl))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy, under the interpreter
def test_kernels_turn_a_bad_index_into_nan(place: Place) -> None:
    if place.impl != "triton":
        pytest.skip("the other implementations check the index")
    op, temp = torch.ops.sjepa.centered_softmax_cross_entropy, torch.tensor(0.1).to(place.device)
    for width in (5, 4100):
        student, given = torch.randn(2, 3, width).to(place.device).unbind()
        index = torch.tensor([0, 3, 1], device=place.device)
        loss, *_ = op(student, given, None, temp, None, index, None, True, place.impl)
        assert torch.isnan(loss)


def test_a_bad_index_in_a_compiled_graph_is_named() -> None:
    """Where it is not read before: the C++ checks it."""
    place = Place("cpu", "cpu")
    if place.missing:
        pytest.skip(place.missing)
    op, temp = torch.ops.sjepa.centered_softmax_cross_entropy, torch.tensor(0.1)
    student, index = torch.randn(2, 3), torch.tensor([0, 3])
    for center, name in ((None, "probabilities_index"), (student[0], "teacher_index")):
        with pytest.raises(ValueError, match=rf"^{name}: .*; ids must lie in 0\.\.1"):
            op(student, student, center, temp, temp, index, None, False, "cpu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_rows_give_zeros(place: Place, dtype: torch.dtype) -> None:
    patches = torch.randn(4, 9, device=place.device).to(dtype).requires_grad_()
    none = torch.zeros(0, dtype=torch.int64, device=place.device)
    loss = soft_cross_entropy(patches[none], patches.detach()[none], impl=place.impl)
    full = soft_cross_entropy(patches.detach(), patches.detach(), impl=place.impl)
    assert loss.shape == () and loss.dtype == full.dtype
    assert float(loss.detach()) == 0
    (3 * loss).backward()
    assert patches.grad is not None and torch.equal(patches.grad, torch.zeros_like(patches))


def test_a_temperature_on_the_device_is_followed_and_may_not_learn(place: Place) -> None:
    inputs = random_inputs(5, 9, torch.float32, place.device)
    temp = torch.tensor(0.2, device=place.device)
    found = [
        with_gradients(call(inputs, place.impl, temp_student=t), [inputs["student"]])
        for t in (temp, 0.2)
    ]
    torch.testing.assert_close(*found)
    with pytest.raises(ValueError, match=r"^temp_student: requires a gradient, .*; detach it"):
        call(inputs, place.impl, temp_student=temp.requires_grad_())
