# SPDX-License-Identifier: Apache-2.0
"""Which tokens of a clip the encoder looks at.

Shapes: B sequences (bodies), H heads, N = S*V tokens, S segments, V joints, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from sjepa_fast.embedding.loading import Encoder, load
from sjepa_fast.errors import InputError, nearest
from sjepa_fast.joint_map import spoken
from sjepa_fast.models.attention_weights import attention_weights
from sjepa_fast.pictures.scene import ClipRequest, called, clip_id, crop_of, open_scene
from sjepa_fast.skeletons import SkeletonLayout
from sjepa_fast.viz.figure import Movie
from sjepa_fast.viz.pose import turned
from sjepa_fast.viz.tokens import TokenMap, token_figure, token_movie
from sjepa_kernels.tubelets import to_tubelets


@dataclass(frozen=True)
class AttentionRequest(ClipRequest):
    """How much attention each token of a clip gets in a layer of the encoder."""

    encoder: Encoder = "target"
    """target: the EMA encoder, or the view encoder where there is none; view."""
    layer: int = 0
    """Block, from 1; 0 is the last one."""
    head: int = 0
    """Head, from 1; 0 is the mean of all."""
    joint: str = ""
    """Whose attention is shown: of the tokens of this joint; default: of all."""
    segment: int = 0
    """Of the tokens of this segment, from 1; 0 is all."""


def _count(argument: str, value: int, most: int) -> int | None:
    """Return the place from 0 that a number from 1 means; None for 0."""
    if not 0 <= value <= most:
        raise InputError(argument, value, f"give 1 to {most}, or 0")
    return value - 1 if value else None


def _lookers(request: AttentionRequest, layout: SkeletonLayout, segments: int) -> Tensor:
    """Return whose attention is shown, a boolean for each token (N,)."""
    of = torch.ones(segments, layout.num_joints, dtype=torch.bool)
    if request.joint:
        if request.joint not in layout.joints:
            raise InputError("joint", request.joint, nearest(request.joint, list(layout.joints)))
        of[:, torch.arange(layout.num_joints) != layout.joints.index(request.joint)] = False
    segment = _count("segment", request.segment, segments)
    if segment is not None:
        of[torch.arange(segments) != segment] = False
    return of.flatten()


def draw_attention(request: AttentionRequest, moving: bool) -> Figure | Movie:
    """Draw the attention that each token of a clip gets, 1 being an even share."""
    scene = open_scene(request)
    config, layout = scene.config, scene.store.layout
    model = load(request.run, encoder=request.encoder, device="cpu", dtype="float32")
    encoder, length = model.encoder_for(layout), config.model.segment_length
    index = clip_id(scene, request.clip)
    layer = _count("layer", request.layer, len(encoder.blocks))
    head = _count("head", request.head, config.model.heads)
    looks_N = _lookers(request, layout, config.data.frames // length)
    bodies = int(scene.clips.bodies_N[index])
    x = scene.clips.eval_crop(torch.tensor([index]), config.data)[0, :bodies]
    place = len(encoder.blocks) - 1 if layer is None else layer
    weights_BHNN, _, _ = attention_weights(encoder, to_tubelets(x, length), place)
    chosen_BNN = weights_BHNN.mean(dim=1) if head is None else weights_BHNN[:, head]
    share_BN = chosen_BNN[:, looks_N].mean(dim=1) * chosen_BNN.shape[-1]
    heads = "mean of the heads" if head is None else f"head {head + 1}"
    who = f"the {spoken(request.joint)}" if request.joint else "all tokens"
    if request.segment:
        who += f" in segment {request.segment}"
    tokens = TokenMap(
        turned(crop_of(scene.clips, [index], config)[0], request.turn),
        share_BN.view(bodies, -1, layout.num_joints).numpy(),
        layout,
        f"{called(scene.store, index)}: attention of {who}, layer {place + 1}, {heads}",
        "attention (1 is an even share)",
    )
    return token_movie(tokens, request.rate) if moving else token_figure(tokens)
