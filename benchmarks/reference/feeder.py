"""Clips for rung A the way the method's family of code feeds them: one at a time, on the CPU.

Every clip is padded to 300 frames of float32; a loader's worker copies one, finds its length by
summing the frames, crops, hands NumPy to PyTorch to resize, and draws the view with a rotation
matrix for every frame (method 1.5, 3.3 and 8.1). The arithmetic is the library's; only the way to
it is the family's.

Shapes: N clips, C = 3 coordinates, T frames, V joints, M bodies.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.reference.sampling import HAND_PAIRS, MID_SHOULDER, MIRROR_PAIRS, PELVIS
from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.data.clips import ResidentClips

PADDED_FRAMES = 300
Array = NDArray[np.float32]


def padded_clips(clips: ResidentClips, ids: Tensor) -> Array:
    """Return the clips as the family stores them: (N, C, 300, V, M), zeros behind the end."""
    joints = clips.joints_RVC.float().cpu().numpy()
    out = np.zeros((len(ids), 3, PADDED_FRAMES, joints.shape[1], clips.max_bodies), np.float32)
    for row, clip in enumerate(ids.tolist()):
        first, frames = int(clips.offsets_N[clip]), int(clips.frames_N[clip])
        if frames > PADDED_FRAMES:
            raise ValueError(f"clip {clip}: {frames} frames; the family's arrays hold 300")
        for body in range(int(clips.bodies_N[clip])):
            begin = first + body * frames
            out[row, :, :frames, :, body] = joints[begin : begin + frames].transpose(2, 0, 1)
    return out


class ClipFeeder(Dataset[tuple[Tensor, Tensor]]):
    """Item i is the random crop of clip i and a view of it, (M, T, V, C) float32 each.

    Args:
        padded_NCTVM: Clips as `padded_clips` makes them, 25 joints.
        config: Crop and view settings; `view.tilt` is not drawn.
        seed: Of this worker's draws.
    """

    def __init__(self, padded_NCTVM: Array, config: TrainConfig, seed: int = 0) -> None:
        self.clips, self.config = padded_NCTVM, config
        self.random = np.random.default_rng(seed)
        self.swap = list(range(padded_NCTVM.shape[3]))
        for left, right in MIRROR_PAIRS + HAND_PAIRS:
            self.swap[left], self.swap[right] = right, left

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        clip_CTVM = self.crop_resize(np.array(self.clips[index]))
        clip_MTVC = np.ascontiguousarray(clip_CTVM.transpose(3, 1, 2, 0))
        view_MTVC = np.ascontiguousarray(self.view(clip_MTVC))
        return torch.from_numpy(clip_MTVC), torch.from_numpy(view_MTVC)

    def crop_resize(self, clip_CTVM: Array) -> Array:
        """Crop a share U(crop_min, 1) of the valid frames and resize it to T."""
        data = self.config.data
        coords, _, joints, bodies = clip_CTVM.shape
        valid = int(np.sum(clip_CTVM.sum(0).sum(-1).sum(-1) != 0))
        share = self.random.uniform(data.crop_min, 1)
        length = min(max(int(np.floor(share * valid)), data.crop_min_frames), valid)
        start = int(self.random.integers(valid - length + 1))
        cropped = torch.from_numpy(clip_CTVM[:, start : start + length])
        rows = cropped.permute(0, 2, 3, 1).reshape(1, 1, coords * joints * bodies, length)
        resized = torch.nn.functional.interpolate(
            rows, size=(rows.shape[2], data.frames), mode="bilinear", align_corners=False
        )
        grid = resized.reshape(coords, joints, bodies, data.frames).permute(0, 3, 1, 2)
        out: Array = grid.contiguous().numpy()
        return out

    def view(self, clip_MTVC: Array) -> Array:
        """Rotate about the first body's axis and clip-mean pelvis, mirror, shift (method 3.3)."""
        view, first = self.config.view, clip_MTVC[0]
        spine = (first[:, MID_SHOULDER] - first[:, PELVIS]).mean(0)
        x, y, z = spine / max(float(np.linalg.norm(spine)), 1e-6)
        angle = self.random.uniform(-view.rotation, view.rotation)
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        rotation = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
        every_T33 = np.stack([rotation.astype(np.float32)] * clip_MTVC.shape[1])
        pivot = first[:, PELVIS].mean(0)
        moved = np.matmul(clip_MTVC - pivot, every_T33.transpose(0, 2, 1))
        if self.random.uniform() < view.flip:
            moved = moved[:, :, self.swap] * np.array([-1, 1, 1], np.float32)
        shift = self.random.uniform(-view.translation, view.translation, 3).astype(np.float32)
        present = (clip_MTVC != 0).any(axis=(1, 2, 3), keepdims=True)
        out: Array = np.where(present, moved + pivot + shift, clip_MTVC).astype(np.float32)
        return out


def feeding_loader(
    padded_NCTVM: Array, config: TrainConfig, *, workers: int, pinned: bool
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return the family's loader: shuffled, last part batch dropped, workers forked anew."""
    return DataLoader(
        ClipFeeder(padded_NCTVM, config),
        batch_size=config.optim.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=pinned,
    )
