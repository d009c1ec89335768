# SPDX-License-Identifier: Apache-2.0
"""Crops and views in plain PyTorch: the reference of `augment_clips`, piece by piece.

Shapes: R rows (all bodies' frames packed), N clips of the store, B clips of a batch, M bodies,
T frames, V joints, C = 3 coordinates, l frames per segment, U draws per clip.
"""

import torch
from torch import Tensor

from sjepa_kernels._checks import bad_value, check_integers, check_purpose
from sjepa_kernels._triton import compute_dtype
from sjepa_kernels.augment.checks import check_crops, check_keys, check_store
from sjepa_kernels.augment.frames import random_frames
from sjepa_kernels.augment.settings import Augmentation, PackedStore, SkeletonTables
from sjepa_kernels.philox import philox4x32, uniform
from sjepa_kernels.purposes import CROP, MISSING, VIEW
from sjepa_kernels.tubelets import to_stream, to_tubelets

# Order of a clip's draws for its view.
SHIFT, FLIP, SCALE, SHEAR, DRAWS = 3, 6, 7, 8, 14


def clip_uniforms(seed: Tensor, step: Tensor, ids_B: Tensor, purpose: int, count: int) -> Tensor:
    """Draw uniforms in [0, 1) that depend on (seed, step, clip id, purpose) alone.

    Draw k is word k mod 4 of Philox4x32-10 at the counters (k div 4, id, step, purpose).

    Args:
        seed: 0-dim int64.
        step: 0-dim int64.
        ids_B: Clip ids, int32 or int64.
        purpose: What the numbers are for, 0 to 2^32 - 1.
        count: Numbers per clip.

    Returns:
        (B, count) float32.

    Raises:
        TypeError: A dtype is not usable.
        ValueError: A shape, device, purpose or count is not usable.
    """
    check_keys(ids_B.device, seed, step)
    if ids_B.ndim != 1:
        raise bad_value("ids", tuple(ids_B.shape), "expected (B,)")
    check_integers("ids", ids_B)
    check_purpose(purpose)
    if count < 0:
        raise bad_value("count", count, "draw no numbers or some")
    counters = torch.arange((count + 3) // 4, device=ids_B.device)
    words = philox4x32(seed, counters[None, :], ids_B[:, None], step, purpose)
    drawn = torch.stack([uniform(word) for word in words], dim=-1).flatten(1)
    return drawn[:, :count]


def crop_bounds(
    uniforms_B2: Tensor, valid_B: Tensor, crop_min: float, crop_min_frames: int
) -> tuple[Tensor, Tensor]:
    """Random crop of method 1.5: share U(crop_min, 1), at least `crop_min_frames` frames.

    Args:
        uniforms_B2: Draws in [0, 1) for length and start.
        valid_B: Frames of each clip, int64.
        crop_min: Smallest share kept.
        crop_min_frames: Fewest frames kept, of clips that have them.

    Returns:
        First frame and number of frames, int64, (B,) each.
    """
    share = crop_min + (1 - crop_min) * uniforms_B2[:, 0]
    length = (share * valid_B).floor().long().clamp_min(crop_min_frames)
    length = torch.minimum(length, valid_B)
    start = (uniforms_B2[:, 1] * (valid_B - length + 1)).floor().long()
    return torch.minimum(start, valid_B - length), length


def time_bend(uniforms_B4: Tensor, warp: float, dtype: torch.dtype) -> Tensor | None:
    """Numbers a and b of a crop's time warp, U(-warp, warp), (B, 2), from the draws of the crop."""
    return (uniforms_B4[:, 2:4].to(dtype) * 2 - 1) * warp if warp > 0 else None


def crop_resize(
    joints_RVC: Tensor,
    offsets_N: Tensor,
    frames_N: Tensor,
    bodies_N: Tensor,
    ids_B: Tensor,
    start_B: Tensor,
    length_B: Tensor,
    frames: int,
    bodies: int,
) -> Tensor:
    """Cut [start, start + length) from each clip and resize it linearly to `frames`.

    Half-pixel centers without anti-aliasing, source = (t + 0.5) length / T - 0.5, clamped
    (method 1.5). Absent bodies are zero.

    Args:
        joints_RVC: The store; body m of frame t of clip i is row offset + m * frames + t.
        offsets_N: First row of each clip, int64.
        frames_N: Frames of each clip, int64.
        bodies_N: Bodies of each clip, int64.
        ids_B: Clip ids, int32 or int64.
        start_B: First frame, int64.
        length_B: Frames in the crop, int64.
        frames: T.
        bodies: M.

    Returns:
        (B, M, T, V, C) in float32, or float64 for float64.

    Raises:
        TypeError: A dtype is not usable.
        ValueError: A shape, device, id, crop or count is not usable.
    """
    check_store(joints_RVC, offsets_N, frames_N, bodies_N, ids_B)
    check_crops(frames_N, ids_B, start_B, length_B)
    for name, count in (("frames", frames), ("bodies", bodies)):
        if count < 1:
            raise bad_value(name, count, "give at least 1")
    store = PackedStore(joints_RVC, offsets_N, frames_N, bodies_N)
    return resized(store, ids_B, start_B, length_B, frames, bodies)


def resized(
    store: PackedStore,
    ids_B: Tensor,
    start_B: Tensor,
    length_B: Tensor,
    frames: int,
    bodies: int,
    bend_B2: Tensor | None = None,
) -> Tensor:
    """What `crop_resize` returns, played at the speed that a and b of `bend_B2` bend."""
    joints_RVC = store.joints_RVC
    device, dtype = joints_RVC.device, compute_dtype(joints_RVC.dtype)
    time = torch.arange(frames, device=device, dtype=dtype)
    source = (time + 0.5) * (length_B[:, None].to(dtype) / frames) - 0.5
    if bend_B2 is not None:
        share = (time + 0.5) / frames
        a, b = bend_B2.to(dtype)[:, :, None].unbind(1)
        bent = share * (1 - share) * (a + b * (1 - 2 * share))
        source = source + length_B[:, None].to(dtype) * bent
    last = (length_B[:, None] - 1).to(dtype)
    source = torch.minimum(source.clamp_min(0), last)
    lower = source.floor()
    weight = (source - lower)[:, None, :, None, None]
    low, high = (
        take_frames(store, ids_B, start_B[:, None] + frame.long(), bodies)
        for frame in (lower, torch.minimum(lower + 1, last))
    )
    return low + (high - low) * weight


def take_frames(store: PackedStore, ids_B: Tensor, index_BT: Tensor, bodies: int) -> Tensor:
    """Frames (below the clip's count) of each clip, (B, M, T, V, C); absent bodies are zero."""
    joints_RVC, offsets_N, frames_N, bodies_N = store
    dtype = compute_dtype(joints_RVC.dtype)
    body = torch.arange(bodies, device=joints_RVC.device)
    present = (body < bodies_N[ids_B][:, None])[:, :, None]
    if joints_RVC.shape[0] == 0:
        shape = len(ids_B), bodies, index_BT.shape[1], *joints_RVC.shape[1:]
        return joints_RVC.new_zeros(shape, dtype=dtype)
    first = offsets_N[ids_B][:, None] + body * frames_N[ids_B][:, None]
    # An absent body reads the store's first row, and is zeroed.
    rows = torch.where(present, first[:, :, None] + index_BT[:, None], 0)
    return torch.where(present[..., None, None], joints_RVC[rows].to(dtype), 0.0)


def rotation_about(axis_B3: Tensor, angle_B: Tensor) -> Tensor:
    """Rodrigues' rotation matrices for column vectors, about unit axes by angles in radians.

    R = I + sin(a) K + (1 - cos(a)) K K, (B, 3, 3).
    """
    x, y, z = axis_B3.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).view(-1, 3, 3)
    eye = torch.eye(3, device=axis_B3.device, dtype=axis_B3.dtype)
    sine, cosine = angle_B.sin()[:, None, None], angle_B.cos()[:, None, None]
    return eye + sine * cross + (1 - cosine) * (cross @ cross)


