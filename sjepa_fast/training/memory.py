# SPDX-License-Identifier: Apache-2.0
"""Whether a GPU has the memory to keep the activation of every MLP for the backward.

Kept, it is a quarter of what a step keeps. Made again, in the pass that reads its input anyway, it
costs one more write: 3 % of the bytes that a step of S-JEPA moves (`benchmarks/LOG.md`). In half
precision up to a width of 256 there is nothing to keep: `sjepa_kernels.gelu_mlp` never has it in
memory in the forward.
"""

from __future__ import annotations

import torch

from sjepa_fast.config.schema import TrainConfig, kept_tokens, predicted_tokens
from sjepa_fast.config.traits import TRAITS, masked_views
from sjepa_fast.training.flops import sequences_per_step

# Numbers that a block keeps of each token, in widths: two norms and two sums, q, k and v, what
# attention returns, the hidden layer and its activation.
_WIDTHS_PER_TOKEN = 16
# A step that takes more of a card leaves little room for a larger batch (our choice).
_SHARE = 0.1


def kept_bytes(config: TrainConfig, joints: int, dtype: torch.dtype, processes: int = 1) -> int:
    """Return about how many bytes one process' blocks keep for a backward, activations included.

    With `optim.accumulate` a backward is of one part of the batch.
    """
    model = config.model
    tokens = config.data.frames // model.segment_length * joints
    kept = kept_tokens(config.mask, tokens, joints)
    rows = model.depth * kept
    if TRAITS[config.objective.kind].predicts != "nothing":
        predicted = predicted_tokens(config.mask, tokens - kept)
        # The predictor's last block continues with the predicted tokens alone.
        rows += (model.predictor_depth - 1) * (kept + predicted) + predicted
    shares = processes * config.optim.accumulate
    masks = sequences_per_step(config) // shares * masked_views(config)
    return masks * rows * model.width * _WIDTHS_PER_TOKEN * dtype.itemsize


def recomputes(
    config: TrainConfig, joints: int, device: torch.device, dtype: torch.dtype, processes: int = 1
) -> bool:
    """Whether activations are made again: where the blocks would keep a tenth of the GPU's memory.

    `runtime.recompute` decides where it is not auto. A CPU has its own way (`recompute.py`).
    """
    choice = config.runtime.recompute
    if choice != "auto" or device.type != "cuda":
        return choice == "on"
    total = torch.cuda.get_device_properties(device).total_memory
    return kept_bytes(config, joints, dtype, processes) > _SHARE * total
