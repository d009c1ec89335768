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
from torch import Tensor

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.config.validation import validate_pool
from sjepa_fast.data.clips import ResidentClips, augmentation
from sjepa_fast.data.order import epoch_order
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.metrics import accuracy
from sjepa_fast.evaluation.probes.classifier_step import ClassifierStep, Lengths
from sjepa_fast.evaluation.probes.scoring import classify
from sjepa_fast.evaluation.recipes import FinetuneRecipe
from sjepa_fast.models.heads import ActionClassifier
from sjepa_fast.runtime.device import wants_compile
from sjepa_fast.runtime.logging import RunLog
from sjepa_fast.runtime.progress import Display
from sjepa_kernels import Augmentation
from sjepa_kernels.tubelets import TokenStream


@dataclass(frozen=True)
class Finetuned:
    """Accuracies in percent, after the last step and at the best score, and the last scores."""

    last: float
    best: float
    best_step: int
    scores_QC: Tensor


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
    train = ClassifierStep(model, clips, views, recipe, lengths, config, dtype, seed)
    score = partial(classify, stream=views.stream, crops=recipe.test_crops)
    test_labels = clips.labels_N[test_ids]
    best, scores = (0.0, 0), torch.empty(0)
    step, compiles = 1, wants_compile(config.runtime.compile, device)
    first = "compiling" if compiles else "first step"
    display.count("step", lengths.total, now=lambda: step - 1, first=first)
    clock, logged = time.perf_counter(), 0
    batches = _batches(train_ids, batch, lengths.per_epoch, seed)
    for step in range(1, lengths.total + 1):
        train(next(batches))
        if step == 1:
            display.at(step)
        if step % lengths.score_every == 0 or step == lengths.total:
            mean = (train.loss_sum / (step - logged)).item()
            if not math.isfinite(mean):
                raise FloatingPointError(f"loss is {mean} at step {step}")
            seconds = (time.perf_counter() - clock) / (step - logged)
            with train.average.in_place():
                scores = score(model, clips, test_ids, config, dtype)
            top1 = accuracy(scores.argmax(dim=1), test_labels)
            # The first of equal scores counts.
            best = max(best, (top1, -step))
            values = {"loss": mean, "lr": train.rates[step - 1], "top1": top1}
            values |= {"ms_per_step": 1000 * seconds, "clips_per_second": batch / seconds}
            log.row(step, values)
            display.at(step, values)
            train.loss_sum.zero_()
            clock, logged = time.perf_counter(), step
    train.average.keep()
    display.leave()
    return Finetuned(accuracy(scores.argmax(dim=1), test_labels), best[0], -best[1], scores)
