"""Stores of a few clips, and what `augment_clips` must make of them, frame by frame in float64."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sjepa_kernels import Augmentation, SkeletonTables, augment_clips, clip_uniforms
from sjepa_kernels.augment.reference import DRAWS
from tests.kernels.cases import Place

Floats = npt.NDArray[np.float64]

# Pelvis, neck, two elbows and two hands; the neck is the root.
FLIP, PARENTS, CENTER, TOP = (0, 1, 3, 2, 5, 4), (1, 1, 1, 1, 2, 3), 0, 1
CROP, VIEW, MISSING = 0, 1, (1 << 17) + 2
SMALL = Augmentation(frames=6, bodies=2, segment_length=2, crop_min_frames=3)


@dataclass(frozen=True)
class Packed:
    """A store of clips, the tables of its skeleton, and how many frames and bodies they have."""

    joints: Tensor
    offsets: Tensor
    frames: Tensor
    bodies: Tensor
    skeleton: SkeletonTables

    def args(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.joints, self.offsets, self.frames, self.bodies


def packed(
    place: Place, dtype: torch.dtype = torch.float32, repeat: int = 1, scale: int = 1
) -> Packed:
    """Four clips of 1, 5, 9 and 12 frames; `repeat` copies of the joints, `scale` times as long."""
    frames = torch.tensor([1, 5, 9, 12]) * scale
    bodies = torch.tensor([1, 2, 1, 2])
    rows = frames * bodies
    joints = torch.randn(int(rows.sum()), len(FLIP) * repeat, 3)
    joints[:, TOP] = joints[:, CENTER] + torch.tensor([0.1, 0.6, 0.2])
    flip = [i * len(FLIP) + j for i in range(repeat) for j in FLIP]
    parents = [i * len(FLIP) + j for i in range(repeat) for j in PARENTS]
    device = place.device
    return Packed(
        joints.to(device, dtype),
        (rows.cumsum(0) - rows).to(device),
        frames.to(device),
        bodies.to(device),
        SkeletonTables.of(flip, parents, CENTER, TOP, device),
    )


def scalars(place: Place, seed: int = 3, step: int = 5) -> tuple[Tensor, Tensor]:
    return torch.tensor(seed, device=place.device), torch.tensor(step, device=place.device)


def run(
    place: Place, store: Packed, ids: Tensor, a: Augmentation, step: int = 5, **options: Any
) -> tuple[Tensor, Tensor]:
    options = {"impl": place.impl} | options
    where = ids.to(place.device)
    return augment_clips(
        *store.args(), where, *scalars(place, step=step), store.skeleton, a, **options
    )


def turn(axis: Floats, angle: float, v: Floats) -> Floats:
    """Rodrigues' vector formula."""
    across = np.cross(axis, v) * np.sin(angle)
    turned: Floats = v * np.cos(angle) + across + axis * (axis @ v) * (1 - np.cos(angle))
    return turned


def mamp_matrix(x: float, y: float, z: float) -> Floats:
    """Rz Ry Rx as method 1.5 writes them; without z it is Ry Rx."""
    c, s = np.cos, np.sin
    rx = np.array([[1, 0, 0], [0, c(x), s(x)], [0, -s(x), c(x)]])
    ry = np.array([[c(y), 0, -s(y)], [0, 1, 0], [s(y), 0, c(y)]])
    rz = np.array([[c(z), s(z), 0], [-s(z), c(z), 0], [0, 0, 1]])
    matrix: Floats = rz @ ry @ rx
    return matrix


