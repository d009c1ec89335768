# SPDX-License-Identifier: Apache-2.0
"""What the objectives share: their networks, and their input and output in a step.

Shapes: B sequences (clips x bodies), R masks of each, N = S*V tokens, P numbers per token, K
kept, Q masked, D width. Rows of masks are sequence-major: row b * R + r is mask r of sequence b.
Several crops of each clip are further sequences, crop-major: all first ones, then all second ones.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.config.traits import TRAITS
from sjepa_fast.data.clips import ResidentClips, augmentation
from sjepa_fast.models.encoder import SkeletonTransformer
from sjepa_fast.models.predictor import Predictor
from sjepa_fast.models.projector import Projector
from sjepa_fast.models.shadow import shadow
from sjepa_fast.objectives.distinct import Distinct, Encoded
from sjepa_fast.objectives.masking import draw_mask, draw_predicted
from sjepa_fast.objectives.regularizer import Samples, regularize
from sjepa_fast.runtime.dist import ALONE, World
from sjepa_fast.skeletons import SkeletonLayout
from sjepa_kernels.purposes import MASK, PREDICT


@dataclass(frozen=True)
class Targets:
    """What the target encoder makes of a batch, before masks choose from it."""

    tokens_UND: Tensor
    """Targets of all tokens of all distinct sequences."""
    encoded: Encoded


@dataclass(frozen=True)
class StepInput:
    """The networks' input in one step; the ids have R rows per row of tokens."""

    view_BNP: Tensor
    clip_BNP: Tensor
    ids_keep_BK: Tensor
    ids_mask_BQ: Tensor
    """The masked tokens to predict: all, or with `mask.predict_ratio` some."""
    distinct: Distinct | None = None
    """Which sequences are equal, if it is known that enough are."""
    targets: Targets | None = None
    """Targets made before this step (`objective.target_every`); without them it makes its own."""
    samples: Samples | None = None
    """What a regularizer needs, where there is one."""

    def ids_by_sequence(self) -> Tensor:
        """Ids of the masked tokens of all masks of a sequence, (B, R*Q)."""
        return self.ids_mask_BQ.reshape(len(self.view_BNP), -1)

    def target_input(self) -> Tensor:
        """Clips for the target encoder, each sequence of them once: (U, N, P), or (B, N, P)."""
        return self.clip_BNP if self.distinct is None else self.distinct.gather(self.clip_BNP)

    def target_rows(self) -> Tensor:
        """Rows of the target encoder's tokens (U*N) that are to be predicted, (B*R*Q,)."""
        ids, tokens = self.ids_by_sequence(), self.clip_BNP.shape[1]
        if self.distinct is None:
            slot_B = torch.arange(len(ids), device=ids.device)
        else:
            slot_B = self.distinct.slot_B
        return (ids + (slot_B * tokens)[:, None]).flatten()


@dataclass(frozen=True)
class StepOutput:
    """The output of an objective in one step."""

    loss: Tensor
    encoded: Encoded
    # Sum of the target features over masked tokens (D,), if there is a center.
    center_sum: Tensor | None = None
    center_count: int = 0  # rows in that sum

    @property
    def features(self) -> Tensor:
        """What `Encoded.features` returns."""
        return self.encoded.features()


class Objective(nn.Module):
    """View encoder and what an objective has of predictor, projector, target encoder and center.

    Args:
        config: Sizes and settings.
        layout: Joints of the store.
        embed_mask_token: Whether the mask token passes the predictor's input layer (S-JEPA).
    """

    predictor: Predictor | None
    projector: Projector | None
    target_encoder: SkeletonTransformer | None
    center: Tensor | None

    def __init__(
        self, config: TrainConfig, layout: SkeletonLayout, *, embed_mask_token: bool = False
    ) -> None:
        super().__init__()
        data, model = config.data, config.model
        segments, joints = data.frames // model.segment_length, layout.num_joints
        self.view_encoder = SkeletonTransformer.of(config, joints)
        self.predictor = None
        if TRAITS[config.objective.kind].predicts != "nothing":
            self.predictor = Predictor(
                segments,
                joints,
                model.width,
                model.predictor_depth,
                model.heads,
                outputs=TRAITS[config.objective.kind].outputs(model),
                embed_mask_token=embed_mask_token,
                layer_scale=model.layer_scale,
                cross=model.predictor == "cross",
            )
        self.projector = None
        if config.objective.regularizer != "none":
            sizes = model.projector_hidden, model.projector_width
            self.projector = Projector(model.width, *sizes)
        self.target_encoder = None
        # Half-precision copies by name; no submodules: the checkpoint holds the originals.
        self._shadows: dict[str, nn.Module] = {}
        self.register_buffer("center", None)
        self.objective = config.objective
        self.joints = joints

    def network(self, name: str) -> Any:
        """Return what computes as a part, such as `view_encoder` or `predictor`, in a step.

        That is the network itself, its half-precision copy, or None where there is none.
        """
        return self._shadows.get(name) or getattr(self, name)

    def shadow(self, name: str, dtype: torch.dtype) -> dict[str, Tensor]:
        """Let a half-precision copy (autocast's `dtype`) of a network compute in its place.

        Returns the copy's own tensors by parameter name, to be kept up to date.
        """
        twin, shadows = shadow(getattr(self, name), dtype)
        if name == "target_encoder" and self.objective.target_stream == "compute":
            twin.stream_dtype = dtype
        self._shadows[name] = twin
        return shadows

    @property
    def eval_encoder(self) -> SkeletonTransformer:
        """The encoder that is used downstream: the target encoder where there is one."""
        return self.view_encoder if self.target_encoder is None else self.target_encoder

    def encode_visible(self, batch: StepInput) -> Tensor:
        """Features of the visible tokens, (B*R, K, D)."""
        view = batch.view_BNP
        masks = len(batch.ids_keep_BK) // len(view)
        if masks > 1:
            view = view.repeat_interleave(masks, dim=0)
        visible: Tensor = self.network("view_encoder")(view, batch.ids_keep_BK)
        return visible

    def regularized(self, loss: Tensor, visible_BKD: Tensor, batch: StepInput) -> Tensor:
        """Add the regularizer of the clips' features to a loss, if there is one.

        `visible_BKD` are the view encoder's features of the visible tokens, one row of them for
        each mask; each mask of all clips is a view of its own to the regularizer.
        """
        if self.projector is None:
            return loss
        assert batch.samples is not None
        by_body_CMRKD = visible_BKD.unflatten(0, (*batch.samples.shares_CM.shape, -1))
        features = batch.samples.features(by_body_CMRKD.movedim(2, 0))
        penalty = regularize(self.projector(features), batch.samples, self.objective)
        return loss + self.objective.regularizer_weight * penalty

    def make_targets(self, batch: StepInput) -> Targets:
        """Run the target encoder, where there is one, on the batch."""
        raise NotImplementedError

    def token_losses(self, batch: StepInput) -> Tensor:
        """Loss of each token that is predicted, whose mean is a step's without regularizer.

        Returns (B, R*Q) float32 in the order of `batch.ids_by_sequence()`. For pictures; only
        objectives with a predictor have it.
        """
        raise NotImplementedError

    def forward(self, batch: StepInput) -> StepOutput:
        """Loss of one step."""
        raise NotImplementedError


