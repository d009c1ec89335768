# SPDX-License-Identifier: Apache-2.0
"""The clips of a page: what the network sees, a mask, loss and attention by token, a map of them.

Shapes: B clips, R present bodies of them, T frames of the network's crop, K key frames shown,
S segments, V joints, N = S*V tokens, Q masked.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sjepa_fast.build import OBJECTIVES
from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.data.clip_table import NO_LABEL
from sjepa_fast.data.clips import ResidentClips
from sjepa_fast.data.store import Store
from sjepa_fast.evaluation.features import pool_tokens, scale_features
from sjepa_fast.evaluation.plane import pca
from sjepa_fast.names import printable
from sjepa_fast.objectives.coordinates import CoordinateObjective
from sjepa_fast.objectives.masking import draw_mask
from sjepa_fast.objectives.objective import Objective, StepInput
from sjepa_fast.reporting.tokens import (
    features_and_attention,
    predicted_frames,
    predicts_coordinates,
)
from sjepa_fast.training.flops import block_flops
from sjepa_kernels.tubelets import to_tubelets

MOST_CLIPS, LEAST_CLIPS = 96, 12
# What a scene may cost without a GPU: some ten seconds of two cores.
CPU_FLOPS = 10**12
KEY_FRAMES = 32
# Clips that the networks see at a time: attention weights have N x N numbers a head.
AT_A_TIME = 8
# Sensors of all known sets take about as many.
FRAMES_PER_SECOND = 30
# Beyond these shares of all values a color is the last one.
EXTREMES = (0.02, 0.98)


@dataclass(frozen=True)
class Networks:
    """What is looked at: trained weights in networks of their own, in float32."""

    model: Objective
    config: TrainConfig

    @staticmethod
    def of(config: TrainConfig, store: Store, weights: dict[str, Tensor]) -> Networks:
        """Build the networks of a configuration with these weights, where the weights are.

        Those of training may be compiled for its batches, or have half-precision copies.
        """
        model: Objective = OBJECTIVES[config.objective.kind](config, store.layout)
        model.load_state_dict(weights)
        device = next(iter(weights.values())).device
        return Networks(model.to(device).eval().requires_grad_(False), config)


@dataclass(frozen=True)
class Tokens:
    """What the networks make of clips; rows are the present bodies of all clips, R of them."""

    joints: NDArray[np.float32]  # (R, K, V, 3)
    hidden: NDArray[np.bool_]  # (R, N)
    attention: NDArray[np.float32]  # (R, N)
    loss: NDArray[np.float32] | None  # (R, N), NaN where visible
    predicted: NDArray[np.float32] | None  # (R, K, V, 3)
    features: Tensor  # (B, numbers)


def chosen_clips(store: Store, split: str, most: int) -> tuple[str, NDArray[np.int64]]:
    """Choose clips of the test part, or without one of the training part, the same at every call.

    The classes take turns; within a class, and without labels, clips are taken at even distances.
    Returns the part and the clips' ids.
    """
    part = "test" if len(store.ids(split, "test")) else "train"
    ids = store.ids(split, part)
    labels = np.asarray(store.labels)[ids]
    groups = [_spread(ids[labels == label]) for label in np.unique(labels)]
    turns = [group[turn] for turn in range(most) for group in groups if turn < len(group)]
    return part, np.array(turns[:most], dtype=np.int64)


def _spread(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The ids in an order whose every beginning covers them evenly: ends, middle, quarters."""
    count = len(ids)
    # The golden ratio's multiples fill the unit interval evenly.
    places = np.argsort((np.arange(count) * 0.6180339887498949) % 1.0, kind="stable")
    return ids[np.argsort(places, kind="stable")]


