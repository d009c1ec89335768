# SPDX-License-Identifier: Apache-2.0
"""Clips on the device, cropped there without a data loader; their rows may stay on disk.

Shapes: R rows (all bodies' frames packed), N clips, B clips of a batch, M bodies, T frames,
V joints, C coordinates, N tokens, P numbers per token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sjepa_fast.config.schema import DataConfig, TrainConfig
from sjepa_fast.data.clip_table import NO_LABEL
from sjepa_fast.data.finite import check_finite
from sjepa_fast.data.rows import RowReader, normalize_rows, normalizes
from sjepa_fast.data.store import Store
from sjepa_fast.errors import InputError
from sjepa_fast.skeletons import SkeletonLayout
from sjepa_kernels import Augmentation, SkeletonTables, augment_clips, crop_resize
from sjepa_kernels.augment.frames import even_frames
from sjepa_kernels.augment.reference import take_frames
from sjepa_kernels.augment.settings import CropShare, PackedStore, ViewRanges
from sjepa_kernels.tubelets import TokenStream, to_stream


@dataclass(frozen=True)
class ResidentClips:
    """A store on one device, ready to be cropped.

    With a `reader` only the tables are resident: each call reads the rows of its clips from the
    store's file and sends them to the device. It raises InputError if they are not finite.
    """

    joints_RVC: Tensor
    offsets_N: Tensor
    frames_N: Tensor
    bodies_N: Tensor
    labels_N: Tensor
    layout: SkeletonLayout
    max_bodies: int
    reader: RowReader | None = None
    names: NDArray[np.str_] | None = None
    """Names of the store's clips, for messages about rows that are read later."""
    sets_N: NDArray[np.int64] | None = None
    """Of a pool of stores: the number of the set of each clip."""
    most_bodies: int = 0
    """Most bodies that are present in any batch drawn from these clips; 0 is unknown."""

    @property
    def store(self) -> PackedStore:
        """Rows and tables, as the operations of `sjepa_kernels` take them."""
        return PackedStore(self.joints_RVC, self.offsets_N, self.frames_N, self.bodies_N)

    def with_rows(self, ids_B: Tensor) -> ResidentClips:
        """Return clips whose rows are on the device: these, or the ones of `ids_B` read now."""
        if self.reader is None:
            return self
        ids = np.unique(ids_B.cpu().numpy())
        packed = self.reader.read(ids)
        if self.names is not None:
            check_finite(packed.rows_RVC, packed.first_B, self.names[self.reader.clip_S[ids]])
        device = self.joints_RVC.device
        return dataclasses.replace(
            self,
            joints_RVC=packed.rows_RVC.to(device),
            offsets_N=self.offsets_N.index_copy(
                0, packed.ids_B.to(device), packed.first_B.to(device)
            ),
            reader=None,
        )

    def crop_resize(self, ids_B: Tensor, start_B: Tensor, length_B: Tensor, frames: int) -> Tensor:
        """Cut [start, start + length) from each clip and resize it linearly to `frames`, T.

        Half-pixel centers without anti-aliasing, source = (t + 0.5) length / T - 0.5, clamped
        (method 1.5). Ids, first frames and lengths are int64. Returns (B, M, T, V, C) float32, zero
        for absent bodies.
        """
        clips = self.with_rows(ids_B)
        return crop_resize(*clips.store, ids_B, start_B, length_B, frames, self.max_bodies)

    def split_bodies(self, ids: np.ndarray) -> tuple[ResidentClips, np.ndarray]:
        """Make every present body a clip of its own, so that no step is spent on absent ones.

        Our choice: the estimator differs from the papers', who feed and score zero bodies.

        Returns the same memory as clips of one body, and the ids in it of the bodies of `ids`.
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
            sets_N=None if self.sets_N is None else self.sets_N[of_body.cpu().numpy()],
            max_bodies=1,
            reader=self.reader.split_bodies() if self.reader else None,
        )
        chosen = np.isin(of_body.cpu().numpy(), ids).nonzero()[0]
        return bodies, chosen

    def distinct_sequences(self, clips: int) -> int:
        """Return how many of the sequences of a batch of B clips can differ, B*M at most.

        All absent bodies are zero, and so one sequence; each present body is another.
        """
        whole = clips * self.max_bodies
        return min(whole, 1 + self.most_bodies) if self.most_bodies else whole

    @cached_property
    def present_NM(self) -> Tensor:
        """1 for each body of a clip that is present, 0 for each absent one, int64."""
        body_M = torch.arange(self.max_bodies, device=self.bodies_N.device)
        return (body_M < self.bodies_N[:, None]).long()

    @cached_property
    def tables(self) -> SkeletonTables:
        """The layout's tables on the device; copied once, because a copy synchronises."""
        return skeleton_tables(self.layout, self.joints_RVC.device)

    def train_tokens(
        self,
        ids_B: Tensor,
        seed: Tensor,
        step: Tensor,
        augmentation: Augmentation,
        *,
        with_clip: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Tokens of a random view, and of the random crop from which it was made.

        Pre-training, fine-tuning and linear probes with augmentation all get their tokens here.
        Seed and step are 0-dim int64; with the clip id they fix the draws. Returns two (B*M, N, P)
        float32; if the crop is not wanted (`with_clip`), the second has no rows.
        """
        clips = self.with_rows(ids_B)
        keys = ids_B, seed, step
        return augment_clips(*clips.store, *keys, self.tables, augmentation, with_clip=with_clip)

    def eval_crop(
        self,
        ids_B: Tensor,
        data: DataConfig,
        *,
        stream: TokenStream | None = None,
        within: tuple[float, float] = (0.0, 1.0),
    ) -> Tensor:
        """Centered crop (`data.eval_crop`) of each clip in the run's stream, (B, M, T, V, C).

        `stream` replaces the run's; `within` is the part of the crop that is taken.
        """
        valid = self.frames_N[ids_B]
        start = ((1 - data.eval_crop) * valid / 2).floor().long()
        length = (valid - 2 * start).clamp_min(1)
        if within != (0.0, 1.0):
            first, last = within
            start = start + (length * first).long()
            length = (length * (last - first)).round().long().clamp_min(1)
            # Rounding must not lead beyond the clip.
            start = torch.minimum(start, valid - length)
        if data.sampling == "index":
            index = start[:, None] + even_frames(length, data.frames)
            crop = take_frames(self.with_rows(ids_B).store, ids_B, index, self.max_bodies)
        else:
            crop = self.crop_resize(ids_B, start, length, data.frames)
        return to_stream(crop, self.tables.parents_V, stream or data.stream)


def skeleton_tables(layout: SkeletonLayout, device: torch.device) -> SkeletonTables:
    """Copy the tables that the fused augmentation needs of a layout to the device."""
    return SkeletonTables.of(
        layout.flip_permutation(), layout.parents, layout.center, layout.spine_top, device
    )


def augmentation(
    config: TrainConfig,
    bodies: int,
    *,
    crop: CropShare | None = None,
    view: ViewRanges | None = None,
    stream: TokenStream | None = None,
) -> Augmentation:
    """Return the settings by which training clips of M bodies are cropped and turned into views.

    `crop` and `view` have the ranges and `stream` the stream; the run's own, if not given. The
    shortest crop is always the run's. The ranges of S-JEPA's view and its pivot, the clip-mean
    center of the first body, are our choice (method 3.3).
    """
    crop, view = crop or config.data, view or config.view
    return Augmentation(
        frames=config.data.frames,
        bodies=bodies,
        segment_length=config.model.segment_length,
        sampling=config.data.sampling,
        stream=stream or config.data.stream,
        **{field.name: getattr(crop, field.name) for field in fields(CropShare)},
        crop_min_frames=config.data.crop_min_frames,
        **{field.name: getattr(view, field.name) for field in fields(ViewRanges)},
    )


def load_resident(store: Store, data: DataConfig, device: torch.device) -> ResidentClips:
    """Copy a store to the device, with the configured normalisations applied once.

    Args:
        store: An open store.
        data: Normalisation switches and the number of bodies.
        device: Where the clips shall live.

    Returns:
        The resident clips; their body count is `data.bodies`.

    Raises:
        InputError: If clips have more bodies than `data.bodies` admits, or coordinates are not
            finite.
    """
    _check_bodies(store, data)
    joints = np.array(store.joints)
    if normalizes(data):
        joints = joints.astype(np.float32)
        for i in range(len(store)):
            rows = slice(int(store.offsets[i]), int(store.offsets[i + 1]))
            joints[rows] = normalize_rows(joints[rows], int(store.bodies[i]), store.layout, data)
    clips = _clips_of(store, data, torch.from_numpy(joints), device)
    check_finite(clips.joints_RVC, clips.offsets_N, store.names)
    return clips


def pack_clips(
    clips: Sequence[NDArray[Any]], layout: SkeletonLayout, data: DataConfig, device: torch.device
) -> ResidentClips:
    """Pack clips from memory, each (M, T, V, 3), as `load_resident` does those of a store.

    Returns clips of `data.bodies` bodies, all without a label. What the arrays hold is not checked
    here; none may have more bodies.
    """
    bodies, frames = np.array([clip.shape[:2] for clip in clips], dtype=np.int64).T
    rows = bodies * frames
    packed = np.empty((int(rows.sum()), layout.num_joints, 3), np.float32)
    first = np.cumsum(rows) - rows
    for clip, begin, count in zip(clips, first, rows, strict=True):
        flat = clip.reshape(count, layout.num_joints, 3)
        normal = normalize_rows(flat, len(clip), layout, data) if normalizes(data) else flat
        packed[begin : begin + count] = normal
    return ResidentClips(
        joints_RVC=torch.from_numpy(packed).to(device),
        offsets_N=torch.from_numpy(first).to(device),
        frames_N=torch.from_numpy(frames.copy()).to(device),
        bodies_N=torch.from_numpy(bodies.copy()).to(device),
        labels_N=torch.full((len(clips),), NO_LABEL, dtype=torch.int64, device=device),
        layout=layout,
        max_bodies=data.bodies,
    )


def load_tables(store: Store, data: DataConfig, device: torch.device) -> ResidentClips:
    """Copy all but the rows of a store to the device; those are read when they are used.

    Returns clips of `data.bodies` bodies with a `reader`. Raises InputError if clips have more
    bodies, or this system cannot read at a position of a file.
    """
    _check_bodies(store, data)
    reader = RowReader.of(store, data)
    rows = torch.empty(0, store.layout.num_joints, 3, dtype=reader.rows_dtype)
    names = np.asarray(store.names)
    return dataclasses.replace(_clips_of(store, data, rows, device), reader=reader, names=names)


def _check_bodies(store: Store, data: DataConfig) -> None:
    if store.max_bodies > data.bodies:
        most = store.max_bodies
        value = f"{data.bodies}, but the store {store.name} has clips with {most} bodies"
        raise InputError("data.bodies", value, f"use --data.bodies {most}")


def _clips_of(
    store: Store, data: DataConfig, joints_RVC: Tensor, device: torch.device
) -> ResidentClips:
    return ResidentClips(
        joints_RVC=joints_RVC.to(device),
        offsets_N=torch.from_numpy(store.offsets[:-1].astype(np.int64)).to(device),
        frames_N=torch.from_numpy(store.frames.astype(np.int64)).to(device),
        bodies_N=torch.from_numpy(store.bodies.astype(np.int64)).to(device),
        labels_N=torch.from_numpy(np.array(store.labels, dtype=np.int64)).to(device),
        layout=store.layout,
        max_bodies=data.bodies,
        sets_N=store.sets_N,
    )
