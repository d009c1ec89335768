"""Clips that live on the device, and crops of them without a loader.

Shapes: R rows (all bodies' frames packed), N clips, B clips of a batch, M bodies, T frames,
V joints, C coordinates, N tokens, P numbers a token.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sjepa_fast.config import DataConfig, TrainConfig
from sjepa_fast.data.augment import augmentation, skeleton_tables, to_stream
from sjepa_fast.data.normalize import normalize_clip
from sjepa_fast.data.store import Store
from sjepa_fast.errors import InputError
from sjepa_fast.skeletons import SkeletonLayout
from sjepa_kernels import SkeletonTables, augment_clips, crop_resize


@dataclass(frozen=True)
class ResidentClips:
    """A whole store on one device, ready to be cropped; nothing is copied per step."""

    joints_RVC: Tensor
    offsets_N: Tensor
    frames_N: Tensor
    bodies_N: Tensor
    labels_N: Tensor
    layout: SkeletonLayout
    max_bodies: int

    def crop_resize(self, ids_B: Tensor, start_B: Tensor, length_B: Tensor, frames: int) -> Tensor:
        """Cut [start, start + length) from each clip and resize it linearly to `frames`.

        Half-pixel centres without anti-aliasing, source = (t + 0.5) length / T - 0.5, clamped
        (method 1.5). Absent bodies are zero.

        Args:
            ids_B: Clip ids, int64.
            start_B: First frame, int64.
            length_B: Frames in the crop, int64.
            frames: T.

        Returns:
            (B, M, T, V, C) float32.
        """
        return crop_resize(
            self.joints_RVC,
            self.offsets_N,
            self.frames_N,
            self.bodies_N,
            ids_B,
            start_B,
            length_B,
            frames,
            self.max_bodies,
        )

    def split_bodies(self, ids: np.ndarray) -> tuple[ResidentClips, np.ndarray]:
        """Make every present body a clip of its own, so that no step is spent on absent ones.

        Our choice: the estimator differs from the papers', who feed and score zero bodies.

        Args:
            ids: Clip ids.

        Returns:
            The same memory as clips of one body, and the ids in it of the bodies of `ids`.
        """
        of_body = torch.repeat_interleave(self.bodies_N)
        first_N = self.bodies_N.cumsum(0) - self.bodies_N
        rank = torch.arange(len(of_body), device=of_body.device) - first_N[of_body]
        frames = self.frames_N[of_body]
        bodies = dataclasses.replace(
            self,
            offsets_N=self.offsets_N[of_body] + rank * frames,
            frames_N=frames,
            bodies_N=torch.ones_like(of_body),
            labels_N=self.labels_N[of_body],
            max_bodies=1,
        )
        chosen = np.isin(of_body.cpu().numpy(), ids).nonzero()[0]
        return bodies, chosen

    @cached_property
    def tables(self) -> SkeletonTables:
        """The layout's tables on the device, copied once: a copy in every step would wait."""
        return skeleton_tables(self.layout, self.joints_RVC.device)

    def train_tokens(
        self,
        ids_B: Tensor,
        seed: Tensor,
        step: Tensor,
        config: TrainConfig,
        *,
        with_clip: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Tokens of a random view and of the random crop it was made of, in one launch.

        Args:
            ids_B: Clip ids, int64.
            seed: 0-dim int64.
            step: 0-dim int64.
            config: Crop, view and token settings.
            with_clip: Whether the second output is wanted; if not, it has no rows.

        Returns:
            Two (B*M, N, P) float32.
        """
        return augment_clips(
            self.joints_RVC,
            self.offsets_N,
            self.frames_N,
            self.bodies_N,
            ids_B,
            seed,
            step,
            self.tables,
            augmentation(config, self.max_bodies),
            with_clip=with_clip,
        )

    def eval_crop(self, ids_B: Tensor, data: DataConfig) -> Tensor:
        """Centred crop of `eval_crop` of each clip as the run's stream, (B, M, T, V, C)."""
        valid = self.frames_N[ids_B]
        start = ((1 - data.eval_crop) * valid / 2).floor().long()
        length = (valid - 2 * start).clamp_min(1)
        crop = self.crop_resize(ids_B, start, length, data.frames)
        return to_stream(crop, self.tables.parents_V, data.stream)


def load_resident(store: Store, data: DataConfig, device: torch.device) -> ResidentClips:
    """Copy a store to the device, with the configured normalisations applied once.

    Args:
        store: An open store.
        data: Normalisation switches and the number of bodies.
        device: Where the clips shall live.

    Returns:
        The resident clips; their body count is `data.bodies`.

    Raises:
        InputError: If clips have more bodies than `data.bodies` admits.
    """
    if store.max_bodies > data.bodies:
        raise InputError(
            "data.bodies",
            f"{data.bodies}, but the store {store.name} has clips with {store.max_bodies} bodies",
            f"use --data.bodies {store.max_bodies}",
        )
    joints = np.array(store.joints)
    if data.center or data.align_yaw or data.normalize_size:
        joints = joints.astype(np.float32)
        for i in range(len(store)):
            rows = slice(int(store.offsets[i]), int(store.offsets[i + 1]))
            shape = (int(store.bodies[i]), int(store.frames[i]), *joints.shape[1:])
            joints[rows] = normalize_clip(
                joints[rows].reshape(shape),
                store.layout,
                center=data.center,
                align_yaw=data.align_yaw,
                size=data.normalize_size,
            ).reshape(-1, *joints.shape[1:])
    return ResidentClips(
        joints_RVC=torch.from_numpy(joints).to(device),
        offsets_N=torch.from_numpy(store.offsets[:-1].astype(np.int64)).to(device),
        frames_N=torch.from_numpy(store.frames.astype(np.int64)).to(device),
        bodies_N=torch.from_numpy(store.bodies.astype(np.int64)).to(device),
        labels_N=torch.from_numpy(np.array(store.labels, dtype=np.int64)).to(device),
        layout=store.layout,
        max_bodies=data.bodies,
    )


def epoch_order(ids: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return the training ids in the order of one epoch; a pure function of (seed, epoch)."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return ids[generator.permutation(len(ids))]
