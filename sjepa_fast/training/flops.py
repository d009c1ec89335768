# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations of a training step, from the configuration alone.

A multiplication with its addition counts as 2. Matrix products are all that is counted: norms,
softmax, GELU, loss, optimiser, EMA, rotations and the mask token's one row per batch are left
out. So is what a kernel computes again in its backward: the count divided by a measured time and by
a device's peak is the model FLOPs utilisation (MFU) as it is usually defined.

A step that computes the targets of equal sequences once is counted with the sequences that it
computes. The papers' code computes all; dividing that count by our time would call left-out work
utilisation.

Shapes: N tokens, K visible, Q masked that are predicted, D width, P numbers per token.
"""

from __future__ import annotations

from dataclasses import dataclass

from sjepa_fast.config.schema import TrainConfig, kept_tokens, predicted_tokens
from sjepa_fast.config.traits import TRAITS, masked_views


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one training step over all processes."""

    view_encoder: int  # its forward, on the visible tokens
    predictor: int  # its forward
    projector: int  # its forward
    target_encoder: int  # its forward, which has no backward
    # Of all but the target encoder: 2 for each 1 of the forward, except that nothing flows back
    # into the clips.
    backward: int

    @property
    def total(self) -> int:
        """All FLOPs of one step."""
        forward = self.view_encoder + self.predictor + self.projector + self.target_encoder
        return forward + self.backward


def linear_flops(rows: int, inputs: int, outputs: int) -> int:
    """2 x rows x inputs x outputs."""
    return 2 * rows * inputs * outputs


def block_flops(tokens: int, width: int, wanted: int | None = None) -> int:
    """FLOPs of a block's forward on N tokens of width D, for Q `wanted` outputs (default N).

    qkv 6 N D^2, attention 4 Q N D, output layer 2 Q D^2, MLP 16 Q D^2.
    """
    queries = tokens if wanted is None else wanted
    return linear_flops(tokens, width, 3 * width) + _after_qkv(queries, tokens, width)


def cross_block_flops(queries: int, keys: int, width: int) -> int:
    """FLOPs of a cross-attention block's forward on one sequence of `queries` tokens."""
    layers = linear_flops(queries, width, width) + linear_flops(keys, width, 2 * width)
    return layers + _after_qkv(queries, keys, width)


def _after_qkv(queries: int, keys: int, width: int) -> int:
    attention = 2 * linear_flops(queries, width, keys)
    mlp = 2 * linear_flops(queries, width, 4 * width)
    return attention + linear_flops(queries, width, width) + mlp


def sequences_per_step(config: TrainConfig) -> int:
    """Return how many bodies a step trains on, over all processes."""
    bodies = 1 if config.data.skip_empty_bodies else config.data.bodies
    return config.optim.batch_size * bodies


def step_flops(
    config: TrainConfig,
    joints: int = 25,
    *,
    visible_to_the_end: bool = False,
    target_sequences: int | None = None,
) -> StepFlops:
    """Count a training step of the whole batch.

    `target_sequences` is how many sequences the target encoders of all processes compute in a step
    (`ResidentClips.distinct_sequences` of each); by default all of them, as in the papers. With
    `objective.target_every` the count is the mean over the steps that share targets.
    With the sizes of the S-JEPA paper it gives method 8.3's figures, less what the predictor's last
    block and head save by leaving the visible tokens out; `visible_to_the_end` counts as if they
    computed those too, as the papers' code does and ours does not.
    """
    model, width, traits = config.model, config.model.width, TRAITS[config.objective.kind]
    size = model.segment_length * 3
    tokens = config.data.frames // model.segment_length * joints
    kept = kept_tokens(config.mask, tokens, joints)
    whitening = linear_flops(1, size, size) if config.data.whiten > 0 else 0
    embedding = linear_flops(1, size, width)

    seen = kept * embedding + model.depth * block_flops(kept, width)
    guess = 0
    if traits.predicts != "nothing":
        guess = _predictor_flops(config, kept, tokens - kept, visible_to_the_end)
    target = 0
    if traits.target_encoder:
        target = tokens * (whitening + embedding) + model.depth * block_flops(tokens, width)
    sequences = sequences_per_step(config)
    masks = sequences * masked_views(config)
    projector = 0
    if config.objective.regularizer != "none":
        hidden, rows = model.projector_hidden, config.optim.batch_size * masked_views(config)
        projector = linear_flops(rows, width, hidden)
        projector += linear_flops(rows, hidden, model.projector_width)
    return StepFlops(
        view_encoder=masks * (seen + kept * whitening),
        predictor=masks * guess,
        projector=projector,
        target_encoder=(target_sequences or sequences) * target // config.objective.target_every,
        backward=masks * (2 * (seen + guess) - kept * embedding) + 2 * projector,
    )


def _predictor_flops(config: TrainConfig, kept: int, masked: int, visible_to_the_end: bool) -> int:
    """FLOPs of the predictor's forward on one sequence."""
    model, width = config.model, config.model.width
    predicted = predicted_tokens(config.mask, masked)
    if model.predictor == "cross":
        blocks = model.predictor_depth * cross_block_flops(predicted, kept, width)
    else:
        both = kept + predicted
        # With the authors' layout, outputs at places of visible tokens are needed too.
        whole = visible_to_the_end or config.objective.legacy_tube_layout
        wanted = both if whole else predicted
        blocks = (model.predictor_depth - 1) * block_flops(both, width)
        blocks += block_flops(both, width, wanted)
        predicted = wanted
    outputs = TRAITS[config.objective.kind].outputs(model)
    head = linear_flops(predicted, width, outputs)
    return linear_flops(kept, width, width) + blocks + head
