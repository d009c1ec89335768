"""What the files of the two centered cross-entropies share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.kernels.cases import assert_within_budget, gradients
from tests.kernels.fuzzing import Draw
from tests.kernels.spoils import VECTOR, WRONG_CHOICE, WRONG_POSITIVE, Ways

SPOILS: dict[str, Ways] = {
    "center": VECTOR,
    "temp_student": WRONG_POSITIVE,
    "temp_target": WRONG_POSITIVE,
    "impl": WRONG_CHOICE,
}


def temperatures(draw: Draw) -> tuple[list[float], dict[str, Any]]:
    """Both temperatures, and how they are passed: as numbers or on the device."""
    temps = [draw.one_of(0.04, 0.1, 2.0) for _ in range(2)]
    passed = [
        torch.tensor(t, dtype=torch.float64, device=draw.device) if draw.size(0, 1) else t
        for t in temps
    ]
    return temps, dict(zip(("temp_student", "temp_target"), passed, strict=True))


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
