# SPDX-License-Identifier: Apache-2.0
"""What a run reads: its store, and the clips that it trains on and is scored by."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.config.validation import LARGEST, validate_tokens
from sjepa_fast.data.clips import ResidentClips
from sjepa_fast.data.feed import open_clips
from sjepa_fast.data.store import Store, open_store
from sjepa_fast.data.synthetic import write_synthetic_store
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.labelled import lacking
from sjepa_fast.runtime.dist import World


@dataclass(frozen=True)
class Inputs:
    """The clips of a run, and how many steps it makes of them; the same in all processes."""

    store: Store
    clips: ResidentClips
    sampled: ResidentClips  # what batches are drawn from: the clips, or each of their bodies
    sampled_part: np.ndarray  # the training part of those
    train_ids: Tensor  # clips of the training part, int64 on the device, as the next two
    knn_ids: Tensor  # those of them that scores compare with
    test_ids: Tensor
    unscored: InputError | None  # why there are no scores while training
    total: int  # steps of the run
    warmup: int


def open_data(config: TrainConfig, world: World) -> tuple[TrainConfig, Store]:
    """Open the configured store, or the embedded synthetic one, which is made on first use.

    Raises InputError if there is none, or the processes cannot share its batches.
    """
    root = config.data.root
    if root is None:
        if not config.data.synthetic:
            fix = "add --data.root STORE (made by sjepa_fast.prepare) or --data.synthetic"
            raise InputError("data.root", "not given", fix)
        root = config.run.parent / "synthetic"
        if world.leads and not (root / "store.json").exists():
            write_synthetic_store(root)
        world.barrier()
        data = dataclasses.replace(config.data, root=root)
        config = dataclasses.replace(config, data=data)
    store = open_store(root)
    validate_tokens(config, store.layout.num_joints)
    check_shares(config, world)
    _check_sets(config, store)
    return config, store


def load_inputs(config: TrainConfig, store: Store, device: torch.device) -> Inputs:
    """Load the clips of a store; raises InputError if they are too few for the run."""
    split, knn_clips = config.data.split, config.eval.knn_clips
    train_part = store.ids(split, "train")
    clips = open_clips(store, config.data, device)
    sampled, sampled_part = clips, train_part
    if config.data.skip_empty_bodies:
        sampled, sampled_part = clips.split_bodies(train_part)
    total, warmup = run_lengths(config, len(sampled_part))

    def on_device(part: np.ndarray) -> Tensor:
        return torch.from_numpy(part).to(device)

    return Inputs(
        store=store,
        clips=clips,
        sampled=sampled,
        sampled_part=sampled_part,
        train_ids=on_device(train_part),
        knn_ids=on_device(store.labelled(split, "train")[:knn_clips]),
        test_ids=on_device(store.labelled(split, "test")),
        unscored=lacking(store, split),
        total=total,
        warmup=warmup,
    )


def run_lengths(config: TrainConfig, clips: int) -> tuple[int, int]:
    """Return (steps of the run, warm-up steps); the last part batch of an epoch is dropped.

    So are the last steps that are too few to share a batch by `objective.target_every`.
    """
    per_epoch = clips // config.optim.batch_size
    if per_epoch == 0:
        value = f"{config.optim.batch_size} is larger than the {clips} training clips"
        raise InputError("optim.batch_size", value, f"use --optim.batch-size {clips} or less")
    unit = per_epoch if config.optim.unit == "epochs" else 1
    total, together = config.optim.length * unit, config.objective.target_every
    if total > LARGEST["optim.length"]:
        fix = f"give at most {LARGEST['optim.length']}"
        raise InputError("optim.length", f"{config.optim.length} epochs are {total} steps", fix)
    if total < together:
        value = f"{together} of the run's {total} steps"
        raise InputError("objective.target_every", value, "choose fewer, or a longer run")
    return total - total % together, config.optim.warmup * unit


def check_shares(config: TrainConfig, world: World) -> None:
    """Raise InputError if processes, and the parts of `optim.accumulate`, cannot share a batch."""
    batch, parts = config.optim.batch_size, config.optim.accumulate
    if batch % world.size:
        fix = f"choose a multiple of the {world.size} processes"
        raise InputError("optim.batch_size", batch, fix)
    compares = config.objective.regularizer != "none"
    if compares and batch // world.size < 2:
        value = f"{batch} for {world.size} processes"
        fix = f"objective.regularizer {config.objective.regularizer} takes two or more of each"
        raise InputError("optim.batch_size", value, fix)
    if batch % (world.size * parts):
        share = f"{batch // world.size} clips of each process"
        fix = "choose a divisor of that number"
        raise InputError("optim.accumulate", f"{parts} does not divide the {share}", fix)


def _check_sets(config: TrainConfig, store: Store) -> None:
    """Raise InputError if sets are to be drawn otherwise than in proportion, but there are none."""
    power = config.data.set_power
    if power != 1 and not store.sets:
        value = f"{power:g}, but {store.root} is one set"
        raise InputError("data.set_power", value, "use a pool (prepare merge), or 1")
