# SPDX-License-Identifier: Apache-2.0
"""What a run predicts at the masked tokens of a clip, beside what is true, or how wrong it is.

Shapes: B sequences (the clip's bodies), M those that are present, T frames, V joints, S segments, N
tokens, Q predicted ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from sjepa_fast.build import OBJECTIVES
from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.config.traits import TRAITS
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.subject import trained_layout
from sjepa_fast.objectives.coordinates import CoordinateObjective
from sjepa_fast.objectives.mamp import MAMP
from sjepa_fast.objectives.objective import Objective, StepInput
from sjepa_fast.pictures.mask import shown_joints, step_of
from sjepa_fast.pictures.scene import ClipRequest, Scene, called, clip_id, open_scene
from sjepa_fast.runtime.checkpoint import latest_checkpoint, load_weights
from sjepa_fast.skeletons import SkeletonLayout
from sjepa_fast.viz.clips import Track, clip_movie, clip_strips
from sjepa_fast.viz.figure import Movie
from sjepa_fast.viz.pose import Numbers, Stage, turned
from sjepa_fast.viz.tokens import TokenMap, token_figure, token_movie
from sjepa_kernels.tubelets import to_frames

# The longest true arrow is this share of the height of the room for a pose.
ARROW_SHARE = 0.35


@dataclass(frozen=True)
class PredictionRequest(ClipRequest):
    """The predicted beside the true motion at the masked tokens, or the loss of each token."""

    step: int = 0
    """Training step whose random crop, view and mask are drawn."""
    show: Literal["auto", "motion", "loss"] = "auto"
    """motion: of mamp arrows, of skeletonmae the joints themselves; loss: of each masked token, for
    every objective that predicts; auto: motion where the objective predicts it."""


def trained_objective(run: Scene) -> Objective:
    """Return all networks of a run with the weights of its newest checkpoint, in float32.

    Raises InputError if the store has other joints than the run was trained on.
    """
    trained = trained_layout(run.run, run.config.data.root)
    layout: SkeletonLayout = run.store.layout
    if trained.joints != layout.joints:
        value = f"{run.store.name} has the joints of {layout.name}"
        raise InputError("data.root", value, f"use a store of {trained.name}, as in training")
    model: Objective = OBJECTIVES[run.config.objective.kind](run.config, layout)
    load_weights(latest_checkpoint(run.run), model)
    return model.eval()


def _chosen(show: str, config: TrainConfig) -> str:
    kind, stream = config.objective.kind, config.data.stream
    predicts = TRAITS[kind].predicts
    if predicts == "nothing":
        raise InputError("run", f"{kind} predicts nothing", "plot its mask, attention or retrieval")
    lacks = ""
    if predicts == "features":
        lacks = f"{kind} predicts features, which have no coordinates"
    elif stream != "joint":
        lacks = f"the run predicts {stream}s, which are no places of joints"
    if show == "motion" and lacks:
        raise InputError("show", f"motion, but {lacks}", "use --show loss")
    return ("loss" if lacks else "motion") if show == "auto" else show


def draw_prediction(request: PredictionRequest, moving: bool) -> Figure | Movie:
    """Draw what is predicted of a clip; raises InputError if the objective predicts nothing."""
    scene = open_scene(request)
    show = _chosen(request.show, scene.config)
    # One mask of each sequence, of which all tokens are predicted.
    mask: dict[str, object] = {"num_masked_views": 1, "predict_ratio": 1.0}
    config = replace(scene.config, mask=mask)
    index = clip_id(scene, request.clip)
    model = trained_objective(scene)
    batch = step_of(scene.clips, index, request.step, config)
    with torch.no_grad():
        losses_BQ = model.token_losses(batch)
        if show == "loss":
            return _losses(request, scene, config, batch, losses_BQ, index, moving)
        assert isinstance(model, CoordinateObjective)
        restored = model.restored(batch)
    return _motion(request, scene, model, batch, restored, losses_BQ, index, moving)


def _losses(
    request: PredictionRequest,
    scene: Scene,
    config: TrainConfig,
    batch: StepInput,
    losses_BQ: Tensor,
    index: int,
    moving: bool,
) -> Figure | Movie:
    bodies, joints = int(scene.clips.bodies_N[index]), scene.store.layout.num_joints
    values_BN = torch.full(batch.clip_BNP.shape[:2], torch.nan)
    values_BN.scatter_(1, batch.ids_mask_BQ.long(), losses_BQ)
    clip = turned(shown_joints(scene.clips, index, request.step, config).numpy(), request.turn)
    kind = config.objective.kind
    mean = losses_BQ[:bodies].mean()
    tokens = TokenMap(
        clip,
        values_BN[:bodies].view(bodies, -1, joints).numpy(),
        scene.store.layout,
        f"{called(scene.store, index)}: loss of {kind} at the masked tokens, mean {mean:.2f}",
        "cross-entropy" if kind == "sjepa" else "mean squared error",
        "visible to the encoder",
    )
    return token_movie(tokens, request.rate) if moving else token_figure(tokens)


def _motion(
    request: PredictionRequest,
    scene: Scene,
    model: CoordinateObjective,
    batch: StepInput,
    restored: tuple[Tensor, Tensor],
    losses_BQ: Tensor,
    index: int,
    moving: bool,
) -> Figure | Movie:
    bodies, layout = int(scene.clips.bodies_N[index]), scene.store.layout
    length = scene.config.model.segment_length

    def frames(tubelets_BNP: Tensor) -> NDArray[np.float32]:
        return to_frames(tubelets_BNP[:bodies], layout.num_joints).numpy()

    hidden_BN = torch.zeros(batch.clip_BNP.shape[:2])
    hidden_BN.scatter_(1, batch.ids_mask_BQ.long(), 1.0)
    hidden_MSV = hidden_BN[:bodies].view(bodies, -1, layout.num_joints).numpy() > 0.5
    hidden_MTV = hidden_MSV.repeat(length, axis=1)
    seen, (true, predicted) = frames(batch.view_BNP), map(frames, restored)
    error = losses_BQ[:bodies].mean()
    about = f"{called(scene.store, index)}: error {error:.2f} of normalised numbers"
    names = ("True", "Predicted at the masked tokens")
    arrows: list[Numbers | None] = [None, None]
    if isinstance(model, MAMP):
        clips = [turned(seen, request.turn)] * 2
        moved = [
            turned(_over_segments(part, length) * hidden_MTV[..., None], request.turn)
            for part in (true, predicted)
        ]
        times = _enlargement(Stage(clips[0]), moved[0])
        arrows = [times * part for part in moved]
        about += f"; arrows: {times:g} times the motion of {length} frames"
    else:
        clips = [turned(part, request.turn) for part in (true, predicted)]
    stage = Stage(*clips)
    tracks = [
        Track(name, clip, hidden_MTV, part, stage=stage)
        for name, clip, part in zip(names, clips, arrows, strict=True)
    ]
    if moving:
        return clip_movie(tracks, layout, about, hollow="masked", rate=request.rate)
    return clip_strips(tracks, layout, about, hollow="masked")


def _over_segments(motion_MTVC: Numbers, length: int) -> Numbers:
    """Sum the motion over the frames of each segment, for all of them; same shape."""
    bodies, frames, *rest = motion_MTVC.shape
    sums = motion_MTVC.reshape(bodies, frames // length, length, *rest).sum(axis=2)
    return np.asarray(sums.repeat(length, axis=1))


def _enlargement(stage: Stage, arrows_MTVC: Numbers) -> float:
    """Return the factor, of two digits, that gives the longest arrow its length."""
    longest = float(np.linalg.norm(arrows_MTVC[..., :2], axis=-1).max())
    return float(f"{2 * stage.reach_2[1] * ARROW_SHARE / max(longest, 1e-6):.2g}")
