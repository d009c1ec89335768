# SPDX-License-Identifier: Apache-2.0
"""AdamW, the moving average of the weights and half-precision copies of both, of many tensors.

A step of AdamW reads every weight; so does the average that follows it, and so do the copies. Here
each weight is read once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sjepa_kernels._dispatch import choose
from sjepa_kernels._library import Op
from sjepa_kernels.optim.adamw_cpu import has_cpu_code, run_cpp
from sjepa_kernels.optim.adamw_kernel import launch
from sjepa_kernels.optim.rows import (
    Addresses,
    Column,
    Numbers,
    Rows,
    Settings,
    batches,
    check_numbers,
    check_rows,
    settings_of,
)


def adamw_ema_ref_(
    rows: Rows,
    settings: Sequence[Settings],
    momentum: float | Tensor | None,
    clip: float | Tensor | None,
    skip: Tensor | None,
) -> None:
    """Plain PyTorch form, weight by weight; the factors that cancel are float64."""
    for row in zip(*rows, strict=True):
        param, grad, exp_avg, exp_avg_sq, step, target, shadow, target_shadow, group = row
        lr, beta1, beta2, eps, weight_decay = settings[group]
        lr = lr.double() if isinstance(lr, Tensor) else lr
        if grad is not None:
            g = grad.to(param.dtype)
            g = g if clip is None else g * clip
            t = (step + 1).double()
            m = torch.lerp(exp_avg, g, 1 - beta1)
            v = beta2 * exp_avg_sq + (1 - beta2) * g * g
            rate, root = lr / (1 - beta1**t), (1 - beta2**t).sqrt()
            moved = param * (1 - lr * weight_decay) - rate * m / (v.sqrt() / root + eps)
            for old, new in ((param, moved), (exp_avg, m), (exp_avg_sq, v), (step, t)):
                _write(old, new, skip)
        if target is not None:
            assert momentum is not None
            rest = momentum.double() if isinstance(momentum, Tensor) else momentum
            weight = torch.as_tensor(1 - rest, dtype=target.dtype, device=target.device)
            _write(target, torch.lerp(target, param, weight), skip)
        for copy, original in ((shadow, param), (target_shadow, target)):
            if copy is not None:
                _write(copy, original, skip)


def _write(old: Tensor, new: Tensor, skip: Tensor | None) -> None:
    old.copy_(new if skip is None else torch.where(skip == 0, new.to(old.dtype), old))


def _addresses(tensors: list[Tensor], places: list[int], count: int) -> list[int]:
    """Return a column: 0 but at the places of the tensors."""
    found = [0] * count
    for k, tensor in zip(places, tensors, strict=True):
        found[k] = tensor.data_ptr()
    return found


def _body(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    targets: list[Tensor],
    shadows: list[Tensor],
    target_shadows: list[Tensor],
    learning: list[int],
    following: list[int],
    shadowed: list[int],
    target_shadowed: list[int],
    groups: list[int],
    rates: list[Tensor],
    momentum: Tensor | None,
    clip: Tensor | None,
    skip: Tensor | None,
    values: list[float],
    impl: str,
) -> None:
    """Move the rows of one launch; lists of places say whose the tensors before them are.

    `values` has momentum and clip, where they are no tensors, then rate, betas, eps and weight
    decay of each group.
    """
    count = len(params)
    halves = [*shadows, *target_shadows]
    rows = Addresses(
        params=[p.data_ptr() for p in params],
        exp_avgs=_addresses(exp_avgs, learning, count),
        exp_avg_sqs=_addresses(exp_avg_sqs, learning, count),
        steps=_addresses(steps, learning, count),
        targets=_addresses(targets, following, count),
        shadows=_addresses(shadows, shadowed, count),
        target_shadows=_addresses(target_shadows, target_shadowed, count),
        counts=[p.numel() for p in params],
        groups=groups,
        grads=_addresses(grads, learning, count),
        grad_dtype=grads[0].dtype if grads else params[0].dtype,
        half=halves[0].dtype if halves else None,
    )
    settings = [values[k : k + 5] for k in range(2, len(values), 5)]
    numbers = Numbers(
        rates or [group[0] for group in settings],
        values[0] if momentum is None else momentum,
        values[1] if clip is None else clip,
        0.0 if skip is None else skip,
    )
    constants = [group[1:] for group in settings]
    if impl == "cpu":
        run_cpp(rows, constants, numbers)
    else:
        launch(rows, constants, numbers, params[0])


_op = Op(
    "adamw_ema_",
    _body,
    None,
    mutates=(
        "params", "exp_avgs", "exp_avg_sqs", "steps", "targets", "shadows", "target_shadows",
    ),
)  # fmt: skip


def move_(
    rows: Rows,
    settings: Sequence[Settings],
    momentum: float | Tensor | None,
    clip: float | Tensor | None,
    skip: Tensor | None,
    impl: str,
) -> None:
    """Move rows that have been checked by one step; a launch for each combination of dtypes."""
    with torch.no_grad():
        for fused, part in batches(rows):
            chosen = choose(impl, part.params[0].device, cpu=has_cpu_code(part))
            if fused and chosen != "torch":
                _op(*_arguments(part, settings, momentum, clip, skip), chosen)
            else:
                adamw_ema_ref_(part, settings, momentum, clip, skip)


def _arguments(
    rows: Rows,
    settings: Sequence[Settings],
    momentum: float | Tensor | None,
    clip: float | Tensor | None,
    skip: Tensor | None,
) -> list[Any]:
    """Return the arguments of the op but its last."""
    device = rows.params[0].device
    used = sorted(set(rows.groups))
    groups = [settings[k] for k in used]
    learning = [k for k, grad in enumerate(rows.grads) if grad is not None]
    moved = rows.grads, rows.exp_avgs, rows.exp_avg_sqs, rows.steps
    followers = [_there(x) for x in (rows.targets, rows.shadows, rows.target_shadows)]
    rates = [group.lr for group in groups]
    return [
        rows.params,
        *([column[k] for k in learning] for column in moved),
        *(tensors for tensors, _ in followers),
        learning,
        *(places for _, places in followers),
        [used.index(k) for k in rows.groups],
        _scalars(rates, device) if any(isinstance(x, Tensor) for x in rates) else [],
        *(x.detach().to(device) if isinstance(x, Tensor) else None for x in (momentum, clip, skip)),
        [
            *(float(x) if isinstance(x, float | int) else 1.0 for x in (momentum, clip)),
            *(0.0 if isinstance(x, Tensor) else float(x) for group in groups for x in group),
        ],
    ]


def _there(column: Column) -> tuple[list[Tensor], list[int]]:
    """Return the tensors of a column and their places."""
    places = [k for k, x in enumerate(column) if x is not None]
    return [x for x in column if x is not None], places


def _scalars(numbers: list[float | Tensor], device: torch.device) -> list[Tensor]:
    """Return tensors of one dtype on a device; those that are such tensors stay as they are."""
    found = [
        x.detach().to(device)
        if isinstance(x, Tensor)
        else torch.full((), x, dtype=torch.float64, device=device)
        for x in numbers
    ]
    return found if len({x.dtype for x in found}) == 1 else [x.double() for x in found]


def adamw_ema_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    exp_avgs: Sequence[Tensor | None],
    exp_avg_sqs: Sequence[Tensor | None],
    steps: Sequence[Tensor | None],
    *,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    targets: Sequence[Tensor | None] | None = None,
    momentum: float | Tensor | None = None,
    shadows: Sequence[Tensor | None] | None = None,
    target_shadows: Sequence[Tensor | None] | None = None,
    clip: float | Tensor | None = None,
    skip: Tensor | None = None,
    impl: str = "auto",
) -> None:
    """Move weights by one step of AdamW and their averages after them; `FusedAdamWEma` in a loop.

    With t = step + 1 and g the gradient, times `clip` if there is one (Loshchilov and Hutter 2019,
    algorithm 2, in the order of `torch.optim.AdamW`):

        exp_avg <- beta1 exp_avg + (1 - beta1) g
        exp_avg_sq <- beta2 exp_avg_sq + (1 - beta2) g^2
        param <- (1 - lr weight_decay) param
                 - lr / (1 - beta1^t) exp_avg / (sqrt(exp_avg_sq / (1 - beta2^t)) + eps)
        target <- momentum target + (1 - momentum) param
        shadow <- param and target_shadow <- target, rounded; step <- t

    All in place, in one launch for weights of one dtype whose gradients have one dtype. A weight
    without a gradient stays as it is; its target follows it all the same. Every list is as long as
    `params`; one with None has nothing for that weight.

    Args:
        params: Weights, float32 or float64.
        grads: Their gradients: of the weight's dtype, bfloat16 or float16, in any strides.
        exp_avgs: First moments, like the weights.
        exp_avg_sqs: Second moments, like the weights.
        steps: Counts of steps done, 0-dim, float32, on the weights' device.
        lr: Learning rate, a float or a 0-dim tensor, as are `momentum` and `clip`. A tensor on a
            GPU is read there: a captured graph follows it.
        betas: Decay of the first and of the second moment, in [0, 1).
        eps: Added to the root of the second moment.
        weight_decay: Decay of the weights.
        targets: Averages that follow the weights, of the same dtype.
        momentum: m in [0, 1], needed where there are targets.
        shadows: Half-precision copies of the weights, all bfloat16 or all float16.
        target_shadows: Copies of the targets, of the same dtype.
        clip: A factor on the gradients, such as that of a clipped norm.
        skip: A 0-dim float tensor, read on its device: unless it is 0, nothing is changed.
        impl: "auto", "triton", "cpu" or "torch".

    Raises:
        TypeError: A tensor has a dtype that is not named here.
        ValueError: Lists, shapes or devices do not fit, a number is out of its range, or a tensor
            that is written appears twice or is expanded.
    """
    nothing = [None] * len(params)
    rows = Rows(
        list(params),
        list(grads),
        list(exp_avgs),
        list(exp_avg_sqs),
        list(steps),
        list(nothing if targets is None else targets),
        list(nothing if shadows is None else shadows),
        list(nothing if target_shadows is None else target_shadows),
        [0] * len(params),
    )
    settings = settings_of(lr, betas, eps, weight_decay)
    check_rows(rows)
    check_numbers(rows, momentum, clip, skip)
    move_(rows, [settings], momentum, clip, skip, impl)
