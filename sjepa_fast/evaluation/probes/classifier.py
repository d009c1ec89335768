# SPDX-License-Identifier: Apache-2.0
"""Training of encoder and head on labels: the papers' fine-tuning, and training from scratch.

The same fast path as pre-training: clips on the device, fused crops and views, bfloat16 where the
device has it, no synchronisation with the device between two scores. Shapes: B clips, M bodies, N
tokens, P numbers per token, Q test clips, C classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.config.validation import validate_pool
from sjepa_fast.data.clips import ResidentClips, augmentation
from sjepa_fast.data.order import epoch_order
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.metrics import accuracy
from sjepa_fast.evaluation.probes.mixing import Mixing
from sjepa_fast.evaluation.probes.scoring import classify
from sjepa_fast.evaluation.probes.weight_ema import WeightEma
from sjepa_fast.evaluation.recipes import FinetuneRecipe
from sjepa_fast.models.heads import ActionClassifier
from sjepa_fast.runtime.device import autocast, wants_compile
from sjepa_fast.runtime.logging import RunLog
from sjepa_fast.runtime.progress import Display
from sjepa_fast.runtime.schedule import learning_rate
from sjepa_kernels import Augmentation, random_mask
from sjepa_kernels.purposes import MASK
from sjepa_kernels.tubelets import TokenStream


@dataclass(frozen=True)
class Finetuned:
    """Accuracies in percent, after the last step and at the best score, and the last scores."""

    last: float
    best: float
    best_step: int
    scores_QC: Tensor


@dataclass(frozen=True)
class Lengths:
    """A recipe's lengths in steps, for a number of clips."""

    per_epoch: int
    total: int
    warmup: int
    score_every: int


def recipe_lengths(recipe: FinetuneRecipe, clips: int) -> tuple[int, Lengths]:
    """Return clips per step, and the recipe's lengths in steps, for a number of training clips.

    An epoch's last batch is dropped if it is not full. Raises InputError if a number is out of
    range, or there are too few clips for BatchNorm.
    """
    for name in ("length", "score_every", "batch_size", "hidden", "test_crops"):
        if getattr(recipe, name) < 1:
            raise InputError(f"recipe.{name}", getattr(recipe, name), "give at least 1")
    for name in ("drop_path", "dropout", "label_smoothing", "token_drop", "ema"):
        if not 0 <= getattr(recipe, name) < 1:
            raise InputError(f"recipe.{name}", getattr(recipe, name), "give 0 to below 1")
    for name in ("lr", "lr_end", "weight_decay", "clip_grad", "layer_decay", "mixup"):
        value = getattr(recipe, name)
        if not (value >= 0 and math.isfinite(value)):
            raise InputError(f"recipe.{name}", value, "give a finite number, 0 or more")
    if not 0 <= recipe.warmup < recipe.length:
        fix = f"make it shorter than recipe.length {recipe.length}"
        raise InputError("recipe.warmup", recipe.warmup, fix)
    batch = min(recipe.batch_size, clips)
    if batch < 2:
        raise InputError("recipe.batch_size", batch, "BatchNorm needs 2 clips per step or more")
    per_epoch = clips // batch
    unit = per_epoch if recipe.unit == "epochs" else 1
    lengths = Lengths(
        per_epoch, recipe.length * unit, recipe.warmup * unit, recipe.score_every * unit
    )
    return batch, lengths


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
    )


def finetune_views(recipe: FinetuneRecipe, config: TrainConfig, bodies: int) -> Augmentation:
    """Return what the views of a recipe are for a run's clips.

    Raises InputError if one of its ranges, or the run's stream, does not fit.
    """
    if recipe.streams == "all" and config.data.stream != "joint":
        value = f"all for a run whose data.stream is {config.data.stream}"
        raise InputError("recipe.streams", value, "use --recipe.streams run")
    validate_pool("recipe.pool", recipe.pool, config)
    views = recipe.views
    stream: TokenStream = "all" if recipe.streams == "all" else config.data.stream
    try:
        return augmentation(config, bodies, crop=views, view=views, stream=stream)
    except ValueError as error:
        name, _, reason = str(error).partition(": ")
        value, _, fix = reason.partition("; ")
        raise InputError(f"recipe.views.{name}", value, fix) from error


