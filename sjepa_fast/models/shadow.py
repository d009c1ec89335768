"""A copy of an encoder whose linear layers hold its weights in half precision."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sjepa_fast.models.encoder import SkeletonTransformer


def shadow_encoder(
    encoder: SkeletonTransformer, dtype: torch.dtype
) -> tuple[SkeletonTransformer, dict[str, Tensor]]:
    """Make the half-precision copy that computes for a target encoder under autocast.

    Autocast would round every float32 weight again in each step; the EMA update can write the
    rounded copy in the same pass, with the same values. Norms, position tables and whitening stay
    shared, as autocast leaves them in float32. Returns the copy, and by parameter name the
    half-precision tensors to keep up to date.
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
