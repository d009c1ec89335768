# SPDX-License-Identifier: Apache-2.0
"""An optimiser whose step also moves the averages of the weights and their copies."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from sjepa_kernels._checks import HALVES, bad_type, bad_value
from sjepa_kernels._dispatch import IMPLS
from sjepa_kernels.optim.adamw import move_
from sjepa_kernels.optim.rows import Rows, Settings, check_numbers, check_row, settings_of

# What state dictionaries of `torch.optim.AdamW` have beside the settings, and how a step here is.
_OPTIONS = {
    "amsgrad": False,
    "maximize": False,
    "foreach": None,
    "differentiable": False,
    "fused": True,
    "decoupled_weight_decay": True,
}


class FusedAdamWEma(torch.optim.Optimizer):
    """AdamW, the moving average of the weights and half-precision copies of both, in one pass.

    What `torch.optim.AdamW`, `EmaPlan` and a cast do one after the other, with the same state: a
    state dictionary of either optimiser can be loaded into the other. The formula is that of
    `adamw_ema_`; one launch moves up to 224 weights. Nothing waits for a device: counts of steps
    are on it, and so are rate, momentum, clip and skip where they are tensors, so that a captured
    graph follows them. A first step must come before a capture.

    A weight without a gradient takes that of its shadow, if it computed in its place, and else
    stays as it is; its target follows it all the same.

    Args:
        params: Weights, float32 or float64, or groups of them, as `torch.optim.AdamW` takes them.
        lr: Learning rate, a float or a 0-dim tensor.
        betas: Decay of the first and of the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decay of the weights.
        amsgrad: Must be False.
        maximize: Must be False.
        targets: For each weight, in the order of all groups, the average that follows it, or None.
        shadows: For each weight its half-precision copy, or None.
        target_shadows: For each weight the copy of its target, or None.
        impl: "auto", "triton", "cpu" or "torch".

    Raises:
        TypeError: A tensor has a dtype that a weight, target or copy cannot have.
        ValueError: A setting is out of range or not supported, the lists do not fit the weights, or
            a tensor that is written appears twice or is expanded.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        targets: Sequence[Tensor | None] | None = None,
        shadows: Sequence[Tensor | None] | None = None,
        target_shadows: Sequence[Tensor | None] | None = None,
        impl: str = "auto",
    ) -> None:
        if impl not in IMPLS:
            raise bad_value("impl", repr(impl), f"choose one of {', '.join(IMPLS)}")
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        options = _OPTIONS | {"amsgrad": amsgrad, "maximize": maximize}
        self._beside: dict[Tensor, tuple[Tensor | None, ...]] = {}
        super().__init__(params, settings | options)
        self.impl = impl
        weights = [p for group in self.param_groups for p in group["params"]]
        lists = {"targets": targets, "shadows": shadows, "target_shadows": target_shadows}
        columns = {name: [None] * len(weights) if x is None else x for name, x in lists.items()}
        for name, column in columns.items():
            if len(column) != len(weights):
                raise bad_value(name, f"{len(column)} entries", f"expected {len(weights)}")
        seen: set[int] = set()
        halves: set[torch.dtype] = set()
        for k, (weight, *beside) in enumerate(zip(weights, *columns.values(), strict=True)):
            row = (weight, None, None, None, None, *beside)
            named = zip(Rows._fields[:8], row, strict=True)
            first = weights[0].device
            check_row({f"{name}[{k}]": x for name, x in named}, first, seen, halves)
            self._beside[weight] = tuple(beside)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of weights, without targets or copies.

        Args:
            param_group: As `torch.optim.AdamW` takes it.

        Raises:
            TypeError: A weight is neither float32 nor float64.
            ValueError: A setting is out of range or not supported, or a weight is on another device
                than the others, or expanded.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        _check_group(group)
        for k, weight in enumerate(group["params"]):
            row = dict.fromkeys((f"{name}[{k}]" for name in Rows._fields[1:8]), None)
            first = self.param_groups[0]["params"][0]
            check_row({f"params[{k}]": weight} | row, first.device, set(), set())
        group["capturable"] = all(p.is_cuda for p in group["params"])

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        momentum: float | Tensor | None = None,
        clip: float | Tensor | None = None,
        skip: Tensor | None = None,
    ) -> Any:
        """Move the weights once, and all that follows them.

        Args:
            closure: Computes loss and gradients anew.
            momentum: m of target <- m target + (1 - m) weight, in [0, 1], a float or a 0-dim
                tensor; needed where there are targets.
            clip: A factor on the gradients, which stay as they are: with it the norm is clipped
                without a pass of its own.
            skip: A 0-dim float tensor: unless it is 0, nothing is changed, neither weights nor
                moments, counts, targets and copies.

        Returns:
            What the closure returned.

        Raises:
            TypeError: A gradient or number has a dtype that is not supported.
            ValueError: A gradient is sparse, there are two for one weight, or a number is out of
                range.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rows = self._rows()
        check_numbers(rows, momentum, clip, skip)
        settings = [_settings_of(group) for group in self.param_groups]
        move_(rows, settings, momentum, clip, skip, self.impl)
        # The kernels write where autograd does not see it.
        beside = [x for column in rows.like_params for x in column if x is not None]
        increment_version([*rows.params, *beside])
        return loss

    def _rows(self) -> Rows:
        """Return what a step moves; what is moved for the first time gets its state."""
        found: list[tuple[Any, ...]] = []
        index = 0
        for number, group in enumerate(self.param_groups):
            for weight in group["params"]:
                beside = self._beside.get(weight, (None, None, None))
                grad = _gradient(weight, beside[1], index)
                index += 1
                state: dict[str, Tensor] = {}
                if grad is not None:
                    state = self.state[weight] or self._begin(weight)
                elif beside == (None, None, None):
                    continue
                moments = map(state.get, ("exp_avg", "exp_avg_sq", "step"))
                found.append((weight, grad, *moments, *beside, number))
        columns = map(list, zip(*found, strict=True)) if found else [[]] * len(Rows._fields)
        return Rows._make(columns)

    def _begin(self, weight: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[weight]
        state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        return state

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"impl": self.impl, "_beside": self._beside}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over state, also that of `torch.optim.AdamW`, whose steps may be on the CPU."""
        for group in state["param_groups"]:
            _check_group(group)
            for weight in group["params"]:
                _take_over(state["state"].get(weight, {}), weight)
        super().__setstate__(state)
        for group in self.param_groups:
            group |= _OPTIONS | {"capturable": all(p.is_cuda for p in group["params"])}


