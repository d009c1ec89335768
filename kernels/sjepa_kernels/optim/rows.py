# SPDX-License-Identifier: Apache-2.0
"""What a step of AdamW is told of each weight, and which weights are moved together.

A row is one weight with all that moves with it; the columns are lists of equal length.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sjepa_kernels._checks import (
    HALVES,
    bad_type,
    bad_value,
    check_float,
    check_fraction,
    check_not_expanded,
    check_number,
    check_once,
    check_shape,
    is_dense,
)

Column = list[Tensor | None]
_FROM_ZERO = "pass a finite number, 0 or more"
_MOMENTS = ("exp_avgs", "exp_avg_sqs", "steps")
# Rows of one launch. Their gradients' addresses are arguments, of which a kernel takes 4 KiB; as
# many again are the rates of groups.
MOST = 224


class Settings(NamedTuple):
    """The settings of a group of weights; they are those of `torch.optim.AdamW`."""

    lr: float | Tensor
    beta1: float
    beta2: float
    eps: float
    weight_decay: float


class Rows(NamedTuple):
    """The columns; `groups` are places in a list of `Settings`.

    A weight without a gradient, or one that has not been moved yet, has no moments and no step.
    """

    params: list[Tensor]
    grads: Column
    exp_avgs: Column
    exp_avg_sqs: Column
    steps: Column
    targets: Column
    shadows: Column
    target_shadows: Column
    groups: list[int]

    @property
    def like_params(self) -> tuple[Column, ...]:
        """The columns of tensors that are read beside the weight, element by element."""
        return self.exp_avgs, self.exp_avg_sqs, self.targets, self.shadows, self.target_shadows

    def chosen(self, places: list[int]) -> "Rows":
        """Return some of the rows."""
        return Rows._make([column[k] for k in places] for column in self)


def batches(rows: Rows) -> Iterator[tuple[bool, Rows]]:
    """Divide rows into those of one launch, and yield those for which there is no kernel.

    The latter, with False, are of weights that do not fill one stretch of memory, of empty ones and
    of those beside which something lies in another order.
    """
    fused: dict[tuple[torch.dtype, torch.dtype], list[int]] = {}
    idle: dict[torch.dtype, list[int]] = {}
    plain: list[int] = []
    grads = rows.grads
    beside = zip(*rows.like_params, strict=True)
    for k, (param, others) in enumerate(zip(rows.params, beside, strict=True)):
        if not _alike(param, others):
            plain.append(k)
        elif (grad := grads[k]) is None:
            idle.setdefault(param.dtype, []).append(k)
        else:
            grads[k] = _in_order(param, grad)
            fused.setdefault((param.dtype, grad.dtype), []).append(k)
    for dtype, places in idle.items():
        # Without a gradient there is no dtype of one: they go with any.
        key = next((key for key in fused if key[0] == dtype), (dtype, dtype))
        fused.setdefault(key, []).extend(places)
    for places in fused.values():
        for start in range(0, len(places), MOST):
            yield True, rows.chosen(places[start : start + MOST])
    if plain:
        yield False, rows.chosen(plain)


def _alike(param: Tensor, others: tuple[Tensor | None, ...]) -> bool:
    """Whether all lie in memory without gaps and in the same order."""
    count, plain = param.numel(), param.is_contiguous()
    alike = count > 0 and (plain or is_dense(param))
    for x in others:
        if x is not None:
            if x.numel() != count:
                raise bad_value("state", f"{x.numel()} elements", f"expected {count}, as weights")
            alike = alike and (x.is_contiguous() if plain else x.stride() == param.stride())
    return alike


def _in_order(param: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient in the order in which the weight lies in memory."""
    if grad.stride() == param.stride() or (grad.is_contiguous() and param.is_contiguous()):
        return grad
    return torch.empty_like(param, dtype=grad.dtype).copy_(grad)


def half_of(rows: Rows) -> torch.dtype | None:
    """Return the dtype of the half-precision copies, if there are any."""
    copies = (x for column in (rows.shadows, rows.target_shadows) for x in column if x is not None)
    return next((x.dtype for x in copies), None)


class Numbers(NamedTuple):
    """What may change in every step: floats, or 0-dim tensors that are read on their device.

    The rates, one a group, are all floats or all tensors of one dtype.
    """

    rates: list[float] | list[Tensor]
    momentum: float | Tensor
    clip: float | Tensor
    skip: float | Tensor


class Addresses(NamedTuple):
    """Where the tensors of rows begin, 0 for those that are not there, and how large they are."""

    params: list[int]
    exp_avgs: list[int]
    exp_avg_sqs: list[int]
    steps: list[int]
    targets: list[int]
    shadows: list[int]
    target_shadows: list[int]
    counts: list[int]
    groups: list[int]
    grads: list[int]
    grad_dtype: torch.dtype
    half: torch.dtype | None

    @property
    def fixed(self) -> tuple[list[int], ...]:
        """The columns that stay from step to step."""
        return self[:9]