@torch.no_grad()
def look(networks: Networks, clips: ResidentClips, ids_B: Tensor) -> Tokens:
    """Show clips to the networks: the centered crop without augmentation, masked as in step 0."""
    parts = [_look(networks, clips, ids) for ids in ids_B.split(AT_A_TIME)]

    def joined(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else np.concatenate(values)

    arrays = {name: joined(name) for name in ("joints", "hidden", "attention", "loss", "predicted")}
    return Tokens(**arrays, features=torch.cat([part.features for part in parts]))


def _look(networks: Networks, clips: ResidentClips, ids_B: Tensor) -> Tokens:
    config, model = networks.config, networks.model
    data, joints = config.data, clips.layout.num_joints
    seed = torch.tensor(config.seed, device=ids_B.device)
    # Rows are clips x bodies; absent bodies are zero, and all that follows is of the present ones.
    is_there = clips.present_NM[ids_B].flatten().bool()
    shown = clips.eval_crop(ids_B, data, stream="joint").flatten(0, 1)[is_there]
    every = to_tubelets(clips.eval_crop(ids_B, data).flatten(0, 1), config.model.segment_length)
    keys_of_draw = ids_B, clips.max_bodies, seed, torch.zeros_like(seed)
    mask = draw_mask(every, *keys_of_draw, config.mask, joints)
    x, keep, hide = every[is_there], mask.ids_keep_BK[is_there], mask.ids_mask_BQ[is_there]
    batch = StepInput(x, x, keep, hide)
    keys = key_frames(data.frames)
    loss = predicted = None
    if model.predictor is not None:
        none = torch.full(x.shape[:2], torch.nan, device=x.device)
        loss = _array(none.scatter(1, hide.long(), model.token_losses(batch)))
    if predicts_coordinates(config):
        assert isinstance(model, CoordinateObjective)
        predicted = _array(predicted_frames(model, batch)[:, keys])
    # One absent body stands for all of them.
    seen = torch.cat([x, torch.zeros_like(x[:1])])
    features, attention = features_and_attention(model.eval_encoder, seen)
    row_of = torch.where(is_there, is_there.cumsum(0) - 1, len(x))
    by_clip = features.float()[row_of].unflatten(0, (-1, clips.max_bodies))
    hidden = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    return Tokens(
        joints=_array(shown[:, keys]),
        hidden=hidden.scatter(1, keep.long(), False).cpu().numpy(),
        attention=_array(attention[:-1]),
        loss=loss,
        predicted=predicted,
        features=pool_tokens(by_clip, config.eval.online_pool, joints),
    )


def _array(values: Tensor) -> NDArray[np.float32]:
    return values.float().cpu().numpy()


def key_frames(frames: int) -> list[int]:
    """Return the frames of the crop that are kept; the page draws straight lines between them."""
    return [int(i) for i in np.linspace(0, frames - 1, min(frames, KEY_FRAMES)).round()]


def flat_map(features_BF: Tensor) -> NDArray[np.float32]:
    """Return the first two principal axes of features, (B, 2)."""
    if len(features_BF) < 2:
        return np.zeros((len(features_BF), 2), np.float32)
    return pca(_array(features_BF.nan_to_num(0.0)), 0)[0]


def packed(values: NDArray[Any]) -> str:
    """Return an array's bytes in base64."""
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def body_bytes(config: TrainConfig, joints: int) -> int:
    """Return about how many bytes a body takes in the page."""
    tokens = config.data.frames // config.model.segment_length * joints
    poses = 6 * min(config.data.frames, KEY_FRAMES) * joints
    copies = 2 if predicts_coordinates(config) else 1
    return int(4 / 3 * (copies * poses + 3 * tokens)) + 300


def body_flops(config: TrainConfig, joints: int) -> int:
    """Return about what the networks multiply for a body: two encoders, and the predictor."""
    tokens = config.data.frames // config.model.segment_length * joints
    blocks = 2 * config.model.depth + config.model.predictor_depth
    return blocks * block_flops(tokens, config.model.width)


def scene(
    networks: Networks, store: Store, clips: ResidentClips, budget: int
) -> dict[str, Any] | None:
    """Return plain values of as many clips as fit into `budget` bytes; None if none does."""
    config, joints, device = networks.config, store.layout.num_joints, clips.joints_RVC.device
    most = budget // body_bytes(config, joints)
    if device.type == "cpu":
        most = min(most, max(LEAST_CLIPS, CPU_FLOPS // body_flops(config, joints)))
    part, ids = chosen_clips(store, config.data.split, MOST_CLIPS)
    present = np.asarray(store.bodies)[ids].astype(int)
    ids = ids[np.cumsum(present) <= most]
    if len(ids) == 0:
        return None
    present = present[: len(ids)]
    ends = np.cumsum(present)
    bodies = [slice(end - count, end) for end, count in zip(ends, present, strict=True)]
    found = look(networks, clips, torch.from_numpy(ids).to(device))
    pool, features = config.eval.online_pool, found.features
    places = flat_map(scale_features(features, features, config.eval.knn_scaling, pool)[0])
    ranges = {"attention": _range(found.attention)}
    if found.loss is not None:
        ranges = {"loss": _range(found.loss), **ranges}
    entries = [
        _entry(store, int(clip), found, rows, ranges) | _at(place)
        for clip, rows, place in zip(ids, bodies, places, strict=True)
    ]
    labels = np.asarray(store.labels)[ids]
    return {
        "part": part,
        "of": len(store.ids(config.data.split, part)),
        "pool": pool,
        "joints": [printable(joint, 60) for joint in store.layout.joints],
        "bones": [list(bone) for bone in store.layout.bones],
        "sides": _sides(store),
        "frames": config.data.frames,
        "keys": key_frames(config.data.frames),
        "segment": config.model.segment_length,
        "ranges": ranges,
        "predicted": config.objective.kind if predicts_coordinates(config) else None,
        "classes": {
            int(label): printable(store.class_names[label], 60)
            for label in np.unique(labels)
            if label != NO_LABEL
        },
        "clips": entries,
    }


def _sides(store: Store) -> list[int]:
    """1 for each left joint, 2 for each right one, 0 for the others."""
    sides = [0] * store.layout.num_joints
    for left, right in store.layout.swaps:
        sides[left], sides[right] = 1, 2
    return sides


def _at(place_2: NDArray[np.float32]) -> dict[str, float]:
    return {"x": round(float(place_2[0]), 4), "y": round(float(place_2[1]), 4)}


def _range(values: NDArray[np.float32]) -> list[float]:
    usable = values[np.isfinite(values)]
    low, high = np.quantile(usable, EXTREMES) if len(usable) else (0.0, 1.0)
    return [float(low), float(high)]


def _levels(values: NDArray[np.float32], limits: list[float]) -> NDArray[np.uint8]:
    """Return 1 to 255 for values within the limits; 0 for none."""
    low, high = limits
    share = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    return np.where(np.isfinite(values), 1 + np.round(254 * np.nan_to_num(share)), 0).astype(
        np.uint8
    )


def _entry(
    store: Store, clip: int, found: Tokens, bodies: slice, ranges: dict[str, list[float]]
) -> dict[str, Any]:
    """Plain values of one clip, its arrays in base64: poses int16, tokens one byte each."""
    poses = found.joints[bodies]
    middle = (poses.max(axis=(0, 1, 2)) + poses.min(axis=(0, 1, 2))) / 2
    # Predictions may lie outside.
    reach = 1.5 * max(float(np.abs(poses - middle).max()), 1e-6)

    def coded(values: NDArray[np.float32]) -> str:
        scaled = np.clip((values - middle) / reach, -1, 1)
        return packed(np.round(32767 * scaled).astype("<i2"))

    entry = {
        "name": printable(str(store.names[clip]), 120),
        "label": int(store.labels[clip]),
        "bodies": len(poses),
        "seconds": round(float(store.frames[clip]) / FRAMES_PER_SECOND, 2),
        "middle": [round(float(v), 5) for v in middle],
        "reach": round(reach, 6),
        "poses": coded(poses),
        "hidden": packed(found.hidden[bodies].astype(np.uint8)),
    }
    for name, limits in ranges.items():
        entry[name] = packed(_levels(getattr(found, name)[bodies], limits))
    if found.predicted is not None:
        entry["predicted"] = coded(found.predicted[bodies])
    return entry
