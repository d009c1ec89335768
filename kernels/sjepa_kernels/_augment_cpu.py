"""Calls the C++ form of the crops and views (csrc/augment.cpp).

Draws, bounds and matrices are a few numbers a clip; they come from the reference's own functions.
Shapes: B clips of a batch, M bodies, T frames, V joints.
"""

import ctypes
import dataclasses

import torch
from torch import Tensor

from sjepa_kernels._augment_config import Augmentation, SkeletonTables
from sjepa_kernels._augment_ref import (
    CROP,
    DRAWS,
    FLIP,
    SHIFT,
    VIEW,
    clip_uniforms,
    crop_bounds,
    view_matrix,
)
from sjepa_kernels._native import LIBRARY


def has_cpu_code(joints_RVC: Tensor, augmentation: Augmentation) -> bool:
    """Whether the C++ code takes this store: float32 on a CPU, and the stream of joints."""
    return (
        joints_RVC.device.type == "cpu"
        and joints_RVC.dtype == torch.float32
        and augmentation.stream == "joint"
        and not torch.compiler.is_compiling()
        # A library that was built before this file exists has the same ABI but not the functions.
        and hasattr(LIBRARY, "sjepa_crop_tokens_f32")
    )


def augment_clips_cpu(
    joints_RVC: Tensor,
    offsets_N: Tensor,
    frames_N: Tensor,
    bodies_N: Tensor,
    ids_B: Tensor,
    seed: Tensor,
    step: Tensor,
    skeleton: SkeletonTables,
    augmentation: Augmentation,
    with_clip: bool,
) -> tuple[Tensor, Tensor]:
    """Return the tokens of views and of clips, as `augment_clips_ref` does."""
    assert LIBRARY is not None
    a, store = augmentation, joints_RVC.contiguous()
    batch, joints = len(ids_B), joints_RVC.shape[1]
    segments = a.frames // a.segment_length
    draws = clip_uniforms(seed, step, ids_B, CROP, 2)
    start, valid = crop_bounds(draws, frames_N[ids_B], a.crop_min, a.crop_min_frames)
    body = torch.arange(a.bodies)
    first = (offsets_N[ids_B] + start)[:, None] + body * frames_N[ids_B][:, None]
    first = torch.where(body < bodies_N[ids_B][:, None], first, -1).contiguous()
    sizes = [ctypes.c_int64(n) for n in (batch, a.bodies, a.frames, joints, a.segment_length)]
    threads = ctypes.c_int(torch.get_num_threads())
    shape = (batch * a.bodies, segments * joints, a.segment_length * 3)
    clip, view = store.new_empty(shape), store.new_empty(shape)
    pointers = [_pointer(x) for x in (store, first, valid.contiguous())]
    LIBRARY.sjepa_crop_tokens_f32(*pointers, *sizes, _pointer(clip), threads)

    # Axis and pivot are of two joints of the first body: twice (B, S, l, 3) as (B, 1, T, 2, 3).
    grid = clip.view(batch, a.bodies, segments, joints, a.segment_length, 3)[:, 0]
    ends = [grid[:, :, joint] for joint in (skeleton.center, skeleton.spine_top)]
    two = torch.stack(ends, dim=3).reshape(batch, 1, a.frames, 2, 3)
    uniforms = clip_uniforms(seed, step, ids_B, VIEW, DRAWS)
    axis = dataclasses.replace(skeleton, center=0, spine_top=1)
    matrix = view_matrix(two, uniforms, axis, a).contiguous()
    pivot = store.new_zeros(batch, 3)
    if a.form == "body":
        pivot = two[:, 0, :, 0].mean(dim=1).contiguous()
    shift = ((uniforms[:, SHIFT:FLIP] * 2 - 1) * a.translation).contiguous()
    mirrored = (uniforms[:, FLIP] < a.flip).to(torch.uint8)
    given = (clip, matrix, pivot, shift, mirrored, skeleton.flip_V.long().contiguous())
    pointers = [_pointer(x) for x in given]
    LIBRARY.sjepa_view_tokens_f32(*pointers, *sizes, _pointer(view), threads)
    return view, clip if with_clip else view.new_empty(0, *shape[1:])


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
