# SPDX-License-Identifier: Apache-2.0
"""One step of a classifier on labelled clips: crop, view, mixup, forward, loss, backward, AdamW.

Like the step of pre-training it keeps all that changes on the device and waits for nothing, so that
a GPU replays it as one CUDA graph. Shapes: B clips, N tokens, P numbers per token, K kept tokens, S
steps, G groups of the optimizer.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.data.clips import ResidentClips
from sjepa_fast.evaluation.probes.mixing import Mixing
from sjepa_fast.evaluation.probes.weight_ema import WeightEma
from sjepa_fast.evaluation.recipes import FinetuneRecipe
from sjepa_fast.models.heads import ActionClassifier
from sjepa_fast.runtime.device import autocast, wants_graph
from sjepa_fast.runtime.graph import StepGraph
from sjepa_fast.runtime.schedule import learning_rate
from sjepa_kernels import Augmentation, random_mask
from sjepa_kernels.purposes import MASK


@dataclass(frozen=True)
class Lengths:
    """A recipe's lengths in steps, for a number of clips."""

    per_epoch: int
    total: int
    warmup: int
    score_every: int


class ClassifierStep:
    """Trains a classifier in place; call it with the clips of a batch, int64 on the device.

    `loss_sum` adds up the losses until it is set to zero, `average` follows the weights, and
    `rates` are the head's learning rates, step by step. With `runtime.cuda_graph` on or auto a GPU
    captures the fourth call and replays it from then on; on elsewhere is an InputError.
    """

    def __init__(
        self,
        model: ActionClassifier,
        clips: ResidentClips,
        views: Augmentation,
        recipe: FinetuneRecipe,
        lengths: Lengths,
        config: TrainConfig,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        device = clips.labels_N.device
        self.model, self.clips, self.views, self.recipe = model, clips, views, recipe
        self.dtype = dtype
        self.mixing = Mixing(recipe.mixup, device)
        self.average = WeightEma(model, recipe.ema)
        self.optimizer = build_finetune_optimizer(model, recipe)
        self.seed, self.done = torch.tensor(seed, device=device), torch.tensor(0, device=device)
        self.loss_sum = torch.zeros((), device=device)
        ends = (recipe.lr, recipe.lr_end)
        self.rates = [
            learning_rate(step, lengths.total, lengths.warmup, *ends)
            for step in range(lengths.total)
        ]
        self.rates_S = torch.tensor(self.rates, device=device)
        groups = self.optimizer.param_groups
        self.scales_G = torch.tensor([group["scale"] for group in groups], device=device)
        self.rates_G = torch.zeros_like(self.scales_G)
        for group, rate in zip(groups, self.rates_G.unbind(), strict=True):
            group["lr"] = rate
        self.graph: StepGraph[None] | None = None
        if wants_graph(config.runtime.cuda_graph, device):
            # By a weak reference: a cycle would keep the model's memory until Python looks for one.
            weak = weakref.proxy(self)
            self.graph = StepGraph(
                lambda ids_B: weak.eager(ids_B),
                required=config.runtime.cuda_graph == "on",
                reset=lambda: weak.optimizer.zero_grad(set_to_none=True),
            )

    def __call__(self, ids_B: Tensor) -> None:
        """Train on the clips `ids_B`; their number must not change between calls."""
        self.model.train()
        if self.graph is None:
            self.eager(ids_B)
        else:
            self.graph(ids_B)

    def eager(self, ids_B: Tensor) -> None:
        """Do one step eagerly, also where calls replay a graph."""
        recipe, bodies = self.recipe, self.clips.max_bodies
        drawn_by = (self.seed, self.done)
        tokens, _ = self.clips.train_tokens(ids_B, *drawn_by, self.views, with_clip=False)
        tokens, mixed = self.mixing.mix(tokens, bodies)
        kept = kept_tokens(recipe.token_drop, tokens, *drawn_by, ids_B)
        with autocast(ids_B.device, self.dtype):
            logits = self.model(tokens, bodies, kept).float()
        loss = mixed.loss(logits, self.clips.labels_N[ids_B], recipe.label_smoothing)
        loss.backward()
        if recipe.clip_grad:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_grad, foreach=True)
        rate = self.rates_S.index_select(0, self.done.view(1))
        torch.mul(rate, self.scales_G, out=self.rates_G)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update()
        self.loss_sum += loss.detach()
        self.done += 1


def layer_of(name: str, depth: int) -> int:
    """Number of a parameter's layer: embedding 0, block i is i + 1, norm and head the top.

    So is the layer of the streams that a pre-trained encoder has not seen.
    """
    if name.startswith("encoder.embed.") and not name.startswith("encoder.embed.others."):
        return 0
    if name.startswith("encoder.blocks."):
        return int(name.split(".")[2]) + 1
    return depth + 1


def build_finetune_optimizer(model: ActionClassifier, recipe: FinetuneRecipe) -> torch.optim.AdamW:
    """AdamW whose groups carry `scale`, the layer's factor on the learning rate (method 6.2).

    Biases and norm weights are not decayed, as in pre-training.
    """
    depth = len(model.encoder.blocks)
    groups: dict[tuple[int, bool], list[Tensor]] = {}
    for name, weight in model.named_parameters():
        weight.requires_grad_()
        groups.setdefault((layer_of(name, depth), weight.ndim > 1), []).append(weight)
    return torch.optim.AdamW(
        [
            {
                "params": weights,
                "weight_decay": recipe.weight_decay if decayed else 0.0,
                "scale": recipe.layer_decay ** (depth + 1 - layer),
            }
            for (layer, decayed), weights in groups.items()
        ],
        lr=0.0,
        betas=(0.9, recipe.beta2),
        fused=True,
        capturable=next(model.parameters()).is_cuda,
    )


def kept_tokens(
    share: float, tokens_BNP: Tensor, seed: Tensor, step: Tensor, ids: Tensor
) -> Tensor | None:
    """Return the ids (B, K) of the tokens of each sequence that are not dropped; None: all are."""
    if share == 0:
        return None
    sequences, tokens = tokens_BNP.shape[:2]
    keep = max(1, round(tokens * (1 - share)))
    bodies = sequences // len(ids)
    drawn = random_mask(
        sequences, tokens, keep, seed, step=step, clip_ids_C=ids, bodies=bodies, purpose=MASK
    )
    return drawn.ids_keep_BK