@torch.no_grad()
def make_step_input(
    clips: ResidentClips,
    ids_B: Tensor,
    seed: Tensor,
    step: Tensor,
    config: TrainConfig,
    world: World = ALONE,
) -> StepInput:
    """Crop, view, tubelets and masks of a batch of clips, with bodies folded into sequences.

    S-JEPA's masks are drawn from the clip, not from its view (method 3.4, our choice), per body.
    For the others the view is the clip. Clip ids are int64, seed and step 0-dim int64; all three
    enter the random draws. Of several crops, V of them, crop v of step s has the draws that a
    single one would have in step s V + v (our choice). `world` are the processes whose clips a
    regularizer compares.
    """
    traits = TRAITS[config.objective.kind]
    with_clip = traits.masks_from == "clip"
    settings = augmentation(config, clips.max_bodies)
    if traits.several_crops:
        count, crops = config.objective.views, []
        for at in (step * count + v for v in range(count)):
            crop, _ = clips.train_tokens(ids_B, seed, at, settings, with_clip=False)
            crops.append((crop, *_draw_masks(crop, clips, ids_B, seed, at, config)))
        view, keep, mask = (torch.cat(parts) for parts in zip(*crops, strict=True))
        clip = view
    else:
        view, clip = clips.train_tokens(ids_B, seed, step, settings, with_clip=with_clip)
        if not with_clip:
            clip = view
        keep, mask = _draw_masks(clip, clips, ids_B, seed, step, config)
    distinct = None
    slots = clips.distinct_sequences(len(ids_B))
    if traits.target_encoder and slots < len(clip):
        distinct = Distinct.of(clips.present_NM.index_select(0, ids_B).flatten(), slots)
    samples = None
    if config.objective.regularizer != "none":
        samples = Samples.of(clips.present_NM.index_select(0, ids_B), seed, step, world)
    return StepInput(view, clip, keep, mask, distinct, samples=samples)


@torch.no_grad()
def mask_again(
    batch: StepInput,
    clips: ResidentClips,
    ids_B: Tensor,
    seed: Tensor,
    step: Tensor,
    config: TrainConfig,
) -> StepInput:
    """Return the batch with the masks of another step; crop, view and targets stay."""
    keep, mask = _draw_masks(batch.clip_BNP, clips, ids_B, seed, step, config)
    samples = batch.samples and dataclasses.replace(batch.samples, step=step)
    return dataclasses.replace(batch, ids_keep_BK=keep, ids_mask_BQ=mask, samples=samples)


def _draw_masks(
    clip_BNP: Tensor,
    clips: ResidentClips,
    ids_B: Tensor,
    seed: Tensor,
    step: Tensor,
    config: TrainConfig,
) -> tuple[Tensor, Tensor]:
    """Kept ids, and those to predict, of all masks of each sequence."""
    bodies, joints, views = clips.max_bodies, clips.layout.num_joints, config.mask.num_masked_views
    keys = ids_B, bodies, seed, step, config.mask
    drawn = []
    for i in range(views):
        hidden = draw_mask(clip_BNP, *keys, joints, purpose=MASK + i)
        predicted = draw_predicted(hidden.ids_mask_BQ, *keys, purpose=PREDICT + i)
        drawn.append((hidden.ids_keep_BK, predicted))
    if views == 1:
        return drawn[0]
    keep, mask = (torch.stack(ids, dim=1).flatten(0, 1) for ids in zip(*drawn, strict=True))
    return keep, mask
