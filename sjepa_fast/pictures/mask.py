# SPDX-License-Identifier: Apache-2.0
"""What the view encoder sees of a clip in a training step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from matplotlib.figure import Figure

from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.data.clips import ResidentClips
from sjepa_fast.data.store import Store
from sjepa_fast.errors import InputError
from sjepa_fast.objectives.objective import StepInput, make_step_input
from sjepa_fast.pictures.scene import ClipRequest, Scene, called, clip_id, open_scene
from sjepa_fast.viz.figure import Movie
from sjepa_fast.viz.pose import turned
from sjepa_fast.viz.tokens import TokenMap, masked_tokens, token_figure, token_movie
from sjepa_kernels.tubelets import to_frames


@dataclass(frozen=True)
class MaskRequest(ClipRequest):
    """Which tokens of a clip are visible and which are masked in a training step."""

    step: int = 0
    """Training step whose random crop and mask are drawn."""


def step_of(clips: ResidentClips, index: int, step: int, config: TrainConfig) -> StepInput:
    """Draw crop, view and mask of one clip in a step, as training would; rows are its bodies."""
    if step < 0:
        raise InputError("step", step, "give 0 or more")
    device = clips.joints_RVC.device
    ids, seed = torch.tensor([index], device=device), torch.tensor(config.seed, device=device)
    return make_step_input(clips, ids, seed, torch.full_like(seed, step), config)


def shown_joints(clips: ResidentClips, index: int, step: int, config: TrainConfig) -> torch.Tensor:
    """Return the same crop as coordinates, whatever the stream of the tokens: (M, T, V, 3)."""
    shown = step_of(clips, index, step, replace(config, data={"stream": "joint"}))
    return to_frames(shown.clip_BNP[: int(clips.bodies_N[index])], clips.layout.num_joints)


def clip_mask(
    config: TrainConfig, store: Store, clips: ResidentClips, index: int, step: int, turn: float = 0
) -> TokenMap:
    """Return the map of what is masked of a clip in a step.

    The first of a body's masks, where it has several.
    """
    batch = step_of(clips, index, step, config)
    masked = torch.ones(batch.clip_BNP.shape[:2], dtype=torch.bool)
    seen = batch.ids_keep_BK.view(len(masked), -1, batch.ids_keep_BK.shape[1])[:, 0]
    masked.scatter_(1, seen.long().cpu(), False)
    bodies, joints = int(clips.bodies_N[index]), clips.layout.num_joints
    clip = shown_joints(clips, index, step, config).cpu().numpy()
    share = 100 * masked.float().mean()
    title = f"{called(store, index)}: {share:.0f} % of the tokens masked, step {step}"
    masked_MSV = masked[:bodies].view(bodies, -1, joints).numpy()
    return masked_tokens(turned(clip, turn), masked_MSV, store.layout, title)


def draw_mask(request: MaskRequest, moving: bool) -> Figure | Movie:
    """Draw the mask of a clip."""
    scene: Scene = open_scene(request)
    index = clip_id(scene, request.clip)
    tokens = clip_mask(scene.config, scene.store, scene.clips, index, request.step, request.turn)
    return token_movie(tokens, request.rate) if moving else token_figure(tokens)
