# SPDX-License-Identifier: Apache-2.0
"""What a check of the self-check returns, and how most are made.

A triple is `(ours, eager, truth)`: what an op gave in float32, what plain PyTorch gives in float32,
and the formula in float64.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Triple = tuple[Tensor, Tensor, Tensor]


def normals(*shape: int, seed: int = 0) -> Tensor:
    """Return normal numbers of a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_gradients(
    ours: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    leaves: list[Tensor],
    device: str,
    rounded: torch.dtype = torch.float32,
) -> list[Triple]:
    """Return triples for the output of a function of `leaves` and for each of its gradients."""
    runs = []
    for f, dtype in ((ours, rounded), (plain, rounded), (plain, torch.float64)):
        inputs = [x.to(device, rounded).to(dtype).requires_grad_() for x in leaves]
        out = f(*inputs)
        grad = torch.linspace(0.5, 1.5, out.numel(), dtype=dtype, device=device).view_as(out)
        runs.append([out.detach(), *torch.autograd.grad(out, inputs, grad)])
    return list(zip(*runs, strict=True))
