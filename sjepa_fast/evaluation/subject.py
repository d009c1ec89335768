# SPDX-License-Identifier: Apache-2.0
"""What is scored: a run's encoder, and the clips of a store on the device."""

from __future__ import annotations

import dataclasses
import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sjepa_fast.build import build_model
from sjepa_fast.config.schema import DataConfig, TrainConfig
from sjepa_fast.data.clips import ResidentClips
from sjepa_fast.data.facts import usual_split
from sjepa_fast.data.feed import open_clips
from sjepa_fast.data.store import Store, open_store
from sjepa_fast.data.store_schema import clip_in_pool
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.labelled import labelled_parts
from sjepa_fast.evaluation.request import EvalData, Request
from sjepa_fast.joint_map import map_joints
from sjepa_fast.models.encoder import SkeletonTransformer
from sjepa_fast.opening import check_fields, read_json
from sjepa_fast.run_folder import CONTINUED, clips_seen, read_run
from sjepa_fast.runtime.checkpoint import Checkpoint, latest_checkpoint
from sjepa_fast.runtime.device import pick_device, settled_dtype, wants_compile
from sjepa_fast.runtime.dist import World, connect, environment_world
from sjepa_fast.runtime.fitting import OTHER, check_tensors
from sjepa_fast.runtime.logging import recorded_dtype
from sjepa_fast.runtime.manifest import WEIGHTS, read_manifest, read_tensors, refusal
from sjepa_fast.runtime.progress import SILENT, Display
from sjepa_fast.skeletons import SkeletonLayout

# One process may still fine-tune a seed when the others have finished theirs.
PATIENCE = datetime.timedelta(days=7)
# The encoder's table of joint positions.
SPATIAL = "embed.spatial"
# What `data.json` of a run says of the store; `layout` is missing in runs of older versions.
_RECORD = {"store": (str,), "fingerprint": (str, type(None)), "split": (str,)}


@dataclass(frozen=True)
class Subject:
    """A run, the clips to score it on, and where to compute."""

    run: Path
    config: TrainConfig  # the run's configuration with the requested data
    store: Store
    clips: ResidentClips  # the data on the device
    train_ids: Tensor  # scored clips of the training part (with a label), int64 on the device
    test_ids: Tensor  # scored clips of the test part
    fit_ids: Tensor  # all of the training part: what a fresh encoder's whitening is fitted on
    dtype: torch.dtype
    checkpoint: Checkpoint | None  # the weights; None for random and raw
    layout: SkeletonLayout  # joints that the run was trained on
    world: World  # the processes that score it together
    display: Display = SILENT  # where it is shown how far they are

    @property
    def device(self) -> torch.device:
        """Where the clips are."""
        return self.clips.joints_RVC.device

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.store.class_names)

    def labels(self, ids: Tensor) -> Tensor:
        """Return the labels of clips."""
        return self.clips.labels_N[ids]


def data_record(run: Path) -> dict[str, Any]:
    """Read what a run folder says of its data, and of the model that it continues.

    Raises InputError if it does not say it.
    """
    path = run / "data.json"
    record = read_json("run", path)
    check_fields("run", path, record, _RECORD)
    if (run / CONTINUED).is_file():
        record["continued_from"] = read_json("run", run / CONTINUED)
    return record


def trained_layout(run: Path, own_root: Path | None) -> SkeletonLayout:
    """Return the joints that a run was trained on; older runs had them in their store alone."""
    record = data_record(run)
    if "layout" in record:
        return SkeletonLayout.from_dict(record["layout"])
    if own_root is None:
        fix = "run sjepa_fast.train once more with the store at hand"
        raise InputError("run", f"{run} does not say which joints it was trained on", fix)
    return open_store(own_root, verify=False).layout


def trained_on_pool(run: Path) -> dict[str, str]:
    """Return the sets that a run was trained on and the split of each; empty without a pool."""
    record = data_record(run)
    if "sets" in record:
        check_fields("run", run / "data.json", record, {"sets": (dict,)})
    return {str(name): str(split) for name, split in record.get("sets", {}).items()}


def own_split(run: Path, store: Store) -> str:
    """Return the split by which to score a run of a pool on another store.

    It is the one whose training part was in the pool, or of a set that was not, its usual one.
    Raises InputError if that does not say which.
    """
    split = trained_on_pool(run).get(store.name) or usual_split(store)
    if not split:
        value = f"not given, and {store.name} has {', '.join(store.splits) or 'none'}"
        raise InputError("data.split", value, "add --data.split NAME")
    return split


