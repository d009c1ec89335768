# SPDX-License-Identifier: Apache-2.0
"""Checks of a packed store, and of the seed and step of a draw.

Shapes: R rows (all bodies' frames packed), N clips of the store, B clips of a batch, V joints,
C coordinates.
"""

import torch
from torch import Tensor

from sjepa_kernels._checks import (
    bad_value,
    check_float,
    check_ids,
    check_int64,
    check_same_device,
    check_shape,
    readable,
)


def check_store(
    joints_RVC: Tensor, offsets_N: Tensor, frames_N: Tensor, bodies_N: Tensor, ids_B: Tensor
) -> None:
    """Check the store's tensors, and that the clips of a batch lie inside it.

    Like ids, the values of the tables are read where that costs no device sync.
    """
    check_float("joints", joints_RVC)
    if joints_RVC.ndim != 3 or joints_RVC.shape[2] != 3:
        raise bad_value("joints", tuple(joints_RVC.shape), "expected (R, V, 3)")
    tables = {"offsets": offsets_N, "frames": frames_N, "bodies": bodies_N}
    check_same_device(joints_RVC.device, ids=ids_B, **tables)
    clips = offsets_N.shape[0] if offsets_N.ndim else 0
    for name, table in tables.items():
        check_shape(name, table, (clips,), "(N,)")
        check_int64(name, table)
    if ids_B.ndim != 1:
        raise bad_value("ids", tuple(ids_B.shape), "expected (B,)")
    check_ids("ids", ids_B, clips)
    if not readable(ids_B):
        return
    first, frames, bodies = (table[ids_B] for table in tables.values())
    if int(frames.min()) < 1:
        raise bad_value("frames", int(frames.min()), "clips have at least one frame")
    if int(bodies.min()) < 0:
        raise bad_value("bodies", int(bodies.min()), "clips have no or some bodies")
    end = int((first + bodies * frames).max())
    if int(first.min()) < 0 or end > joints_RVC.shape[0]:
        fix = f"clips must lie inside the {joints_RVC.shape[0]} rows of joints"
        raise bad_value("offsets", f"a clip with rows from {int(first.min())} to {end}", fix)


def check_crops(frames_N: Tensor, ids_B: Tensor, start_B: Tensor, length_B: Tensor) -> None:
    """Check where crops are cut; that they lie inside their clips, where that can be read."""
    for name, tensor in (("start", start_B), ("length", length_B)):
        check_shape(name, tensor, tuple(ids_B.shape), "(B,)")
        check_int64(name, tensor)
        check_same_device(frames_N.device, **{name: tensor})
    if not readable(ids_B):
        return
    if int(start_B.min()) < 0:
        raise bad_value("start", int(start_B.min()), "crops start at frame 0 or later")
    if int(length_B.min()) < 1:
        raise bad_value("length", int(length_B.min()), "crops have at least one frame")
    beyond = int((start_B + length_B - frames_N[ids_B]).max())
    if beyond > 0:
        raise bad_value("length", f"{beyond} frames beyond a clip", "crops lie inside their clips")


def check_keys(device: torch.device, seed: Tensor, step: Tensor) -> None:
    """Check the two scalars that every draw depends on."""
    for name, tensor in (("seed", seed), ("step", step)):
        check_shape(name, tensor, (), "()")
        check_int64(name, tensor)
        check_same_device(device, **{name: tensor})