def check_rows(rows: Rows) -> None:
    """Raise TypeError or ValueError unless the tensors of all rows fit together."""
    for name, column in zip(rows._fields[1:8], rows[1:8], strict=True):
        if len(column) != len(rows.params):
            raise bad_value(name, f"{len(column)} entries", f"expected {len(rows.params)}")
    seen: set[int] = set()
    halves: set[torch.dtype] = set()
    for k, row in enumerate(zip(*rows[:8], strict=True)):
        named = {f"{name}[{k}]": x for name, x in zip(rows._fields, row, strict=False)}
        check_row(named, rows.params[0].device, seen, halves)


def check_row(
    row: dict[str, Tensor | None], device: torch.device, seen: set[int], halves: set[torch.dtype]
) -> None:
    """Raise TypeError or ValueError unless the tensors of a row fit together.

    Args:
        row: By name, in the order of the columns.
        device: Where they must be.
        seen: Addresses of the tensors of earlier rows that are written.
        halves: Dtypes of earlier copies.
    """
    names = list(row)
    param, grad, *_, target, _, target_shadow = row.values()
    assert param is not None
    for name, x in row.items():
        column = name.partition("[")[0]
        if x is None:
            if column in _MOMENTS and grad is not None:
                raise bad_value(name, "None", f"pass a tensor, as {names[1]} is one")
            continue
        if x.layout != torch.strided:
            raise bad_value(name, x.layout, "pass a dense tensor")
        _check_dtype(name, x, column, param, halves)
        if column == "steps":
            check_shape(name, x, (), "()")
        else:
            check_shape(name, x, tuple(param.shape), f"{names[0]}.shape")
        if x.device != device:
            raise bad_value(name, x.device, f"move it to {device}")
        if column != "grads":
            check_not_expanded(name, x)
            check_once(name, x, seen)
    if target is None and target_shadow is not None:
        raise bad_value(names[7], "a copy of a target that is None", "pass the target, or None")


def _check_dtype(
    name: str, x: Tensor, column: str, param: Tensor, halves: set[torch.dtype]
) -> None:
    check_float(name, x)
    if column == "params":
        if x.dtype in HALVES:
            fix = "its changes would round away; keep a float32 weight and pass the "
            raise bad_type(name, x.dtype, fix + "half-precision tensor as a shadow")
    elif column.endswith("shadows"):
        halves.add(x.dtype)
        if x.dtype not in HALVES or len(halves) > 1:
            raise bad_type(name, x.dtype, "pass bfloat16 or float16, for all copies the same")
    elif column == "grads":
        if x.dtype not in (param.dtype, *HALVES):
            raise bad_type(name, x.dtype, f"pass {param.dtype}, as the weight, bfloat16 or float16")
    else:
        wanted = torch.float32 if column == "steps" else param.dtype
        if x.dtype != wanted:
            raise bad_type(name, x.dtype, f"pass {wanted}")


def settings_of(
    lr: float | Tensor, betas: tuple[float, float], eps: float, weight_decay: float
) -> Settings:
    """Return the settings of a group; raises TypeError or ValueError if one is out of range."""
    if len(betas) != 2:
        raise bad_value("betas", betas, "pass two numbers in [0, 1)")
    for beta in betas:
        _check_setting("betas", beta, lambda x: 0 <= x < 1, "pass numbers in [0, 1)")
    for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
        if isinstance(value, Tensor) and name == "lr":
            check_float(name, value)
            check_number(name, value, lambda x: 0 <= x < math.inf, _FROM_ZERO)
        else:
            _check_setting(name, value, lambda x: 0 <= x < math.inf, _FROM_ZERO)
    return Settings(lr, *betas, eps, weight_decay)


def _check_setting(
    name: str, value: float | Tensor, good: Callable[[float], bool], fix: str
) -> None:
    if isinstance(value, Tensor):
        raise bad_type(name, "a tensor", "pass a float")
    check_number(name, value, good, fix)


def check_numbers(
    rows: Rows, momentum: float | Tensor | None, clip: float | Tensor | None, skip: Tensor | None
) -> None:
    """Raise TypeError or ValueError unless what changes in every step is in range."""
    follows = any(target is not None for target in rows.targets)
    if follows != (momentum is not None):
        fix = "there are targets: pass a number in [0, 1]" if follows else "there are no targets"
        raise bad_value("momentum", momentum, fix)
    if momentum is not None:
        check_fraction("momentum", momentum)
    if isinstance(clip, float | int):
        check_number("clip", clip, lambda x: 0 <= x < math.inf, _FROM_ZERO)
    for name, number in (("momentum", momentum), ("clip", clip), ("skip", skip)):
        if isinstance(number, Tensor):
            # Clip may be NaN where the step is skipped.
            check_float(name, number)
            check_shape(name, number, (), "()")
