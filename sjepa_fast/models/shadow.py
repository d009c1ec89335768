"""A twin of an encoder whose linear layers hold half-precision copies of its weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sjepa_fast.models.encoder import SkeletonTransformer


def shadow_encoder(
    encoder: SkeletonTransformer, dtype: torch.dtype
) -> tuple[SkeletonTransformer, dict[str, Tensor]]:
    """Make the twin that a target encoder computes with under autocast.

    Autocast would round every float32 weight anew in each step; whoever updates the weights can
    write the rounded copy in the same pass, with the same values. Norms, position tables and
    whitening stay shared, as autocast leaves them in float32.

    Args:
        encoder: The encoder in float32, without gradients.
        dtype: Precision of autocast.

    Returns:
        The twin, and by parameter name the half-precision tensors to keep up to date.
    """
    twin = copy.deepcopy(encoder)
    shadows: dict[str, Tensor] = {}
    for path, module in encoder.named_modules():
        own = twin.get_submodule(path)
        for name, buffer in module.named_buffers(recurse=False):
            own.register_buffer(name, buffer)
        for name, weight in module.named_parameters(recurse=False):
            if isinstance(module, nn.Linear):
                half = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
                shadows[f"{path}.{name}"] = half
                own.register_parameter(name, half)
            else:
                own.register_parameter(name, weight)
    return twin, shadows
