# SPDX-License-Identifier: Apache-2.0
"""What the training step reads: clips at fixed addresses, and the ids of each step's batch.

All three backends yield clips and ids. For `resident` the clips are the whole store; for `disk` and
`dali` they are a window, which holds the rows of the current batch only. The ids, and with them
every random draw, are the same, so the backends train to equal weights.

Shapes: R rows, N clips (or single bodies), B samples of this process in a batch, V joints, C
coordinates.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Iterator

import numpy as np
import torch
from torch import Tensor

from sjepa_fast.config.schema import DataConfig, TrainConfig
from sjepa_fast.config.traits import TRAITS
from sjepa_fast.data.clips import ResidentClips, load_resident, load_tables
from sjepa_fast.data.dali import dali_batches, require_dali
from sjepa_fast.data.disk import disk_batches
from sjepa_fast.data.order import BatchOrder, Mixture
from sjepa_fast.data.rows import PackedRows
from sjepa_fast.data.store import Store
from sjepa_fast.runtime.dist import World


def check_backend(data: DataConfig) -> None:
    """Raise InputError, with what to install, if the configured backend is not installed."""
    if data.backend == "dali":
        require_dali()


def open_clips(store: Store, data: DataConfig, device: torch.device) -> ResidentClips:
    """Bring a store to the device as `data.backend` says: whole, or its tables alone.

    Returns clips of `data.bodies` bodies. Raises InputError if clips have more, or this system
    cannot read rows from disk.
    """
    if data.backend == "resident":
        return load_resident(store, data, device)
    return load_tables(store, data, device)


def batch_order(
    clips: ResidentClips, part: np.ndarray, config: TrainConfig, world: World
) -> BatchOrder:
    """Return the order in which this process takes the samples of `part`, ids of `clips`.

    Those of a pool come by the power of the size of their set (`data.set_power`).
    """
    mixture = None
    if clips.sets_N is not None and config.data.set_power != 1:
        mixture = Mixture(clips.sets_N[part], config.data.set_power)
    batch = config.optim.batch_size
    return BatchOrder(part, config.seed, batch, world.rank, world.size, mixture)


@contextlib.contextmanager
def open_feed(
    clips: ResidentClips, part: np.ndarray, config: TrainConfig, world: World, steps: range
) -> Iterator[tuple[ResidentClips, Iterator[Tensor]]]:
    """Start the configured backend for the samples of `part`; leaving the block ends its workers.

    Yields the clips that the step crops, and this process's ids (B,) of each step's batch, int64,
    on the device. The clips' tensors stay where they are; a window is filled anew, in the order of
    the device's work, when the next ids are taken. A resumed run, with the `steps` still to do,
    gets the batches that the uninterrupted one would have had. The clips know how many bodies a
    batch has at most, if an objective with a target encoder can make use of it.
    """
    order = batch_order(clips, part, config, world)
    device = clips.joints_RVC.device
    bodies_N = clips.bodies_N.cpu().numpy()
    some_absent = bool((bodies_N[part] < clips.max_bodies).any())
    if some_absent and TRAITS[config.objective.kind].target_encoder:
        clips = dataclasses.replace(clips, most_bodies=order.most(bodies_N, steps.stop))
    if clips.reader is None:
        yield clips, _resident_ids(order, steps, device)
        return
    window = _window(clips, order)
    make = dali_batches if config.data.backend == "dali" else disk_batches
    with contextlib.closing(make(clips.reader, order, steps, config.data, device)) as batches:
        yield window, _fill(window, batches, device)


def _resident_ids(order: BatchOrder, steps: range, device: torch.device) -> Iterator[Tensor]:
    # The order of an epoch is copied once; a step then copies nothing.
    epoch, ids = -1, torch.empty(0)
    for step in steps:
        now, place = order.place(step)
        if now != epoch:
            epoch, ids = now, torch.from_numpy(order.epoch_ids(now))
            ids = ids.to(device, non_blocking=True)
        yield ids[place]


def _window(clips: ResidentClips, order: BatchOrder) -> ResidentClips:
    """Clips with room on the device for the longest possible batch, and an offset per id."""
    assert clips.reader is not None
    rows_S = clips.reader.rows_S
    longest = int(np.sort(rows_S)[-order.share :].sum())
    if order.mixture is not None and order.mixture.repeats:
        longest = int(rows_S[order.part].max()) * order.share
    rows = clips.joints_RVC.new_zeros(longest, *clips.joints_RVC.shape[1:])
    offsets = torch.zeros_like(clips.offsets_N)
    return dataclasses.replace(clips, joints_RVC=rows, offsets_N=offsets, reader=None)


def _fill(
    window: ResidentClips, batches: Generator[PackedRows, None, None], device: torch.device
) -> Iterator[Tensor]:
    for packed in batches:
        # Copies run in the order of the CUDA stream: after the work that reads the last batch.
        ids = packed.ids_B.to(device, non_blocking=True)
        first = packed.first_B.to(device, non_blocking=True)
        window.joints_RVC[: len(packed.rows_RVC)].copy_(packed.rows_RVC, non_blocking=True)
        window.offsets_N.index_copy_(0, ids, first)
        yield ids