def _gradient(weight: Tensor, shadow: Tensor | None, index: int) -> Tensor | None:
    """Return the gradient of a weight, or that of the copy which computed in its place."""
    grad = weight.grad
    name = f"params[{index}].grad"
    if shadow is not None and shadow.grad is not None:
        if grad is not None:
            fix = "add them up in the weight's first"
            raise bad_value(f"shadows[{index}].grad", f"a gradient beside {name}", fix)
        grad = shadow.grad
    if grad is None:
        return None
    if grad.layout != torch.strided:
        raise bad_value(name, grad.layout, "sparse gradients are not supported: pass a dense one")
    if grad.dtype not in (weight.dtype, *HALVES):
        raise bad_type(name, grad.dtype, f"pass {weight.dtype}, bfloat16 or float16")
    return grad


def _settings_of(group: dict[str, Any]) -> Settings:
    beta1, beta2 = group["betas"]
    return Settings(group["lr"], beta1, beta2, group["eps"], group["weight_decay"])


def _check_group(group: dict[str, Any]) -> None:
    for name in ("amsgrad", "maximize"):
        if group.get(name):
            raise bad_value(name, True, "it is not supported: use torch.optim.AdamW")
    settings_of(*(group[name] for name in ("lr", "betas", "eps", "weight_decay")))


def _take_over(state: dict[str, Any], weight: Tensor) -> None:
    """Check what was remembered of a weight, and move its count of steps to it."""
    if not state:
        return
    for name in ("exp_avg", "exp_avg_sq"):
        moment = state.get(name)
        if moment is None or moment.shape != weight.shape:
            found = None if moment is None else tuple(moment.shape)
            raise bad_value(f"state {name}", found, f"expected {tuple(weight.shape)}")
    step = torch.as_tensor(state["step"], dtype=torch.float32)
    state["step"] = step.detach().to(weight.device).reshape(())
