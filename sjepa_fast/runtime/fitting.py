# SPDX-License-Identifier: Apache-2.0
"""Whether tensors of a checkpoint fit the model or optimiser that is to take them.

An optimiser believes what it is given: a moment of another shape than its parameter makes its fused
step write outside of its memory. So everything is compared before anything is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sjepa_fast.runtime.manifest import refusal

# What a group says of how its optimiser steps on this device, or of this moment.
_NOT_COMPARED = ("params", "lr", "capturable", "fused", "foreach")
_KEYS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
OTHER = "use a checkpoint of this configuration"
_FINITE = "use an earlier checkpoint, or train again"


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return all tensors that an optimiser remembers, as `optimizer.<parameter>.<key>`."""
    return {
        f"optimizer.{index}.{key}": value
        for index, (_, parameter) in enumerate(_parameters(optimizer))
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def expected_moments(
    stored: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Return what an optimiser that has not stepped yet would remember under the stored names.

    A moment is like its parameter. A step count is where the optimiser wants it: on a GPU with the
    parameter, if it is fused or captured.
    """
    expected = {}
    for index, (group, parameter) in enumerate(_parameters(optimizer)):
        counts_there = group.get("capturable") or group.get("fused")
        count = torch.zeros((), device=parameter.device if counts_there else "cpu")
        for key in _KEYS:
            name = f"optimizer.{index}.{key}"
            if name in stored:
                expected[name] = count if key == "step" else parameter.detach()
    return expected


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[tuple[dict[str, Any], nn.Parameter]]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield group, parameter


def describe_groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return each group's settings that are plain values, and how many parameters it has."""
    described = []
    for group in optimizer.param_groups:
        kept = {key: value for key, value in group.items() if key not in _NOT_COMPARED}
        plain = {k: v for k, v in kept.items() if isinstance(v, bool | int | float | tuple)}
        described.append({**plain, "parameters": len(group["params"])})
    # As JSON has it, in which tuples are lists.
    normal: list[dict[str, Any]] = json.loads(json.dumps(described, default=float))
    return normal


def check_groups(path: Path, text: str, own: list[dict[str, Any]]) -> None:
    """Raise InputError unless the groups that a file describes are those of the optimiser.

    A setting that only one of them knows, as of a newer version of the optimiser, may differ.
    """
    try:
        stored = json.loads(text)
        counts = [group["parameters"] for group in stored]
        differing = [
            f"{key} {theirs[key]!a:.80}, not {ours[key]}"
            for ours, theirs in zip(own, stored, strict=False)
            for key in sorted(ours.keys() & theirs.keys())
            if ours[key] != theirs[key]
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise refusal(path, "describes no groups of parameters", OTHER) from error
    if counts != [group["parameters"] for group in own]:
        raise refusal(path, f"has groups of {counts!a:.80} parameters", OTHER)
    if differing:
        raise refusal(path, f"was written with {differing[0]}", OTHER)


def check_tensors(path: Path, stored: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise InputError unless both have the same names, shapes and types, and memory for them.

    Nor may a number be NaN or infinite: one of them would be in every feature.
    """
    for name in sorted(stored.keys() ^ own.keys()):
        reason = f"has no {name}" if name in own else f"has {name!a:.80}, which nothing here takes"
        raise refusal(path, reason, OTHER)
    for name, tensor in stored.items():
        wanted = own[name]
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            found = f"{tuple(tensor.shape)!s:.80} {tensor.dtype}"
            reason = f"has {name} as {found}, not {tuple(wanted.shape)} {wanted.dtype}"
            raise refusal(path, reason, OTHER)
        if not tensor.is_contiguous() or tensor.untyped_storage().nbytes() < tensor.nbytes:
            raise refusal(path, f"has {name} without its own memory", OTHER)
        if not bool(torch.isfinite(tensor).all()):
            raise refusal(path, f"has {name} that is not finite", _FINITE)
