"""Floating-point operations of a training step, from the configuration alone.

A multiplication with its addition counts as 2. Matrix products are all that is counted: norms,
softmax, GELU, loss, optimiser, EMA, rotations and the mask token's one row a batch are left out. So
is what a kernel computes again in its backward: divided by a measured time and by a device's peak,
the count gives the model FLOPs utilisation (MFU) as it is usually meant.

Shapes: N tokens, K visible and Q masked, D width, P numbers a token.
"""

from __future__ import annotations

from dataclasses import dataclass

from sjepa_fast.config import TrainConfig, kept_tokens


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one training step over all processes.

    Attributes:
        view_encoder: Its forward, on the visible tokens.
        predictor: Its forward.
        target_encoder: Its forward, which has no backward.
        backward: Of view encoder and predictor: 2 for each 1 of the forward, except that nothing
            flows back into the clips.
    """

    view_encoder: int
    predictor: int
    target_encoder: int
    backward: int

    @property
    def total(self) -> int:
        """Everything that one step multiplies and adds."""
        return self.view_encoder + self.predictor + self.target_encoder + self.backward


def linear_flops(rows: int, inputs: int, outputs: int) -> int:
    """2 x rows x inputs x outputs."""
    return 2 * rows * inputs * outputs


def block_flops(tokens: int, width: int, wanted: int | None = None) -> int:
    """FLOPs of a transformer block's forward on one sequence.

    qkv 6 N D^2, attention 4 Q N D, output layer 2 Q D^2, MLP 16 Q D^2.

    Args:
        tokens: N.
        width: D.
        wanted: Q, tokens whose output is wanted; N if not given.

    Returns:
        The count.
    """
    queries = tokens if wanted is None else wanted
    attention = 2 * linear_flops(queries, width, tokens)
    rest = linear_flops(queries, width, width) + 2 * linear_flops(queries, width, 4 * width)
    return linear_flops(tokens, width, 3 * width) + attention + rest


def sequences_per_step(config: TrainConfig) -> int:
    """Return how many bodies a step trains on, over all processes."""
    bodies = 1 if config.data.skip_empty_bodies else config.data.bodies
    return config.optim.batch_size * bodies


def step_flops(config: TrainConfig, joints: int = 25) -> StepFlops:
    """Count a training step.

    With the sizes of the S-JEPA paper it gives method 8.3's figures, less what the predictor's last
    block and head save by leaving the visible tokens out.

    Args:
        config: Sizes, mask and batch.
        joints: V of the store's layout.

    Returns:
        The counts of the whole batch.
    """
    model, width = config.model, config.model.width
    size = model.segment_length * 3
    tokens = config.data.frames // model.segment_length * joints
    kept = kept_tokens(config.mask, tokens, joints)
    masked = tokens - kept
    whitening = linear_flops(1, size, size) if config.data.whiten > 0 else 0
    embedding = linear_flops(1, size, width)

    seen = kept * embedding + model.depth * block_flops(kept, width)
    predicted = (
        linear_flops(kept, width, width)
        + (model.predictor_depth - 1) * block_flops(tokens, width)
        + block_flops(tokens, width, masked)
        + linear_flops(masked, width, width)
    )
    target = tokens * (whitening + embedding) + model.depth * block_flops(tokens, width)
    backward = 2 * (seen + predicted) - kept * embedding
    sequences = sequences_per_step(config)
    return StepFlops(
        view_encoder=sequences * (seen + kept * whitening),
        predictor=sequences * predicted,
        target_encoder=sequences * target,
        backward=sequences * backward,
    )