def asked_data(
    run: Path, trained: DataConfig, asked: EvalData, *, verify: bool = True
) -> tuple[Store, DataConfig]:
    """Open the store that is asked for, and return the run's data with what else is asked for.

    Raises InputError if there is no store, or nothing says by which split to go. `verify` is that
    of `open_store`.
    """
    root = asked.root or trained.root
    eval_crop = asked.eval_crop or trained.eval_crop
    if not 0 < eval_crop <= 1:
        raise InputError("data.eval_crop", eval_crop, "give a share above 0 and up to 1")
    if root is None:
        raise InputError("data.root", "not given", "add --data.root STORE")
    store = open_store(root, verify=verify)
    split, bodies = asked.split, asked.bodies
    if trained_on_pool(run) and not store.sets:
        split, bodies = split or own_split(run, store), bodies or store.max_bodies
    data = dataclasses.replace(
        trained,
        root=root,
        split=split or trained.split,
        bodies=bodies or trained.bodies,
        eval_crop=eval_crop,
    )
    return store, data


def open_subject(request: Request, *, labels: bool = True, display: Display = SILENT) -> Subject:
    """Open the run and the data of a request, and join the other processes, if there are any.

    Without `labels` its clips are all of the two parts. Raises InputError if the run, the store or
    the split does not fit, or clips have no labels and are to have some.
    """
    trained = read_run(request.run)
    store, data = asked_data(request.run, trained.data, request.data)
    runtime = dataclasses.replace(trained.runtime, **dataclasses.asdict(request.runtime))
    config = dataclasses.replace(trained, data=data, runtime=runtime)
    if labels:
        train_ids, test_ids = labelled_parts(store, data.split)
    else:
        train_ids, test_ids = (store.ids(data.split, part) for part in ("train", "test"))
    trained_encoder = request.encoder in ("target", "view")
    checkpoint = latest_checkpoint(request.run) if trained_encoder else None
    layout = store.layout
    if checkpoint is not None:
        layout = trained_layout(request.run, trained.data.root)
    world = environment_world()
    device = pick_device(config.runtime, world.local_rank)
    connect(world, device, PATIENCE)
    same_everywhere(world, request.run, [] if checkpoint is None else [checkpoint.step])
    return Subject(
        run=request.run,
        config=config,
        store=store,
        clips=open_clips(store, data, device),
        train_ids=torch.from_numpy(train_ids).to(device),
        test_ids=torch.from_numpy(test_ids).to(device),
        fit_ids=torch.from_numpy(store.ids(data.split, "train")).to(device),
        dtype=scoring_dtype(config.runtime.dtype, request.run, device),
        checkpoint=checkpoint,
        layout=layout,
        world=world,
        display=display,
    )


def same_everywhere(world: World, run: Path, steps: list[int]) -> None:
    """Check that all processes found checkpoints of the same steps; raises InputError."""
    found = world.gather([tuple(steps)])
    if len(set(found)) > 1:
        value = f"{run} got a new checkpoint while the processes opened it (steps {found})"
        raise InputError("run", value, "evaluate when training has ended")


def scoring_dtype(asked: str, run: Path, device: torch.device) -> torch.dtype:
    """Return the compute precision of a score; `asked` is `runtime.dtype`.

    On a CPU with bfloat16 a training run times both precisions. A score does not, so that it can be
    repeated: it takes what the run was trained in, or float32 if the run does not say.
    """
    settled = settled_dtype(asked, device)
    return settled[0] if settled is not None else recorded_dtype(run) or torch.float32


def make_encoder(
    subject: Subject, kind: str, train_ids: Tensor, seed: int | None = None
) -> SkeletonTransformer:
    """Return target, view or random encoder for the joints of the store, in evaluation mode.

    The whitening of a random encoder is fitted on the training clips; its seed is the run's own, if
    not given.
    """
    config = subject.config
    if seed is not None:
        config = dataclasses.replace(config, seed=seed)
    # The whitening is part of the weights; for a random encoder it is fitted as training would.
    model = build_model(config, subject.clips, train_ids, subject.device)
    encoder = model.view_encoder
    if subject.checkpoint is not None:
        load_encoder(subject.checkpoint, kind, encoder, subject.layout, subject.store.layout)
    if wants_compile(config.runtime.compile, subject.device):
        for block in encoder.blocks:
            block.compile(dynamic=False)
    return encoder.eval().requires_grad_(False)