def _batches(ids: Tensor, batch: int, per_epoch: int, seed: int) -> Iterator[Tensor]:
    numbers, epoch = ids.cpu().numpy(), 0
    while True:
        order = torch.from_numpy(epoch_order(numbers, seed, epoch)).to(ids.device)
        yield from order[: per_epoch * batch].split(batch)
        epoch += 1


def train_classifier(
    model: ActionClassifier,
    clips: ResidentClips,
    train_ids: Tensor,
    test_ids: Tensor,
    config: TrainConfig,
    recipe: FinetuneRecipe,
    dtype: torch.dtype,
    seed: int,
    log: RunLog,
    display: Display,
) -> Finetuned:
    """Train encoder and head in place by the recipe, and score the test part every `score_every`.

    The test clips are used for the scores alone. `seed` is that of order and views; dropout follows
    torch's own generator. The log gets a row, and the display its figures, at every score. Raises
    FloatingPointError if the loss is not finite.
    """
    device = train_ids.device
    views = finetune_views(recipe, config, clips.max_bodies)
    batch, lengths = recipe_lengths(recipe, len(train_ids))
    mixing = Mixing(recipe.mixup, device)
    average = WeightEma(model, recipe.ema)
    score = partial(classify, stream=views.stream, crops=recipe.test_crops)
    optimizer = build_finetune_optimizer(model, recipe)
    test_labels = clips.labels_N[test_ids]
    # On the device, because they seed the draws of the views.
    key, done = torch.tensor(seed, device=device), torch.tensor(0, device=device)
    loss_sum, best, scores = torch.zeros((), device=device), (0.0, 0), torch.empty(0)
    step, compiles = 1, wants_compile(config.runtime.compile, device)
    first = "compiling" if compiles else "first step"
    display.count("step", lengths.total, now=lambda: step - 1, first=first)
    clock, logged = time.perf_counter(), 0
    batches = _batches(train_ids, batch, lengths.per_epoch, seed)
    for step in range(1, lengths.total + 1):
        ids = next(batches)
        model.train()
        tokens, _ = clips.train_tokens(ids, key, done, views, with_clip=False)
        tokens, mixed = mixing.mix(tokens, clips.max_bodies)
        kept = kept_tokens(recipe.token_drop, tokens, key, done, ids)
        with autocast(device, dtype):
            logits = model(tokens, clips.max_bodies, kept).float()
        loss = mixed.loss(logits, clips.labels_N[ids], recipe.label_smoothing)
        loss.backward()
        if recipe.clip_grad:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad, foreach=True)
        rate = learning_rate(step - 1, lengths.total, lengths.warmup, recipe.lr, recipe.lr_end)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update()
        loss_sum += loss.detach()
        done += 1
        if step == 1:
            display.at(step)
        if step % lengths.score_every == 0 or step == lengths.total:
            mean = (loss_sum / (step - logged)).item()
            if not math.isfinite(mean):
                raise FloatingPointError(f"loss is {mean} at step {step}")
            seconds = (time.perf_counter() - clock) / (step - logged)
            with average.in_place():
                scores = score(model, clips, test_ids, config, dtype)
            top1 = accuracy(scores.argmax(dim=1), test_labels)
            # The first of equal scores counts.
            best = max(best, (top1, -step))
            values = {"loss": mean, "lr": rate, "top1": top1, "ms_per_step": 1000 * seconds}
            values["clips_per_second"] = batch / seconds
            log.row(step, values)
            display.at(step, values)
            loss_sum.zero_()
            clock, logged = time.perf_counter(), step
    average.keep()
    display.leave()
    return Finetuned(accuracy(scores.argmax(dim=1), test_labels), best[0], -best[1], scores)


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