def index_frames(draws: Floats, valid: int, wanted: int) -> list[int]:
    """Numbers of the frames taken of a clip: all and again, all but some, or one of each bin."""
    if valid < wanted:
        return [(int(draws[0] * valid) + t) % valid for t in range(wanted)]
    if valid < 2 * wanted:
        # The smallest of the draws say before which frames one is left out.
        skipped = np.argsort(draws, kind="stable")[: valid - wanted]
        return [t + int((skipped <= t).sum()) for t in range(wanted)]
    bins = [(t * valid // wanted, (t + 1) * valid // wanted) for t in range(wanted)]
    return [low + int(u * (high - low)) for u, (low, high) in zip(draws, bins, strict=False)]


def cropped(store: Packed, clip: int, draws: Floats, a: Augmentation) -> Floats:
    """(M, T, V, 3) of one clip, each frame between the two source frames around its center."""
    joints = store.joints.double().cpu().numpy()
    offset, valid, count = (int(x[clip]) for x in (store.offsets, store.frames, store.bodies))
    index = index_frames(draws, valid, a.frames) if a.sampling == "index" else None
    length = min(max(int((a.crop_min + (1 - a.crop_min) * draws[0]) * valid), 1), valid)
    length = min(max(length, a.crop_min_frames), valid)
    start = min(int(draws[1] * (valid - length + 1)), valid - length)
    bend = (2 * draws[2:4] - 1) * a.time_warp
    out = np.zeros((a.bodies, a.frames, *joints.shape[1:]))
    for m in range(min(count, a.bodies)):
        if index:
            out[m] = joints[offset + m * valid :][index]
            continue
        body = joints[offset + m * valid + start :][:length]
        for t in range(a.frames):
            s = (t + 0.5) / a.frames
            s += s * (1 - s) * (bend[0] + bend[1] * (1 - 2 * s))
            at = min(max(s * length - 0.5, 0.0), length - 1)
            low = int(at)
            high = min(low + 1, length - 1)
            out[m, t] = body[low] * (1 - (at - low)) + body[high] * (at - low)
    return out


def viewed(x: Floats, store: Packed, u: Floats, a: Augmentation) -> Floats:
    """The view of one clip, joint by joint."""
    signed, out = 2 * u - 1, np.zeros_like(x)
    flip = store.skeleton.flip_V.tolist()
    pivot = np.zeros(3)
    center, top = store.skeleton.center, store.skeleton.spine_top
    spine = (x[0, :, top] - x[0, :, center]).mean(0)
    length = np.linalg.norm(spine)
    axis = spine / length if length > 1e-6 else np.array([0.0, 1.0, 0.0])
    if a.form == "body":
        pivot = x[0, :, center].mean(0)
    h = signed[8:14] * a.shear
    shear = np.array([[1, h[0], h[1]], [h[2], 1, h[3]], [h[4], h[5], 1]])
    for m, t, j in np.ndindex(x.shape[:3]):
        if not x[m].any():
            continue
        mirrored = u[6] < a.flip
        v = x[m, t, flip[j] if mirrored else j] - pivot
        if a.form == "body":
            v = turn(axis, signed[0] * a.rotation, v)
            v = turn(np.array([1.0, 0, 0]), signed[1] * a.tilt, v)
            v = turn(np.array([0, 0, 1.0]), signed[2] * a.tilt, v)
        else:
            x_y_z = signed[:3] * a.rotation * (1, 1, a.form == "axes")
            v = mamp_matrix(*x_y_z) @ v
        v = shear @ (v * (1 + signed[7] * a.scale))
        if mirrored:
            v[0] = -v[0]
        out[m, t, j] = v + pivot + signed[3:6] * a.translation
    return out


def tokenised(x: Floats, store: Packed, a: Augmentation) -> Floats:
    """Stream, then tokens (M, S*V, l*3), number by number."""
    if a.stream == "all":
        parts = [dataclasses.replace(a, stream=part) for part in ("joint", "bone", "motion")]
        each = [tokenised(x, store, part) for part in parts]
        shape = (*each[0].shape[:2], a.segment_length, 3)
        out = np.concatenate([tokens.reshape(shape) for tokens in each], axis=3)
        return out.reshape(*shape[:2], a.segment_length * 9)
    parents = store.skeleton.parents_V.tolist()
    if a.stream in ("bone", "bone_motion"):
        x = np.stack([x[:, :, j] - x[:, :, p] for j, p in enumerate(parents)], axis=2)
    if a.stream in ("motion", "bone_motion"):
        x = np.concatenate([x[:, 1:] - x[:, :-1], np.zeros_like(x[:, :1])], axis=1)
    bodies, frames, joints, _ = x.shape
    size = a.segment_length
    out = np.zeros((bodies, frames // size * joints, size * 3))
    for m, t, j, c in np.ndindex(x.shape):
        out[m, t // size * joints + j, t % size * 3 + c] = x[m, t, j, c]
    return out


def truth_of(
    store: Packed, ids: Tensor, a: Augmentation, seed: Tensor, step: Tensor
) -> list[Tensor]:
    """Tokens of the view and of the clip, from the definition; ids, seed and step on the CPU."""
    joints = store.joints.shape[1]
    counts = {CROP: max(a.frames + 1, 4), VIEW: DRAWS, MISSING: joints}
    drawn = [clip_uniforms(seed, step, ids, *count).double().numpy() for count in counts.items()]
    views, clips = [], []
    for i, clip in enumerate(ids.tolist()):
        x = cropped(store, clip, drawn[0][i], a)
        clips.append(tokenised(x, store, a))
        view = tokenised(viewed(x, store, drawn[1][i], a), store, a)
        for j in range(joints):
            if drawn[2][i][j] < a.joint_drop:
                view[:, j::joints] = 0
        views.append(view)
    numbers = a.segment_length * (9 if a.stream == "all" else 3)
    shape = joints * a.frames // a.segment_length, numbers
    none = [np.zeros((0, *shape))]
    return [torch.from_numpy(np.concatenate(none + part)) for part in (views, clips)]
