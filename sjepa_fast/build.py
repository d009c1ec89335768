"""From a configuration to networks and optimiser; the same for training and evaluation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sjepa_fast.config import TrainConfig
from sjepa_fast.data.loader import ResidentClips
from sjepa_fast.data.whiten import fit_whitening
from sjepa_fast.guard import go_on_eagerly
from sjepa_fast.models.embed import tubelets
from sjepa_fast.objectives.sjepa import SJEPA


def build_model(
    config: TrainConfig, clips: ResidentClips, train_ids: Tensor, device: torch.device
) -> SJEPA:
    """Initialise the networks from the seed, with the whitening fitted on training clips."""
    torch.manual_seed(config.seed)
    model = SJEPA(config, clips.layout).to(device)
    if config.data.whiten > 0:
        crops = [clips.eval_crop(ids, config.data) for ids in torch.split(train_ids[:4096], 256)]
        bodies = torch.cat(crops).flatten(0, 1)
        present = (bodies != 0).flatten(1).any(dim=1)
        tokens = tubelets(bodies[present], config.model.segment_length).flatten(0, 1)
        mean, matrix = fit_whitening(tokens, config.data.whiten)
        for encoder in (model.view_encoder, model.target_encoder):
            encoder.embed.get_buffer("whiten_mean").copy_(mean)
            encoder.embed.get_buffer("whiten_matrix").copy_(matrix)
    return model


def build_optimizer(model: SJEPA, config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW; biases and norm weights are not decayed, positions and mask token are.

    Source: method 3.6 (MAMP's grouping with an empty skip list).
    """
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            # MAMP's mask token is (1, 1, D) and so decayed; ours is (D,).
            one_dimensional = weight.ndim == 1 and not name.endswith("mask_token")
            (free if one_dimensional else decayed).append(weight)
    optim = config.optim
    groups = [
        {"params": decayed, "weight_decay": optim.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(optim.beta1, optim.beta2), fused=True)


def compile_blocks(model: SJEPA) -> None:
    """Compile every transformer block; blocks of one shape share one compilation.

    Where PyTorch cannot compile at all, the blocks stay as they are, with a warning.
    """
    for network in (model.view_encoder, model.target_encoder, model.predictor):
        for block in network.blocks:
            assert isinstance(block, nn.Module)
            try:
                block.compile(dynamic=False)
            except Exception as error:
                go_on_eagerly(error)
                return
