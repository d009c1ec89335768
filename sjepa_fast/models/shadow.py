# SPDX-License-Identifier: Apache-2.0
"""Copies of networks whose weights for matrix products are in half precision.

Under autocast a step rounds every float32 weight again, a launch for each. A copy has them rounded
once, with the same values: for the target encoder by the EMA update, in its own pass; for a trained
network after the optimiser, all at once.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def shadow(network: Network, dtype: torch.dtype) -> tuple[Network, dict[str, Tensor]]:
    """Make the half-precision copy that computes for a network under autocast.

    Linear layers get their weight in half precision, learning where the original does, and beside
    their bias a rounded one, see `product_bias`. All else stays shared, as autocast leaves it in
    float32. Returns the copy, and by parameter name its own tensors, to be kept up to date.
    """
    twin = copy.deepcopy(network)
    shadows: dict[str, Tensor] = {}
    for path, module in network.named_modules():
        own = twin.get_submodule(path)
        for name, buffer in module.named_buffers(recurse=False):
            own.register_buffer(name, buffer)
        for name, weight in module.named_parameters(recurse=False):
            own.register_parameter(name, weight)
        if isinstance(module, nn.Linear):
            weight, bias = (x.detach().to(dtype) for x in (module.weight, module.bias))
            half = nn.Parameter(weight, requires_grad=module.weight.requires_grad)
            own.register_parameter("weight", half)
            own.register_buffer("half_bias", bias)
            shadows |= {f"{path}.weight": half, f"{path}.bias": bias}
    return twin, shadows


def product_bias(layer: nn.Linear) -> Tensor:
    """Return a layer's bias for its product alone: detached, in half precision where there is one.

    The gradient of the bias itself then stays in float32.
    """
    half: Tensor = getattr(layer, "half_bias", layer.bias)
    return half.detach()


class TrainedShadows:
    """The half-precision weights of trained networks, beside the float32 ones of the optimiser.

    `masters` and `halves` pair up; a half is rounded from its master. The gradient of one that
    learns becomes the master's, as autocast's copies would have it.
    """

    def __init__(self, masters: list[Tensor], halves: list[Tensor]) -> None:
        self.masters, self.halves = masters, halves
        pairs = zip(masters, halves, strict=True)
        self.learning = [(m, h, torch.zeros_like(m)) for m, h in pairs if h.requires_grad]

    def hand_over(self) -> None:
        """Give the halves' gradients to the masters, after a backward.

        A master that has a gradient, of another part of the batch, gets the sum, in float32.
        """
        used = [(m, h.grad, own) for m, h, own in self.learning if h.grad is not None]
        grads, owns = [grad for _, grad, _ in used], [own for _, _, own in used]
        if any(master.grad is not None for master, _, _ in used):
            wide = [torch.empty_like(own) for own in owns]
            torch._foreach_copy_(wide, grads)
            torch._foreach_add_(owns, wide)
        else:
            torch._foreach_copy_(owns, grads)
        for master, _, own in used:
            master.grad = own
        self.forget()

    def forget(self) -> None:
        """Drop the halves' gradients."""
        for _, half, _ in self.learning:
            half.grad = None

    def round(self) -> None:
        """Round the masters again, after the optimiser changed them."""
        with torch.no_grad():
            torch._foreach_copy_(self.halves, self.masters)