def body_axis(x_BMTVC: Tensor, center: int, spine_top: int) -> Tensor:
    """Unit vector from `center` to `spine_top` of the first body, clip mean, (B, 3).

    A body without extent (all zeros) gets the vertical.
    """
    spine = (x_BMTVC[:, 0, :, spine_top] - x_BMTVC[:, 0, :, center]).mean(dim=1)
    length = spine.norm(dim=-1, keepdim=True)
    unit = torch.eye(3, device=spine.device, dtype=spine.dtype)
    return torch.where(length > 1e-6, spine / length.clamp_min(1e-6), unit[1])


def shear_matrix(amounts_B6: Tensor) -> Tensor:
    """Ones on the diagonal, the six amounts row by row beside it, (B, 3, 3)."""
    a, b, c, d, e, f = amounts_B6.unbind(-1)
    one = torch.ones_like(a)
    return torch.stack([one, a, b, c, one, d, e, f, one], dim=-1).view(-1, 3, 3)


def view_matrix(
    x_BMTVC: Tensor, uniforms_BU: Tensor, skeleton: SkeletonTables, augmentation: Augmentation
) -> Tensor:
    """Shear * scale * rotation of each clip, (B, 3, 3), for column vectors."""
    signed = uniforms_BU.to(x_BMTVC.dtype) * 2 - 1
    unit = torch.eye(3, device=x_BMTVC.device, dtype=x_BMTVC.dtype)
    axes = [unit[i].expand(len(signed), 3) for i in range(3)]
    if augmentation.form == "body":
        axis = body_axis(x_BMTVC, skeleton.center, skeleton.spine_top)
        matrix = rotation_about(axis, signed[:, 0] * augmentation.rotation)
        if augmentation.tilt > 0:
            tilt_x = rotation_about(axes[0], signed[:, 1] * augmentation.tilt)
            tilt_z = rotation_about(axes[2], signed[:, 2] * augmentation.tilt)
            matrix = tilt_z @ tilt_x @ matrix
    else:
        # Method 1.5 writes each factor for the angle that Rodrigues' formula calls negative.
        x, y, z = (rotation_about(axes[i], -signed[:, i] * augmentation.rotation) for i in range(3))
        matrix = z @ y @ x if augmentation.form == "axes" else y @ x
    if augmentation.scale > 0:
        matrix = matrix * (1 + signed[:, SCALE, None, None] * augmentation.scale)
    if augmentation.shear > 0:
        matrix = shear_matrix(signed[:, SHEAR:DRAWS] * augmentation.shear) @ matrix
    return matrix


