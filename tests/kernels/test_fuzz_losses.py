"""Random calls of the losses and the averages: right against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sjepa_kernels import (
    EmaPlan,
    centered_crop_cross_entropy,
    centered_softmax_cross_entropy,
    ema_update_,
    update_center_,
)
from tests.kernels.cases import Place, assert_within_budget, gradients
from tests.kernels.fuzzing import (
    FLOATS,
    HALVES,
    LAYOUTS,
    Draw,
    fuzz,
    laid_out,
    normal,
    one_of,
    random_ids,
    size,
)

HAS_CPP = True


def assert_loss_close(
    student: Tensor,
    loss: Tensor,
    center_sum: Tensor,
    plain: Callable[[Tensor, torch.dtype], tuple[Tensor, Tensor]],
    shifted: Tensor,
    temps: list[float],
    scale: float,
) -> None:
    """Loss, center sum and gradient, `scale` times, against `plain` in float64."""
    exact = student.detach().double().requires_grad_()
    eager = plain(student, loss.dtype)
    truth = plain(exact, torch.float64)
    grad = torch.tensor(scale, device=student.device)
    ours_grad, eager_grad, true_grad = (
        gradients(x, [leaf], grad.to(x))[0]
        for x, leaf in ((loss, student), (eager[0], student), (truth[0], exact))
    )
    assert_within_budget(center_sum, eager[1], truth[1], "center sum")
    # With as few numbers as here, eager's roundings may happen to cancel, so ours are allowed for:
    # a softmax multiplies the rounding of its input by that input's size, the gradient is a
    # difference of two probabilities times `most`, and it is rounded to the student's dtype.
    largest = max(x.abs().max() / t for x, t in ((exact, temps[0]), (shifted, temps[1])))
    eps, most = torch.finfo(loss.dtype).eps, 2 * scale / temps[0]
    slack = eps * float(largest.detach())
    assert_within_budget(loss, eager[0], truth[0], "loss", slack)
    slack += eps * most / max(float(true_grad.norm()), 1e-30) + torch.finfo(student.dtype).eps
    assert_within_budget(ours_grad, eager_grad, true_grad, "gradient", slack)


# In lanes beyond the row, whose values are thrown away.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
@fuzz
@given(data=st.data())
def test_centered_ce(place: Place, data: Draw) -> None:
    rows, width = size(data, 1, 20), one_of(data, 1, 2, 7, 16, 33, 100, 257)
    indexed, weighted = data.draw(st.booleans()), data.draw(st.booleans())
    teacher_rows = size(data, 1, 30) if indexed else rows
    spread = one_of(data, 0.01, 1.0, 20.0)
    student, teacher = (
        (spread * normal(data, place, (n, width), one_of(data, *FLOATS))).detach()
        for n in (rows, teacher_rows)
    )
    student = laid_out(student, one_of(data, *LAYOUTS)).requires_grad_()
    center = normal(data, place, (width,), one_of(data, *FLOATS))
    weights = normal(data, place, (rows,), one_of(data, *FLOATS)).abs() + 0.1 if weighted else None
    index = None
    if indexed:
        index = random_ids(data, place, (1, rows), teacher_rows, distinct=False)[0]
    temps = [one_of(data, 0.04, 0.1, 2.0) for _ in range(2)]
    passed = [
        torch.tensor(t, dtype=torch.float64, device=place.device) if size(data, 0, 1) else t
        for t in temps
    ]

    def plain(s: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        t = (teacher if index is None else teacher[index.long()]).to(dtype)
        y, x = (t - center.to(dtype)) / temps[1], s.to(dtype) / temps[0]
        loss = -(torch.softmax(y, 1) * torch.log_softmax(x, 1)).sum(1)
        w = torch.ones_like(loss) if weights is None else weights.to(dtype)
        return (w * loss).sum() / w.sum(), t.sum(0)

    loss, center_sum = centered_softmax_cross_entropy(
        student,
        teacher,
        center,
        temp_student=passed[0],
        temp_target=passed[1],
        teacher_index_R=index,
        row_weights_R=weights,
        impl=place.impl,
    )
    shifted = teacher.double() - center.double()
    assert_loss_close(student, loss, center_sum, plain, shifted, temps, one_of(data, 1.0, 3.0))


# In lanes beyond the row, whose values are thrown away.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
@fuzz
@given(data=st.data())
def test_centered_crops(place: Place, data: Draw) -> None:
    """Any number of crops on either side, with and without the pairs of the same crop."""
    seen, targets, batch = size(data, 1), size(data, 1), size(data, 1)
    skip_same = seen * targets > 1 and data.draw(st.booleans(), label="skip same")
    width, spread = one_of(data, 1, 2, 7, 16, 33, 130), one_of(data, 0.01, 1.0, 20.0)
    student, teacher = (
        laid_out(spread * normal(data, place, (n, batch, width), one_of(data, *FLOATS)), layout)
        for n, layout in ((seen, one_of(data, *LAYOUTS)), (targets, one_of(data, *LAYOUTS)))
    )
    student = student.detach().requires_grad_()
    center = normal(data, place, (width,), one_of(data, *FLOATS))
    temps = [one_of(data, 0.04, 0.1, 2.0) for _ in range(2)]
    passed = [
        torch.tensor(t, dtype=torch.float64, device=place.device) if size(data, 0, 1) else t
        for t in temps
    ]
    used = torch.ones(targets, seen, device=place.device)
    if skip_same:
        used -= torch.eye(targets, seen, device=place.device)

    def plain(s: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        y = (teacher.to(dtype) - center.to(dtype)) / temps[1]
        log_p = torch.log_softmax(s.to(dtype) / temps[0], -1)
        pairs = -torch.einsum("tbk,sbk->ts", torch.softmax(y, -1), log_p) / batch
        return (pairs * used.to(dtype)).sum() / used.to(dtype).sum(), teacher.to(dtype).sum((0, 1))

    loss, center_sum = centered_crop_cross_entropy(
        student,
        teacher,
        center,
        temp_student=passed[0],
        temp_target=passed[1],
        skip_same=skip_same,
        impl=place.impl,
    )
    shifted = teacher.double() - center.double()
    assert_loss_close(student, loss, center_sum, plain, shifted, temps, one_of(data, 1.0, 3.0))


@fuzz
@given(data=st.data())
def test_ema(place: Place, data: Draw) -> None:
    """Lists of any lengths and shapes, dense or not, as a plan or as one call, with shadows."""
    count = size(data, 0, 5)
    shapes = [one_of(data, (), (0,), (1,), (3, 5), (2, 1, 4), (4099,)) for _ in range(count)]
    halves = data.draw(st.booleans(), label="half-precision targets")
    targets = [normal(data, place, s, one_of(data, *FLOATS[: 4 if halves else 2])) for s in shapes]
    targets = [t.contiguous() if 0 in t.stride() else t for t in targets]
    sources = [normal(data, place, s, one_of(data, *FLOATS)) for s in shapes]
    shadows = None
    if data.draw(st.booleans(), label="shadows"):
        like = [normal(data, place, s, one_of(data, *HALVES)) for s in shapes]
        shadows = [s.clone() if 0 in s.stride() else s for s in like]
    momentum = one_of(data, 0.0, 0.3, 0.98, 1.0) if not halves else one_of(data, 0.0, 0.3, 0.98)
    passed = momentum
    if not halves and data.draw(st.booleans(), label="momentum on the device"):
        passed = torch.tensor(momentum, dtype=one_of(data, *FLOATS[:2]), device=place.device)
    weight = float(1 - passed)
    eager = [torch.lerp(t, s.to(t.dtype), weight) for t, s in zip(targets, sources, strict=True)]
    truth = [
        (1 - weight) * t.double() + weight * s.to(t.dtype).double()
        for t, s in zip(targets, sources, strict=True)
    ]
    if data.draw(st.booleans(), label="plan"):
        EmaPlan(targets, sources, shadows, impl=place.impl).update_(passed)
    else:
        ema_update_(targets, sources, passed, shadows=shadows, impl=place.impl)
    for k, (ours, theirs, true) in enumerate(zip(targets, eager, truth, strict=True)):
        assert_within_budget(ours, theirs, true, f"tensor {k}")
        if shadows:
            # Of a half-precision target, the kernel rounds the number before its own rounding.
            slack = torch.finfo(ours.dtype).eps if ours.dtype in HALVES else 0.0
            eager_shadow = ours.to(shadows[k].dtype)
            assert_within_budget(shadows[k], eager_shadow, ours, f"shadow {k}", slack)


@fuzz
@given(data=st.data())
def test_update_center(data: Draw) -> None:
    width, place = size(data, 0, 9), Place("cpu", "torch")
    dtype = one_of(data, *FLOATS[:2])
    center, total = normal(data, place, (width,), dtype), normal(data, place, (width,), dtype)
    momentum, count = one_of(data, 0.0, 0.5, 0.9, 1.0), size(data, 1, 1000)
    truth = momentum * center.double() + (1 - momentum) * total.double() / count
    eager = momentum * center + (1 - momentum) * (total / count)
    on_device = data.draw(st.booleans())
    arguments = (torch.tensor(count), torch.tensor(momentum)) if on_device else (count, momentum)
    update_center_(center, total, *arguments)
    # A momentum that is a float32 tensor is rounded before it is used.
    slack = 1e-7 * (center.double() - total.double() / count).norm() if on_device else 0
    allowed = 2 * (eager.double() - truth).norm() + 5e-7 * truth.norm() + slack
    assert (center.double() - truth).norm() <= allowed
