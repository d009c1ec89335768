# SPDX-License-Identifier: Apache-2.0
"""Losses that hold a center, or a seed and a step, as modules.

Shapes: R rows, D features; S student crops, T teacher crops, B images per crop, K prototypes.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sjepa_kernels._checks import bad_value
from sjepa_kernels.losses.center import (
    AsyncReduce,
    CenterSum,
    Reduce,
    start_center_sum,
    sum_of_used_rows,
    update_center_,
)
from sjepa_kernels.losses.centered_ce import centered_softmax_cross_entropy
from sjepa_kernels.losses.crop_pairs_ce import Crops, centered_crop_cross_entropy, stacked_crops
from sjepa_kernels.losses.sigreg import sigreg
from sjepa_kernels.losses.vicreg import vicreg
from sjepa_kernels.losses.visreg import visreg


def all_reduce_if_distributed(total: Tensor) -> None:
    """Sum a tensor over all processes, in place, where a process group is initialised."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)


class _CenteredLoss(nn.Module):
    """Base of the losses: holds the center and moves it.

    The center is (D,); a checkpoint may have it as (1, D) or (1, 1, D), as DINO's, iBOT's and
    lightly's losses do, or as `center.center`, as those of lightly that hold a module for it.
    """

    center: Tensor

    def __init__(
        self, width: int, temp_student: float, momentum: float, all_reduce: AsyncReduce, impl: str
    ) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(width))
        self.temp_student = temp_student
        self.center_momentum = momentum
        self.all_reduce = all_reduce
        self.impl = impl
        self._pending: CenterSum | None = None
        self.register_state_dict_pre_hook(_settle_center)
        self.register_load_state_dict_pre_hook(_read_center)

    def settle(self) -> None:
        """Move the center by a sum over processes that is still under way, if there is one.

        Happens by itself before the center is used and saved; call it to read `center`.
        """
        if self._pending is not None:
            total, rows = self._pending.result()
            self._pending = None
            update_center_(self.center, total, rows, self.center_momentum)

    def _move(self, center_sum_D: Tensor, rows: int) -> None:
        started = start_center_sum(center_sum_D, rows, self.all_reduce)
        self._pending = started
        if started.work is None:
            self.settle()