def random_view(
    x_BMTVC: Tensor, uniforms_BU: Tensor, skeleton: SkeletonTables, augmentation: Augmentation
) -> Tensor:
    """One geometric view of each clip, the same for all bodies; all-zero bodies stay zero.

    It takes 14 draws in [0, 1) per clip: angle, tilt x and z (form "axes": the angles about x, y
    and z), shift x, y, z, flip, scale, six entries of the shear.
    """
    matrix = view_matrix(x_BMTVC, uniforms_BU, skeleton, augmentation)
    pivot = x_BMTVC.new_zeros(())
    if augmentation.form == "body":
        pivot = x_BMTVC[:, 0, :, skeleton.center].mean(dim=1)[:, None, None, None, :]
    moved = torch.einsum("bmtvc,bdc->bmtvd", x_BMTVC - pivot, matrix)
    if augmentation.flip > 0:
        mirror = 1 - 2 * torch.eye(3, device=moved.device, dtype=moved.dtype)[0]
        chosen = (uniforms_BU[:, FLIP] < augmentation.flip)[:, None, None, None, None]
        moved = torch.where(chosen, moved[:, :, :, skeleton.flip_V] * mirror, moved)
    signed = uniforms_BU[:, SHIFT:FLIP].to(x_BMTVC.dtype) * 2 - 1
    shift = (signed * augmentation.translation)[:, None, None, None, :]
    present = (x_BMTVC != 0).flatten(2).any(dim=2)[:, :, None, None, None]
    return torch.where(present, moved + pivot + shift, x_BMTVC)


def missing_joints(seed: Tensor, step: Tensor, ids_B: Tensor, joints: int, share: float) -> Tensor:
    """Which joints of each clip's view are missing, (B, V) bool."""
    return clip_uniforms(seed, step, ids_B, MISSING, joints) < share


def augment_clips_ref(
    store: PackedStore,
    ids_B: Tensor,
    seed: Tensor,
    step: Tensor,
    skeleton: SkeletonTables,
    augmentation: Augmentation,
    with_clip: bool = True,
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch form of `augment_clips`."""
    a, frames_B = augmentation, store.frames_N[ids_B]
    if a.sampling == "index":
        draws = clip_uniforms(seed, step, ids_B, CROP, a.frames + 1)
        index = random_frames(draws, frames_B, a.frames)
        clip = take_frames(store, ids_B, index, a.bodies)
    else:
        draws = clip_uniforms(seed, step, ids_B, CROP, 4)
        start, length = crop_bounds(draws, frames_B, a.crop_min, a.crop_min_frames)
        bend = time_bend(draws, a.time_warp, compute_dtype(store.joints_RVC.dtype))
        clip = resized(store, ids_B, start, length, a.frames, a.bodies, bend)
    view = random_view(clip, clip_uniforms(seed, step, ids_B, VIEW, DRAWS), skeleton, a)

    def tokens(x_BMTVC: Tensor, missing_BV: Tensor | None = None) -> Tensor:
        x = to_stream(x_BMTVC, skeleton.parents_V, a.stream)
        if missing_BV is not None:
            x = x.masked_fill(missing_BV[:, None, None, :, None], 0.0)
        return to_tubelets(x.flatten(0, 1), a.segment_length)

    missing = None
    if a.joint_drop > 0:
        missing = missing_joints(seed, step, ids_B, clip.shape[3], a.joint_drop)
    view_tokens = tokens(view, missing)
    if not with_clip:
        return view_tokens, view_tokens.new_empty(0, *view_tokens.shape[1:])
    return view_tokens, tokens(clip)
