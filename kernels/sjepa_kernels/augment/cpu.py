# SPDX-License-Identifier: Apache-2.0
"""Calls the C++ form of the crops and views (csrc/augment.cpp).

Draws, bounds and matrices are a few numbers per clip; they come from the reference's own functions.
Shapes: B clips of a batch, M bodies, T frames, V joints.
"""

import ctypes
import dataclasses
from typing import Any

import torch
from torch import Tensor

from sjepa_kernels.augment import reference
from sjepa_kernels.augment.reference import DRAWS, FLIP, SHIFT, clip_uniforms
from sjepa_kernels.augment.settings import Augmentation, PackedStore
from sjepa_kernels.native import LIBRARY
from sjepa_kernels.purposes import CROP, VIEW
from sjepa_kernels.tubelets import to_frames, to_stream, to_tubelets


def has_cpu_code(joints_RVC: Tensor, augmentation: Augmentation) -> bool:
    """Whether the C++ code takes this: a float32 store on a CPU, resized crops, joints or all."""
    return (
        joints_RVC.device.type == "cpu"
        and joints_RVC.dtype == torch.float32
        and augmentation.sampling == "resize"
        and augmentation.stream in ("joint", "all")
        and not torch.compiler.is_compiling()
        and LIBRARY is not None
    )


def augment_clips_cpu(store: PackedStore, *args: Any) -> tuple[Tensor, Tensor]:
    """Return the tokens of views and of clips; the arguments are those of `augment_clips_ref`."""
    ids_B, seed, step, skeleton, a, with_clip = args
    assert LIBRARY is not None
    rows = store.joints_RVC.contiguous()
    batch, joints = len(ids_B), rows.shape[1]
    frames_B = store.frames_N[ids_B]
    segments = a.frames // a.segment_length
    draws = clip_uniforms(seed, step, ids_B, CROP, 4)
    bend = reference.time_bend(draws, a.time_warp, torch.float32)
    start, valid = reference.crop_bounds(draws, frames_B, a.crop_min, a.crop_min_frames)
    body = torch.arange(a.bodies)
    first = (store.offsets_N[ids_B] + start)[:, None] + body * frames_B[:, None]
    first = torch.where(body < store.bodies_N[ids_B][:, None], first, -1).contiguous()
    sizes = [ctypes.c_int64(n) for n in (batch, a.bodies, a.frames, joints, a.segment_length)]
    threads = ctypes.c_int(torch.get_num_threads())
    shape = (batch * a.bodies, segments * joints, a.segment_length * 3)
    clip, view = rows.new_empty(shape), rows.new_empty(shape)
    bent = None if bend is None else bend.contiguous()
    pointers = [_pointer(x) for x in (rows, first, valid.contiguous(), bent)]
    # Axis and pivot are of two joints of the first body.
    two = rows.new_empty(batch, 1, a.frames, 2, 3)
    spine = (ctypes.c_int64 * 2)(skeleton.center, skeleton.spine_top)
    LIBRARY.sjepa_crop_tokens_f32(*pointers, *sizes, spine, _pointer(clip), _pointer(two), threads)

    uniforms = clip_uniforms(seed, step, ids_B, VIEW, DRAWS)
    axis = dataclasses.replace(skeleton, center=0, spine_top=1)
    matrix = reference.view_matrix(two, uniforms, axis, a).contiguous()
    pivot = rows.new_zeros(batch, 3)
    if a.form == "body":
        pivot = two[:, 0, :, 0].mean(dim=1).contiguous()
    shift = ((uniforms[:, SHIFT:FLIP] * 2 - 1) * a.translation).contiguous()
    mirrored = (uniforms[:, FLIP] < a.flip).to(torch.uint8)
    given = (clip, first, matrix, pivot, shift, mirrored, skeleton.flip_V.long().contiguous())
    pointers = [_pointer(x) for x in given]
    LIBRARY.sjepa_view_tokens_f32(*pointers, *sizes, _pointer(view), threads)
    # Streams and missing joints come last, in passes of their own, which few training steps want.
    if a.stream == "all":
        view = _all_streams(view, skeleton.parents_V, a)
        clip = _all_streams(clip, skeleton.parents_V, a) if with_clip else clip
    if a.joint_drop > 0:
        missing = reference.missing_joints(seed, step, ids_B, joints, a.joint_drop)
        view.view(batch, a.bodies, segments, joints, view.shape[2]).masked_fill_(
            missing[:, None, None, :, None], 0.0
        )
    return view, clip if with_clip else view.new_empty(0, *view.shape[1:])


def _all_streams(tokens: Tensor, parents_V: Tensor, a: Augmentation) -> Tensor:
    frames = to_frames(tokens, len(parents_V))
    return to_tubelets(to_stream(frames, parents_V, "all"), a.segment_length)


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
