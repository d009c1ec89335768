"""The centered cross-entropy against float64, in every implementation that runs here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sjepa_kernels import centered_softmax_cross_entropy, update_center_
from sjepa_kernels.native import LIBRARY
from tests.kernels.cases import Place, assert_within_budget, compiles, gradients

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


def run(inputs: dict[str, Tensor], impl: str, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    loss, center_sum = centered_softmax_cross_entropy(
        inputs["student"],
        inputs["teacher"],
        inputs["center"],
        teacher_index_R=inputs["index"],
        row_weights_R=inputs["weights"],
        impl=impl,
        **options,
    )
    (grad,) = gradients(loss, [inputs["student"]], torch.ones_like(loss))
    return loss, center_sum, grad


def assert_right(inputs: dict[str, Tensor], impl: str) -> None:
    exact = {k: v.detach() if k == "index" else v.detach().double() for k, v in inputs.items()}
    exact["student"].requires_grad_()
    loss, center_sum = by_definition(*exact.values())
    (grad,) = gradients(loss, [exact["student"]], torch.ones_like(loss))
    ours, eager = run(inputs, impl), run(inputs, "torch")
    for name, got, plain, truth in zip(
        ("loss", "center sum", "gradient"), ours, eager, (loss, center_sum, grad), strict=True
    ):
        assert_within_budget(got, plain, truth, name)


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
        assert torch.isnan(run(inputs, place.impl)[0])


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


@pytest.mark.parametrize("lanes", [16, 8, 1])
@pytest.mark.parametrize("width", [1, 7, 8, 19, 64, 257])
def test_every_vector_width(lanes: int, width: int) -> None:
    if LIBRARY is None:
        pytest.skip("the C++ library is not built")
    try:
        if LIBRARY.sjepa_limit_lanes(lanes) != lanes:
            pytest.skip(f"this processor has no vectors of {lanes} floats")
        assert_right(random_inputs(67, width, torch.float32, "cpu", 3.0), "cpu")
    finally:
        LIBRARY.sjepa_limit_lanes(16)


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
    as_tensors = run(inputs, place.impl, temp_student=temps[0], temp_target=temps[1])
    as_floats = run(inputs, place.impl, temp_student=0.2, temp_target=0.04)
    for a, b in zip(as_tensors, as_floats, strict=True):
        torch.testing.assert_close(a, b)


def test_strided_inputs_and_scaled_gradient(place: Place) -> None:
    inputs = random_inputs(6, 10, torch.float32, place.device)
    strided = dict(inputs)
    strided["student"] = inputs["student"].detach().mT.contiguous().mT.requires_grad_()
    strided["teacher"] = torch.stack([inputs["teacher"]] * 2, dim=-1)[..., 1]
    for a, b in zip(run(strided, place.impl), run(inputs, place.impl), strict=True):
        torch.testing.assert_close(a, b)
    loss, _ = centered_softmax_cross_entropy(
        strided["student"], strided["teacher"][:6], inputs["center"], impl=place.impl
    )
    (three,) = gradients(loss.expand(3), [strided["student"]], torch.ones(()).to(loss).expand(3))
    loss, _ = centered_softmax_cross_entropy(
        strided["student"], strided["teacher"][:6], inputs["center"], impl=place.impl
    )
    (one,) = gradients(loss, [strided["student"]], torch.ones_like(loss))
    torch.testing.assert_close(three, 3 * one)


def test_backward_twice_through_a_kept_graph(place: Place) -> None:
    inputs = random_inputs(4, 6, torch.float32, place.device)
    student = inputs["student"]
    loss, _ = centered_softmax_cross_entropy(
        student, inputs["teacher"][:4], inputs["center"], impl=place.impl
    )
    loss.backward(retain_graph=True)
    assert student.grad is not None
    first = student.grad.clone()
    student.grad.mul_(7)
    loss.backward(torch.full_like(loss, 2.0))
    torch.testing.assert_close(student.grad, 9 * first)


def test_only_the_student_learns(place: Place) -> None:
    inputs = random_inputs(4, 6, torch.float32, place.device)
    for name in ("teacher", "center", "weights"):
        inputs[name].requires_grad_()
    inputs["student"] = inputs["student"].detach()
    loss, center_sum = centered_softmax_cross_entropy(
        inputs["student"], inputs["teacher"][:4], inputs["center"], impl=place.impl
    )
    assert not loss.requires_grad
    assert not center_sum.requires_grad


def test_repeats_bitwise_for_any_thread_count(place: Place) -> None:
    inputs = random_inputs(1000, 65, torch.float32, place.device)
    if place.impl == "triton" and place.device == "cpu":
        inputs = random_inputs(40, 65, torch.float32, place.device)
    threads = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 2, 1):
            if place.impl == "cpu":
                torch.set_num_threads(count)
            runs.append(run(inputs, place.impl))
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert torch.equal(a, b)


def test_gradcheck(place: Place) -> None:
    inputs = random_inputs(3, 5, torch.float64, place.device)

    def loss_of(student: Tensor) -> Tensor:
        return centered_softmax_cross_entropy(
            student,
            inputs["teacher"],
            inputs["center"],
            teacher_index_R=inputs["index"],
            row_weights_R=inputs["weights"],
            impl=place.impl,
        )[0]

    assert torch.autograd.gradcheck(loss_of, [inputs["student"]])


def test_opcheck(place: Place) -> None:
    if place.impl == "torch":
        pytest.skip("the reference is plain PyTorch; only the kernels are registered")
    inputs = random_inputs(4, 6, torch.float32, place.device)
    temps = [torch.tensor(t, device=place.device) for t in (0.1, 0.06)]
    op = torch.ops.sjepa.centered_softmax_cross_entropy.default
    student, teacher, center, index, weights = inputs.values()
    torch.library.opcheck(op, (student, teacher, center, *temps, index, weights, True, place.impl))
    torch.library.opcheck(
        op, (student.detach(), teacher[:4], center, *temps, None, None, False, place.impl)
    )


@compiles
def test_compiled_values_equal_eager(place: Place) -> None:
    inputs = random_inputs(4, 6, torch.float32, place.device)

    def step(student: Tensor) -> tuple[Tensor, Tensor]:
        loss, center_sum = centered_softmax_cross_entropy(
            student * 2,
            inputs["teacher"] + 1,
            inputs["center"],
            teacher_index_R=inputs["index"],
            impl=place.impl,
        )
        return loss * 3, center_sum

    eager, compiled = (
        step(inputs["student"]),
        torch.compile(step, fullgraph=True)(inputs["student"]),
    )
    torch.testing.assert_close(compiled, eager)
    assert not compiled[1].requires_grad
    one = torch.ones_like(eager[0])
    torch.testing.assert_close(
        gradients(compiled[0], [inputs["student"]], one),
        gradients(eager[0], [inputs["student"]], one),
    )


def test_shift_of_teacher_and_center_changes_nothing(place: Place) -> None:
    inputs = random_inputs(6, 12, torch.float64, place.device)
    moved = dict(inputs)
    moved["teacher"], moved["center"] = inputs["teacher"] + 5, inputs["center"] + 5
    moved["student"] = (inputs["student"].detach() - 3).requires_grad_()
    a, b = run(inputs, place.impl), run(moved, place.impl)
    torch.testing.assert_close(a[0], b[0])
    torch.testing.assert_close(a[2], b[2])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy, under the interpreter
def test_kernels_turn_a_bad_index_into_nan(place: Place) -> None:
    if place.impl != "triton":
        pytest.skip("the other implementations check the index")
    op = torch.ops.sjepa.centered_softmax_cross_entropy
    temps = [torch.tensor(t, device=place.device) for t in (0.1, 0.06)]
    for width in (5, 4100):
        student, teacher = torch.randn(2, 3, width).to(place.device).unbind()
        index = torch.tensor([0, 3, 1], device=place.device)
        loss, _, _ = op(student, teacher, teacher[0], *temps, index, None, True, place.impl)
        assert torch.isnan(loss)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"student": torch.zeros(0, 3)}, ValueError, r"student: \(0, 3\); .*pass rows"),
        ({"student": torch.zeros(2, 2, 3)}, ValueError, r"student: \(2, 2, 3\); expected \(R, D\)"),
        ({"student": torch.zeros(2, 3).int()}, TypeError, "student: torch.int32"),
        ({"teacher": torch.zeros(4, 4)}, ValueError, r"teacher: \(4, 4\)"),
        ({"teacher": torch.zeros(5, 3)}, ValueError, r"teacher: \(5, 3\); .*without teacher_index"),
        ({"center": torch.zeros(4)}, ValueError, r"center: \(4,\)"),
        ({"temp_student": 0.0}, ValueError, r"temp_student: 0\.0; pass a finite number above zero"),
        ({"temp_target": float("nan")}, ValueError, "temp_target: nan"),
        ({"temp_target": torch.tensor(-1.0)}, ValueError, r"temp_target: -1\.0"),
        ({"temp_student": torch.ones(2)}, ValueError, r"temp_student: \(2,\)"),
        ({"teacher_index_R": torch.tensor([0, 2])}, ValueError, r"teacher_index: ids from 0 to 2"),
        ({"teacher_index_R": torch.zeros(3).long()}, ValueError, r"teacher_index: \(3,\)"),
        ({"row_weights_R": torch.ones(3)}, ValueError, r"row_weights: \(3,\)"),
        ({"row_weights_R": torch.ones(2).int()}, TypeError, "row_weights: torch.int32"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], words: str) -> None:
    good = {
        "student": torch.zeros(2, 3),
        "teacher": torch.zeros(2, 3),
        "center": torch.zeros(3),
    }
    options = good | change
    args = [options.pop(name) for name in good]
    with pytest.raises(error, match=words):
        centered_softmax_cross_entropy(*args, **options)


def test_center_moves_towards_the_batch_mean() -> None:
    center, total = torch.tensor([1.0, -2.0]), torch.tensor([8.0, 4.0])
    expected = 0.9 * center + 0.1 * total / 4
    for count, momentum in ((4, 0.9), (torch.tensor(4), torch.tensor(0.9))):
        moved = center.clone()
        update_center_(moved, total, count, momentum)
        torch.testing.assert_close(moved, expected)


@pytest.mark.parametrize(
    ("total", "count", "momentum", "words"),
    [
        (torch.zeros(3), 1, 0.9, r"center_sum: \(3,\)"),
        (torch.zeros(2), 0, 0.9, "count: 0"),
        (torch.zeros(2), 1, 1.5, r"momentum: 1\.5"),
    ],
)
def test_center_refuses(total: Tensor, count: int, momentum: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        update_center_(torch.zeros(2), total, count, momentum)
