# SPDX-License-Identifier: Apache-2.0
"""From a packed store to tokens in one launch: crop, resize, view, stream and tubelets.

Shapes: R rows (all bodies' frames packed), N clips of the store, B clips of a batch, M bodies,
T frames, V joints, C = 3 coordinates, l frames per segment, S = T/l segments, P = l*C numbers per
token.
"""

from typing import Any, cast

import torch
from torch import Tensor

from sjepa_kernels._checks import check_int64, check_same_device, check_shape
from sjepa_kernels._dispatch import choose
from sjepa_kernels._library import Op
from sjepa_kernels._triton import compute_dtype
from sjepa_kernels.augment.checks import check_keys, check_store
from sjepa_kernels.augment.cpu import augment_clips_cpu, has_cpu_code
from sjepa_kernels.augment.kernel import launch
from sjepa_kernels.augment.reference import augment_clips_ref
from sjepa_kernels.augment.settings import Augmentation, PackedStore, SkeletonTables
from sjepa_kernels.tubelets import TokenStream, stream_coords


def _outputs(
    joints_RVC: Tensor, ids_B: Tensor, sizes: list[int], stream: TokenStream, with_clip: bool
) -> tuple[Tensor, Tensor]:
    frames, bodies, length = sizes[:3]
    shape = (frames // length * joints_RVC.shape[1], length * stream_coords(stream))
    dtype, rows = compute_dtype(joints_RVC.dtype), ids_B.shape[0] * bodies
    view = joints_RVC.new_empty((rows, *shape), dtype=dtype)
    return view, view.new_empty((rows if with_clip else 0, *shape))


def _forward(
    joints_RVC: Tensor, offsets_N: Tensor, frames_N: Tensor, bodies_N: Tensor,
    ids_B: Tensor, seed: Tensor, step: Tensor, flip_V: Tensor, parents_V: Tensor,
    sizes: list[int], ranges: list[float], form: str, stream: str, with_clip: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    view, clip = _outputs(joints_RVC, ids_B, sizes, cast(TokenStream, stream), with_clip)
    if view.numel():
        inputs = joints_RVC, offsets_N, frames_N, bodies_N, ids_B, seed, step, flip_V, parents_V
        launch([x.contiguous() for x in inputs], view, clip, sizes, ranges, form, stream)
    return view, clip


def _forward_fake(*inputs: Any) -> tuple[Tensor, Tensor]:
    joints_RVC, ids_B, sizes, (stream, with_clip) = inputs[0], inputs[4], inputs[9], inputs[12:14]
    return _outputs(joints_RVC, ids_B, sizes, stream, with_clip)


_op = Op("augment_clips", _forward, _forward_fake)


@torch.no_grad()
def augment_clips(
    joints_RVC: Tensor,
    offsets_N: Tensor,
    frames_N: Tensor,
    bodies_N: Tensor,
    ids_B: Tensor,
    seed: Tensor,
    step: Tensor,
    skeleton: SkeletonTables,
    augmentation: Augmentation,
    *,
    with_clip: bool = True,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Tokens of a view of each clip and of the clip itself, from one read of the store.

    Random crop, linear resize to T with a warp of time (or frames by number), then for the view
    F A (x - pivot) + pivot + shift (see `Augmentation`), then the stream, of the view without its
    missing joints, and tubelets. All draws are Philox words at (draw, clip id, step, purpose), so
    they are the same on every device and for any split of a batch.
    Source: method 1.4, 1.5, 2 and 3.3.

    Args:
        joints_RVC: Floating point; body m of frame t of clip i is row offset + m * frames + t. A
            clip whose rows are not all here is an error on a CPU; elsewhere the tables are not
            read by the host, and its tokens are NaN.
        offsets_N: First row of each clip, int64.
        frames_N: Frames of each clip, int64, at least 1.
        bodies_N: Bodies of each clip, int64.
        ids_B: Clips of the batch, int32 or int64; they may repeat.
        seed: 0-dim int64.
        step: 0-dim int64, so that a captured graph draws anew at each replay.
        skeleton: Mirror, parents and axis.
        augmentation: Sizes, ranges and stream.
        with_clip: Whether the second output is wanted; if not, it has no rows.
        impl: "auto", "triton", "cpu" or "torch".

    Returns:
        View and clip tokens, (B*M, S*V, l*3) each (l*9 of stream "all"), in the tubelet order:
        token segment * V + joint, numbers (frame, coordinate); float32, or float64 for a float64
        store. Absent bodies, and bodies that are zero in the whole crop, are zero. Not
        differentiable.

    Raises:
        TypeError: A dtype is not usable.
        ValueError: A shape, device, id or `impl` is not usable.
    """
    store = PackedStore(joints_RVC, offsets_N, frames_N, bodies_N)
    check_store(*store, ids_B)
    check_keys(joints_RVC.device, seed, step)
    for name, table in (("flip", skeleton.flip_V), ("parents", skeleton.parents_V)):
        check_shape(f"skeleton.{name}", table, (joints_RVC.shape[1],), "(V,)")
        check_int64(f"skeleton.{name}", table)
        check_same_device(joints_RVC.device, **{f"skeleton.{name}": table})
    chosen = choose(impl, joints_RVC.device, cpu=has_cpu_code(joints_RVC, augmentation))
    keys, a = (ids_B, seed, step), augmentation
    if chosen == "cpu":
        return augment_clips_cpu(store, *keys, skeleton, a, with_clip)
    if chosen == "torch" or a.sampling == "index":
        return augment_clips_ref(store, *keys, skeleton, a, with_clip)
    sizes = [a.frames, a.bodies, a.segment_length, a.crop_min_frames]
    sizes += [skeleton.center, skeleton.spine_top]
    ranges = [a.crop_min, a.time_warp, a.rotation, a.tilt, a.translation, a.scale, a.shear]
    ranges += [a.flip, a.joint_drop]
    tables = skeleton.flip_V, skeleton.parents_V
    view, clip = _op(*store, *keys, *tables, sizes, ranges, a.form, a.stream, with_clip)
    return view, clip