def _settle_center(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    assert isinstance(module, _CenteredLoss)
    module.settle()


def _read_center(module: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
    """Give another project's center this module's name and shape; a sum under way is for nothing.

    What has not D numbers is left for `load_state_dict` to refuse.
    """
    assert isinstance(module, _CenteredLoss)
    module._pending = None
    name = prefix + "center"
    if name + ".center" in state and name not in state:
        state[name] = state.pop(name + ".center")
    center = state.get(name)
    if isinstance(center, Tensor) and center.shape == (
        *[1] * (center.ndim - 1),
        *module.center.shape,
    ):
        state[name] = center.flatten()


class CenteredCrossEntropy(_CenteredLoss):
    """`centered_softmax_cross_entropy` with its center, updated once per call in training.

    The batch mean that moves the center is taken over the rows of all processes.

    Args:
        width: D.
        temp_student: Student temperature.
        temp_target: Target temperature.
        center_momentum: m in c <- m c + (1 - m) mean.
        update: "after" uses the center as it was before the batch (DINO's order), "before" moves
            it first, which costs one more read of the teacher.
        all_reduce: Sums its argument, the batch sum of the teacher with the number of rows
            appended (D + 1,), over processes, in place or as a new tensor. Of one that returns a
            handle with `wait()`, as `partial(torch.distributed.all_reduce, async_op=True)` does,
            the sum goes on beside the backward pass and moves the center before its next use.
        impl: "auto", "triton", "cpu" or "torch".
    """

    def __init__(
        self,
        width: int,
        temp_student: float = 0.1,
        temp_target: float = 0.06,
        center_momentum: float = 0.9,
        *,
        update: str = "after",
        all_reduce: AsyncReduce = all_reduce_if_distributed,
        impl: str = "auto",
    ) -> None:
        super().__init__(width, temp_student, center_momentum, all_reduce, impl)
        if update not in ("after", "before"):
            raise bad_value("update", repr(update), "choose after or before")
        self.temp_target = temp_target
        self.update = update

    def forward(
        self,
        student_RD: Tensor,
        teacher: Tensor,
        teacher_index_R: Tensor | None = None,
        row_weights_R: Tensor | None = None,
    ) -> Tensor:
        """Return `centered_softmax_cross_entropy`, 0-dim, and move the center in training mode.

        A batch without rows has the loss 0 and moves the center by the other processes' rows alone.
        """
        rows = student_RD.shape[0]
        self.settle()
        if self.training and self.update == "before":
            self._move(sum_of_used_rows(teacher, teacher_index_R), rows)
            self.settle()
        temps = {"temp_student": self.temp_student, "temp_target": self.temp_target}
        of_rows = {"teacher_index_R": teacher_index_R, "row_weights_R": row_weights_R}
        options: dict[str, Any] = {**temps, **of_rows, "impl": self.impl}
        loss, center_sum = centered_softmax_cross_entropy(
            student_RD, teacher, self.center, **options
        )
        if self.training and self.update == "after":
            self._move(center_sum, rows)
        return loss


class CenteredCropCrossEntropy(_CenteredLoss):
    """`centered_crop_cross_entropy` (DINO's loss) with its center, moved after use in training.

    The batch mean that moves the center is taken over the rows of all processes.

    Args:
        width: K.
        temp_student: Student temperature.
        center_momentum: m in c <- m c + (1 - m) mean.
        skip_same: Leave out the pairs that see the same crop.
        all_reduce: As in `CenteredCrossEntropy`.
        impl: As in `CenteredCrossEntropy`.
    """

    def __init__(
        self,
        width: int,
        temp_student: float = 0.1,
        center_momentum: float = 0.9,
        *,
        skip_same: bool = True,
        all_reduce: AsyncReduce = all_reduce_if_distributed,
        impl: str = "auto",
    ) -> None:
        super().__init__(width, temp_student, center_momentum, all_reduce, impl)
        self.skip_same = skip_same

    def forward(
        self, student_SBK: Crops, teacher_TBK: Crops, temp_target: float | Tensor = 0.04
    ) -> Tensor:
        """Return `centered_crop_cross_entropy`, 0-dim, and move the center in training mode."""
        self.settle()
        teacher_TBK = stacked_crops("teacher", teacher_TBK)
        temps = {"temp_student": self.temp_student, "temp_target": temp_target}
        loss, center_sum = centered_crop_cross_entropy(
            student_SBK, teacher_TBK, self.center, **temps, skip_same=self.skip_same, impl=self.impl
        )
        if self.training:
            self._move(center_sum, teacher_TBK.shape[0] * teacher_TBK.shape[1])
        return loss


class _Directed(nn.Module):
    """Base of the losses along random directions: holds their seed, and counts the calls."""

    seed: Tensor
    step: Tensor

    def __init__(self, directions: int, seed: int, impl: str) -> None:
        super().__init__()
        self.register_buffer("seed", torch.tensor(seed))
        self.register_buffer("step", torch.tensor(0))
        self.directions = directions
        self.impl = impl

    def _next_step(self) -> Tensor:
        """Return the step of this call, and count it in training mode."""
        # A copy: the saved step must not change under a graph that is still to be traced.
        step = self.step.clone()
        if self.training:
            self.step += 1
        return step


class SigReg(_Directed):
    """`sigreg` with a seed and the number of its calls in training, which both are saved.

    Each call in training draws new directions; in evaluation they stay as they are. Every process
    must construct it with the same seed and call it as often, so that all have the same directions.

    Args:
        directions: K.
        seed: Of the directions.
        all_reduce: As in `sigreg`; by default over all processes where a group is initialised.
        impl: "auto", "triton", "cpu" or "torch".
    """

    def __init__(
        self,
        directions: int = 1024,
        *,
        seed: int = 0,
        all_reduce: Reduce = all_reduce_if_distributed,
        impl: str = "auto",
    ) -> None:
        super().__init__(directions, seed, impl)
        self.all_reduce = all_reduce

    def forward(self, features: Tensor) -> Tensor:
        """Return `sigreg` of (N, D) or (V, N, D), 0-dim, and count the call in training mode."""
        options: dict[str, Any] = {"directions": self.directions, "all_reduce": self.all_reduce}
        return sigreg(features, self.seed, step=self._next_step(), **options, impl=self.impl)


class VisReg(_Directed):
    """`visreg`'s loss with a seed and the number of its calls in training, as in `SigReg`.

    Args:
        directions: K.
        seed: Of the directions.
        weights: Of center, scale and shape.
        impl: "auto", "triton", "cpu" or "torch".
    """

    def __init__(
        self,
        directions: int = 256,
        *,
        seed: int = 0,
        weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
        impl: str = "auto",
    ) -> None:
        super().__init__(directions, seed, impl)
        self.weights = weights

    def forward(self, features: Tensor) -> Tensor:
        """Return the loss of (N, D) or (V, N, D), 0-dim, and count the call in training mode."""
        options: dict[str, Any] = {"directions": self.directions, "weights": self.weights}
        step = self._next_step()
        return visreg(features, self.seed, step=step, **options, impl=self.impl).loss


class VicReg(nn.Module):
    """`vicreg`'s loss with its weights.

    Args:
        gamma: Deviation that is enough.
        eps: Added to the variances.
        weights: Of variance and covariance.
    """

    def __init__(
        self,
        gamma: float = 1.0,
        eps: float = 1e-4,
        *,
        weights: tuple[float, float] = (25.0, 1.0),
    ) -> None:
        super().__init__()
        self.gamma = gamma
        self.eps = eps
        self.weights = weights

    def forward(self, features: Tensor) -> Tensor:
        """Return the loss of (N, D) or (V, N, D), 0-dim."""
        return vicreg(features, gamma=self.gamma, eps=self.eps, weights=self.weights).loss
