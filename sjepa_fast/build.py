# SPDX-License-Identifier: Apache-2.0
"""Builds networks and optimiser from a configuration, for training and for evaluation."""

from __future__ import annotations

import torch
from torch import Tensor

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.data.clips import ResidentClips
from sjepa_fast.data.whiten import fit_whitening
from sjepa_fast.objectives.mamp import MAMP
from sjepa_fast.objectives.multiview import MultiView
from sjepa_fast.objectives.objective import Objective
from sjepa_fast.objectives.sjepa import SJEPA
from sjepa_fast.objectives.skeleton2vec import Skeleton2vec
from sjepa_fast.objectives.skeletonmae import SkeletonMAE
from sjepa_fast.runtime.device import check_fits
from sjepa_fast.runtime.guard import fall_back_to_eager
from sjepa_fast.skeletons import SkeletonLayout
from sjepa_kernels.tubelets import to_tubelets

# Clips that are encoded at once (`evaluation/features.py`).
AT_A_TIME = 256
OBJECTIVES = {
    "sjepa": SJEPA,
    "skeleton2vec": Skeleton2vec,
    "mamp": MAMP,
    "skeletonmae": SkeletonMAE,
    "multiview": MultiView,
}


def build_model(
    config: TrainConfig, clips: ResidentClips, train_ids: Tensor, device: torch.device
) -> Objective:
    """Initialise the networks from the seed, with the whitening fitted on training clips.

    Raises InputError if they, and the features of the clips that are scored at a time, do not fit
    into the device's free memory.
    """
    sequences = min(AT_A_TIME, len(clips.labels_N)) * clips.max_bodies
    needed = weight_bytes(config, clips.layout) + feature_bytes(config, clips.layout, sequences)
    check_fits("model", needed, device, "lower model.width, model.depth or data.frames")
    torch.manual_seed(config.seed)
    model: Objective = OBJECTIVES[config.objective.kind](config, clips.layout).to(device)
    if config.data.whiten > 0:
        crops = [clips.eval_crop(ids, config.data) for ids in torch.split(train_ids[:4096], 256)]
        bodies = torch.cat(crops).flatten(0, 1)
        present = (bodies != 0).flatten(1).any(dim=1)
        tubelets = to_tubelets(bodies[present], config.model.segment_length).flatten(0, 1)
        mean, matrix = fit_whitening(tubelets, config.data.whiten)
        for encoder in {model.view_encoder, model.eval_encoder}:
            encoder.embed.get_buffer("whiten_mean").copy_(mean)
            encoder.embed.get_buffer("whiten_matrix").copy_(matrix)
    return model


def weight_bytes(config: TrainConfig, layout: SkeletonLayout) -> int:
    """Return the size of all weights and buffers of the networks, without allocating them."""
    with torch.device("meta"):
        model: Objective = OBJECTIVES[config.objective.kind](config, layout)
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def feature_bytes(config: TrainConfig, layout: SkeletonLayout, sequences: int) -> int:
    """Return the size of the features of so many sequences at once, in float32."""
    tokens = config.data.frames // config.model.segment_length * layout.num_joints
    return 4 * sequences * tokens * config.model.width


def build_optimizer(model: Objective, config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW; biases, norm weights and layer scales are not decayed, the mask token is.

    Position tables are, after MAMP (method 3.6), unless `optim.decay_positions` is off (4.5).
    """
    optim = config.optim
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            # MAMP's mask token is (1, 1, D) and so decayed; ours is (D,).
            spared = weight.ndim == 1 and not name.endswith("mask_token")
            if not optim.decay_positions:
                spared = spared or name.endswith((".temporal", ".spatial"))
            (free if spared else decayed).append(weight)
    groups = [
        {"params": decayed, "weight_decay": optim.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    device = decayed[0].device
    # Gradient and two moments.
    needed = 3 * sum(weight.nbytes for weight in (*decayed, *free))
    check_fits("model", needed, device, "lower model.width or model.depth, or use a GPU with more")
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW(
        groups, lr=0.0, betas=(optim.beta1, optim.beta2), fused=True, capturable=on_gpu
    )
    # Allocate the moments now: in the first step they would land between freed activations and
    # fragment the memory for all later steps.
    for trained in (*decayed, *free):
        optimizer.state[trained] = {
            "step": torch.zeros((), device=trained.device),
            "exp_avg": torch.zeros_like(trained),
            "exp_avg_sq": torch.zeros_like(trained),
        }
    return optimizer


def compile_blocks(model: Objective, config: TrainConfig) -> bool:
    """Compile the transformer blocks of a step; blocks of one shape share one compilation.

    Returns whether any is compiled.

    Left eager is what would gain nothing. On a CPU that is the view encoder if it sees a fifth of
    the tokens or less: its blocks took as long compiled, and compiling them five seconds. On a GPU
    it is, unless compilation was asked for, a block that consists of fused operations: compiled it
    moves as many bytes (`benchmarks/LOG.md`). Nor is an encoder compiled that only the scores
    during the run use. Where PyTorch cannot compile, all blocks stay eager, with a warning.
    """
    on_cpu = model.view_encoder.norm.weight.device.type == "cpu"
    names = [name for name in ("predictor", "target_encoder") if model.network(name) is not None]
    if config.mask.ratio < 0.8 or not on_cpu:
        names.append("view_encoder")
    blocks = [block for name in names for block in model.network(name).blocks]
    if not on_cpu and config.runtime.compile == "auto":
        blocks = [block for block in blocks if not block.all_fused]
    for block in blocks:
        try:
            block.compile(dynamic=False)
        except Exception as error:
            fall_back_to_eager(error)
            return False
    return bool(blocks)
