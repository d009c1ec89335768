"""Exponential moving average of many tensors at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sjepa_kernels._checks import bad_type, bad_value, check_float, check_shape
from sjepa_kernels._dispatch import choose


def ema_update_ref_(
    targets: list[Tensor], sources: list[Tensor], shadows: list[Tensor], weight: float | Tensor
) -> None:
    """Plain PyTorch form: t <- t + weight (s - t), then shadow <- t, with weight = 1 - momentum."""
    same = [s.to(t.dtype) for t, s in zip(targets, sources, strict=True)]
    if not targets:
        return
    if isinstance(weight, Tensor):
        for target, source in zip(targets, same, strict=True):
            target.lerp_(source, weight.to(target.dtype))
    else:
        torch._foreach_lerp_(targets, same, weight)
    if shadows:
        torch._foreach_copy_(shadows, targets)


class EmaPlan:
    """Moves target tensors towards source tensors: t <- m t + (1 - m) s.

    Checks the lists once and keeps what the fused update needs, so that a step is one call.

    Args:
        targets: Tensors to update in place, e.g. the target encoder's parameters. Keep them in
            float32: in half precision a momentum near 1 rounds every change away.
        sources: Tensors to move towards, in the same order and shapes.
        shadows: Optional half-precision copies of the targets, written in the same pass.
        impl: "auto", "triton", "cpu" or "torch".

    Raises:
        TypeError: A tensor is not floating point.
        ValueError: The lists do not pair up, a target appears twice, or devices differ.
    """

    def __init__(
        self,
        targets: Sequence[Tensor],
        sources: Sequence[Tensor],
        shadows: Sequence[Tensor] | None = None,
        *,
        impl: str = "auto",
    ) -> None:
        self.targets = [t.detach() for t in targets]
        self.sources = [s.detach() for s in sources]
        self.shadows = [] if shadows is None else [s.detach() for s in shadows]
        self.impl = impl
        _check_lists(self.targets, self.sources, self.shadows)

    @torch.no_grad()
    def update_(self, momentum: float | Tensor) -> None:
        """Update every target, and its shadow, once.

        Args:
            momentum: m in [0, 1]; a 0-dim tensor is read on the device, so that a captured graph
                follows its schedule.

        Raises:
            ValueError: The momentum is outside [0, 1], or a half-precision target is asked to
                follow a momentum of 0.99 or more, or one that is a tensor.
        """
        _check_momentum(momentum, self.targets)
        if not self.targets:
            return
        choose(self.impl, self.targets[0].device)
        ema_update_ref_(self.targets, self.sources, self.shadows, 1 - momentum)


def ema_update_(
    targets: Sequence[Tensor],
    sources: Sequence[Tensor],
    momentum: float | Tensor,
    *,
    shadows: Sequence[Tensor] | None = None,
    impl: str = "auto",
) -> None:
    """Update targets once: t <- m t + (1 - m) s, in place; a loop should hold an `EmaPlan`.

    Args:
        targets: Tensors to update in place.
        sources: Tensors to move towards.
        momentum: m in [0, 1], a float or a 0-dim tensor.
        shadows: Optional half-precision copies of the targets, written in the same pass.
        impl: "auto", "triton", "cpu" or "torch".
    """
    EmaPlan(targets, sources, shadows, impl=impl).update_(momentum)


def _check_momentum(momentum: float | Tensor, targets: list[Tensor]) -> None:
    if isinstance(momentum, Tensor):
        if momentum.ndim != 0:
            raise bad_value("momentum", tuple(momentum.shape), "pass a float or a 0-dim tensor")
    elif not 0 <= momentum <= 1:
        raise bad_value("momentum", momentum, "pass a number in [0, 1]")
    if isinstance(momentum, Tensor) or momentum >= 0.99:
        for i, target in enumerate(targets):
            if target.dtype in (torch.bfloat16, torch.float16):
                raise bad_value(
                    f"targets[{i}]",
                    f"{target.dtype} with momentum {momentum}",
                    "its changes would round away; keep a float32 target and pass the "
                    "half-precision tensor as a shadow",
                )


def _check_lists(targets: list[Tensor], sources: list[Tensor], shadows: list[Tensor]) -> None:
    for name, others in (("sources", sources), ("shadows", shadows)):
        if len(others) != len(targets) and (name == "sources" or others):
            raise bad_value(name, f"{len(others)} tensors", f"expected {len(targets)}")
        for i, other in enumerate(others):
            check_shape(f"{name}[{i}]", other, tuple(targets[i].shape), f"targets[{i}].shape")
            if other.device != targets[0].device:
                raise bad_value(f"{name}[{i}]", other.device, f"move it to {targets[0].device}")
    seen: set[int] = set()
    for i, target in enumerate(targets):
        check_float(f"targets[{i}]", target)
        check_float(f"sources[{i}]", sources[i])
        if target.device != targets[0].device:
            raise bad_value(f"targets[{i}]", target.device, f"move it to {targets[0].device}")
        if target.numel() and target.data_ptr() in seen:
            raise bad_value(f"targets[{i}]", "the same memory as an earlier target", "pass it once")
        seen.add(target.data_ptr())
    for i, shadow in enumerate(shadows):
        if shadow.dtype not in (torch.bfloat16, torch.float16):
            raise bad_type(f"shadows[{i}]", shadow.dtype, "pass bfloat16 or float16")
