"""A loss times a loss scale, as mixed precision in float16 has it: gradients as exact as eager's.

Eager multiplies by the gradient of the loss in float32 and rounds once. What an op rounds before it
knows that gradient must not cost more than twice eager's error, nor flush more numbers to 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from sjepa_kernels import (
    centered_crop_cross_entropy,
    centered_softmax_cross_entropy,
    soft_cross_entropy,
)
from sjepa_kernels._triton import INTERPRETED
from tests.kernels.cases import (
    Outputs,
    Place,
    assert_within_budget,
    compiles,
    gradients,
    leaves_of,
    listed,
)
from tests.kernels.op_case import MakeUse, all_uses

HAS_CPP = True
SCALED = [(torch.float16, 1.0), (torch.float16, 65536.0)]
if not INTERPRETED:
    # The interpreter does not round to bfloat16 as hardware does.
    SCALED.append((torch.bfloat16, 3.0))
scaled = pytest.mark.parametrize(("dtype", "scale"), SCALED, ids=str)


def wide(x: Tensor) -> Tensor:
    """The same numbers in float64, and ids as they are."""
    exact = x.detach().double() if x.is_floating_point() else x
    return exact.requires_grad_(x.requires_grad)


def gradients_of(call: Callable[..., Outputs], inputs: Sequence[Tensor], scale: float) -> Outputs:
    """Of the mean of each output times fixed numbers, in float32 at least, and the loss scale."""
    draws = torch.Generator().manual_seed(1)
    losses = []
    for y in listed(call(*inputs)):
        shares = torch.randn(y.shape, generator=draws).to(y.device)
        if y.requires_grad:
            # A product with float32 numbers is float32 in half precision, too.
            losses.append((y * shares).mean() if y.ndim else y)
    return gradients(losses, inputs, [torch.full_like(x, scale) for x in losses])


def flushed(found: Tensor, truth: Tensor) -> int:
    """How many numbers have become 0 that are more than the rounding of a sum of 0."""
    return int(((found == 0) & (truth.abs() > 1e-12 * truth.abs().max())).sum())


def assert_as_exact(
    ours: Callable[..., Outputs],
    eager: Callable[..., Outputs],
    inputs: Sequence[Tensor],
    scale: float,
    spare: float = 1e-3,
) -> None:
    """Allow a share `spare` of the numbers, at the edge of the range, to be flushed, too."""
    exact = [wide(x) for x in inputs]
    found = (gradients_of(*x, scale) for x in ((ours, inputs), (eager, inputs), (eager, exact)))
    for k, (mine, plain, true) in enumerate(zip(*found, strict=True)):
        assert_within_budget(mine, plain, true, f"gradient {k}")
        # Bfloat16 has float32's range, in which ours and eager's least numbers differ.
        if mine.dtype == torch.float16:
            assert flushed(mine, true) <= flushed(plain, true) + spare * true.numel(), k


@scaled
@pytest.mark.parametrize(("where", "make"), all_uses(of_torch=False, learning=True))
def test_gradients_of_every_op(
    where: Place, make: MakeUse, dtype: torch.dtype, scale: float
) -> None:
    uses = []
    for place in (where, Place(where.device, "torch")):
        torch.manual_seed(0)
        uses.append(make(place, dtype, False))
    ours, eager = uses
    if ours.inputs[0].dtype != dtype:
        pytest.skip("its code is for another dtype")
    # Of as few rows as here, the losses' gradients have more range in eager than before they are
    # scaled.
    assert_as_exact(ours.call, eager.call, ours.inputs, scale, spare=0.01)


def head_output(place: Place, *shape: int, dtype: torch.dtype) -> Tensor:
    """Numbers among which a softmax at 0.1 or 0.04 is not yet sure of one."""
    return (0.1 * torch.randn(shape)).to(place.device, dtype)


# As many prototypes as DINO has, where that takes no minutes.
CROPS = (6, 2, 8, 4500) if INTERPRETED else (10, 2, 16, 65_536)


@scaled
@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
def test_many_prototypes(place: Place, weighted: bool, dtype: torch.dtype, scale: float) -> None:
    crops, _, batch, width = CROPS
    rows = crops * batch
    student = head_output(place, rows, width, dtype=dtype).requires_grad_()
    teacher = head_output(place, rows, width, dtype=dtype)
    center = torch.zeros(width, device=place.device)
    # iBOT's: each image's patches share the weight 1.
    weights = 1 / torch.randint(1, 90, (rows,)).to(student.device) if weighted else None

    def loss(impl: str) -> Callable[[Tensor], Tensor]:
        return lambda s: centered_softmax_cross_entropy(
            s, teacher, center, row_weights_R=weights, impl=impl
        )[0]

    assert_as_exact(loss(place.impl), loss("torch"), [student], scale)


def test_many_prototypes_of_given_probabilities(place: Place) -> None:
    shape = 32, CROPS[-1]
    student = head_output(place, *shape, dtype=torch.float16).requires_grad_()
    given = torch.softmax(head_output(place, *shape, dtype=torch.float32) / 0.06, 1)

    def loss(impl: str) -> Callable[[Tensor], Tensor]:
        return lambda s: soft_cross_entropy(s, given, impl=impl)

    assert_as_exact(loss(place.impl), loss("torch"), [student], 65536.0)


@scaled
@pytest.mark.parametrize("teachers", [2, 3])
def test_many_prototypes_of_crops(
    place: Place, teachers: int, dtype: torch.dtype, scale: float
) -> None:
    crops, _, batch, width = CROPS
    student = head_output(place, crops, batch, width, dtype=dtype).requires_grad_()
    teacher = head_output(place, teachers, batch, width, dtype=dtype)
    center = torch.zeros(width, device=place.device)

    def loss(impl: str) -> Callable[[Tensor], Tensor]:
        return lambda s: centered_crop_cross_entropy(s, teacher, center, impl=impl)[0]

    assert_as_exact(loss(place.impl), loss("torch"), [student], scale)


@pytest.mark.parametrize("width", [8, 4500])
def test_the_largest_gradients_fit(place: Place, width: int) -> None:
    """Student and teachers are sure, and of something else: differences of 1 for each teacher."""
    student = torch.zeros(2, 1, width, dtype=torch.float16, device=place.device)
    student[..., 0] = 1000
    student.requires_grad_()
    teacher = torch.zeros(3, 1, width, device=place.device)
    teacher[..., 1] = 1000
    center = torch.zeros(width, device=place.device)
    pairs, _ = centered_crop_cross_entropy(
        student, teacher, center, skip_same=False, impl=place.impl
    )
    rows, _ = centered_softmax_cross_entropy(
        student[:, 0],
        teacher[:2, 0],
        center,
        row_weights_R=torch.tensor([3.0, 3.0], device=place.device),
        impl=place.impl,
    )
    expected = torch.zeros(2, 1, width, device=place.device)
    # (p_s - p_t) / (0.1 x 2 rows), or the same of 3 x 2 pairs.
    expected[..., 0], expected[..., 1] = 5, -5
    for loss in (pairs, rows):
        (grad,) = torch.autograd.grad(loss, student)
        torch.testing.assert_close(grad.float(), expected)


@compiles
def test_a_compiled_backward_scales_too(place: Place) -> None:
    (student,) = leaves_of(place, (60, 40), dtype=torch.float16)
    teacher, center = torch.randn(60, 40).to(student), torch.zeros(40).to(student)

    def loss(s: Tensor) -> Tensor:
        return centered_softmax_cross_entropy(s, teacher, center, impl=place.impl)[0]

    torch.compiler.reset()
    calls = torch.compile(loss, fullgraph=True), loss
    ours, eager = (gradients_of(call, [student], 65536.0) for call in calls)
    torch.testing.assert_close(ours, eager, rtol=2e-3, atol=1e-7)


def test_a_kept_graph_scales_again(place: Place) -> None:
    """What a scale of 65,536 is in float16, infinity, reaches no gradient."""
    (student,) = leaves_of(place, (60, 40), dtype=torch.float16)
    teacher, center = torch.randn(60, 40).to(student), torch.zeros(40).to(student)
    loss, _ = centered_softmax_cross_entropy(student, teacher, center, impl=place.impl)
    scale = torch.full_like(loss, 65536.0)
    first = torch.autograd.grad(loss, student, scale, retain_graph=True)[0]
    kept = first.clone()
    second = torch.autograd.grad(loss, student, scale / 2)[0]
    assert torch.isfinite(first).all()
    assert torch.equal(first, kept)
    # The least numbers have no half.
    torch.testing.assert_close(second, first / 2, rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize("width", [9, 4100])
def test_the_fakes_know_what_float16_adds(place: Place, width: int, needs_grad: bool) -> None:
    if place.impl != "triton":
        pytest.skip("only the kernels save float16")
    # Not what compares outputs behind a backward, which scales the saved one in place; the compiled
    # backward has a test of its own.
    kinds = "test_schema", "test_autograd_registration", "test_faketensor"
    student = torch.randn(3, 2, width, device=place.device).half().requires_grad_(needs_grad)
    fixed = student.detach()[:2], torch.zeros(width, device=place.device)
    temps = [torch.tensor(t, device=place.device) for t in (0.1, 0.06)]
    crops = torch.ops.sjepa.centered_crop_cross_entropy.default
    torch.library.opcheck(crops, (student, *fixed, *temps, True, needs_grad), test_utils=kinds)
    rows = torch.ops.sjepa.centered_softmax_cross_entropy.default
    weights = torch.tensor([0.5, 2.0], device=place.device)
    given = student.detach()[0].requires_grad_(needs_grad), fixed[0][0], fixed[1]
    args = *given, *temps, None, weights, needs_grad, "triton"
    torch.library.opcheck(rows, args, test_utils=kinds)