def load_encoder(
    checkpoint: Checkpoint,
    kind: str,
    encoder: SkeletonTransformer,
    trained: SkeletonLayout,
    layout: SkeletonLayout,
) -> None:
    """Load one encoder of a checkpoint, with its spatial positions mapped to another skeleton.

    `kind` is target or view; a run without a target encoder has only the other, which serves as
    both. Raises InputError if the file is damaged or belongs to another configuration.
    """
    weights = mapped_weights(encoder_weights(checkpoint, kind), trained, layout)
    check_tensors(checkpoint.path / WEIGHTS, weights, encoder.state_dict())
    encoder.load_state_dict(weights)


def encoder_weights(checkpoint: Checkpoint, kind: str) -> dict[str, Tensor]:
    """Read the weights of one encoder of a checkpoint, named as in `load_encoder`.

    Raises InputError if the file is damaged or holds no encoder.
    """
    stored, _ = read_tensors(checkpoint.path, WEIGHTS)
    has_target = any(name.startswith("target_encoder.") for name in stored)
    prefix = "target_encoder." if kind == "target" and has_target else "view_encoder."
    weights = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
    if SPATIAL not in weights:
        raise refusal(checkpoint.path / WEIGHTS, f"holds no {kind} encoder", OTHER)
    return weights


def mapped_weights(
    weights: dict[str, Tensor], trained: SkeletonLayout, layout: SkeletonLayout
) -> dict[str, Tensor]:
    """Return an encoder's weights with the spatial positions of another skeleton.

    The other tensors are shared. Raises InputError if a joint has no counterpart, or the table has
    not the joints that the encoder was trained on.
    """
    spatial = weights[SPATIAL]
    known = (2, trained.num_joints, torch.float32)
    if (spatial.ndim, *spatial.shape[:1], spatial.dtype) != known:
        value = (
            f"{spatial.dtype} {tuple(spatial.shape)}, not a row for each joint of {trained.name}"
        )
        raise InputError(SPATIAL, value, OTHER)
    rows = [spatial[list(joints)].mean(dim=0) for joints in map_joints(trained, layout)]
    return {**weights, SPATIAL: torch.stack(rows)}


def clips_seen_in_training(run: Path, store: Store, ids: np.ndarray) -> int | None:
    """Count the clips, by name, that the run was pre-trained on; None if it does not know.

    In a pool a clip's name has that of its set in front.
    """
    seen = clips_seen(run)
    if not seen:
        return None
    names = (str(store.names[i]) for i in ids)
    return sum(name in seen or clip_in_pool(store.name, name) in seen for name in names)


def describe(subject: Subject, encoder: str) -> dict[str, object]:
    """State the conditions of a result: weights, data, split, device."""
    weights = None
    if subject.checkpoint is not None:
        manifest = read_manifest(subject.checkpoint.path)
        weights = {"step": manifest.step, "sha256": manifest.files[WEIGHTS].sha256}
    trained_on = {k: v for k, v in data_record(subject.run).items() if k != "layout"}
    layout, trained = subject.store.layout, subject.layout
    mapped = None
    if layout.joints != trained.joints:
        pairs = zip(layout.joints, map_joints(trained, layout), strict=True)
        mapped = {joint: [trained.joints[row] for row in rows] for joint, rows in pairs}
    return {
        "encoder": encoder,
        "weights": weights,
        "training_seed": subject.config.seed,
        "trained_on": trained_on,
        "store": subject.store.name,
        "store_fingerprint": subject.store.fingerprint,
        "split": subject.config.data.split,
        "stream": subject.config.data.stream,
        "eval_crop": subject.config.data.eval_crop,
        "joint_map": mapped,
        "device": str(subject.device),
        "dtype": str(subject.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "train_clips": len(subject.train_ids),
        "test_clips": len(subject.test_ids),
        "clips_without_label": len(subject.fit_ids)
        - len(subject.train_ids)
        + len(subject.store.ids(subject.config.data.split, "test"))
        - len(subject.test_ids),
        "test_clips_seen_in_training": clips_seen_in_training(
            subject.run, subject.store, subject.test_ids.cpu().numpy()
        ),
    }
