# SPDX-License-Identifier: Apache-2.0
"""Recipes of the protocols that train: linear probe and fine-tuning.

A recipe's defaults are the papers' values (method 6). `small` and `strong` ones are our choice for
sets of a few hundred clips. Runs of the small-data presets (`eval.recipe: small`) get the small
linear probe and strong fine-tuning.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.errors import InputError
from sjepa_fast.models.heads import TimePool
from sjepa_kernels.augment.settings import CropShare, ViewRanges

Family = Literal["auto", "paper", "small"]
FinetuneFamily = Literal["auto", "paper", "small", "strong"]


@dataclass(frozen=True)
class Views(ViewRanges, CropShare):
    """Random crops and rotations of training clips; the defaults are MAMP's (method 1.5)."""

    form: Literal["body", "axes", "two_axes"] = "axes"
    """axes: R = Rz Ry Rx about the origin; two_axes: Ry Rx; body: about the body's own axis, then
    tilted."""


@dataclass(frozen=True)
class LinearRecipe:
    """The linear probe (method 6.1)."""

    name: Family = "auto"
    """paper: SGD on BatchNorm and a linear layer; small: L2 logistic regression; auto: by run."""
    epochs: int = 100
    """Passes over the training clips (SGD)."""
    batch_size: int = 256
    """Clips per step (SGD)."""
    lr: tuple[float, ...] = (0.1,)
    """Peak learning rates, all trained in one pass; the first is the headline (SGD)."""
    c: float = 0.0
    """Inverse penalty of the logistic regression; 0: 0.1 for mean-pooled features, else 0.01."""
    views: Views = field(default_factory=Views)
    """Views of the training clips with --augment."""


@dataclass(frozen=True)
class FinetuneRecipe:
    """Fine-tuning of encoder and head (method 6.2)."""

    name: FinetuneFamily = "auto"
    """Where the defaults come from; auto: by run."""
    length: int = 100
    """Length of the training, in `unit`; 0: as many steps as fit the labelled clips
    (`fitted_length`)."""
    warmup: int = 5
    """Linear warm-up, in `unit`."""
    unit: Literal["epochs", "steps"] = "epochs"
    """What `length`, `warmup` and `score_every` count."""
    score_every: int = 1
    """How often the test part is scored, in `unit`; best_epoch is the best of these scores."""
    batch_size: int = 48
    """Clips per step; all, where there are fewer."""
    lr: float = 3e-4
    """Peak learning rate of the head."""
    lr_end: float = 1e-5
    """Learning rate of the head after the last step."""
    weight_decay: float = 0.05
    """On everything but biases and norms."""
    beta2: float = 0.999
    """Second moment decay of AdamW; the first is 0.9."""
    layer_decay: float = 0.8
    """Factor on the learning rate from a layer to the one below; 1 from scratch."""
    drop_path: float = 0.3
    """Probability of dropping a branch of the last block; linear in depth from 0."""
    dropout: float = 0.3
    """Dropout on the tokens before the head."""
    hidden: int = 2048
    """Width of the head's hidden layer."""
    label_smoothing: float = 0.1
    """Share of the target that is spread over all classes."""
    clip_grad: float = 0.0
    """Largest gradient norm; 0 is off."""
    streams: Literal["run", "all"] = "run"
    """run: tokens hold the run's stream; all: joints, bones and motion side by side, through a
    second input layer, which starts at 0 where the encoder is pre-trained."""
    token_drop: float = 0.0
    """Share of the tokens that a training step leaves out, drawn anew for each sequence."""
    mixup: float = 0.0
    """Clips are mixed in pairs, by a share of Beta(mixup, mixup); 0 is off."""
    ema: float = 0.0
    """What is scored and saved is the moving average of the weights with this momentum, which the
    first steps approach as (1 + t) / (10 + t); 0 is off."""
    pool: TimePool = "joint"
    """What the head gets of each joint: its mean over time, or a pyramid of seven, over the whole
    time, its halves and its quarters."""
    test_crops: int = 1
    """Crops of a test clip whose class probabilities are averaged: the run's evaluation crop, and
    then crops of 0.8 of it, evenly from its beginning to its end."""
    views: Views = field(default_factory=Views)
    """Views of the training clips."""


def is_small(name: Family, config: TrainConfig) -> bool:
    """Whether a recipe's name, or for auto the run's configuration, means the small recipe."""
    return (config.eval.recipe if name == "auto" else name) == "small"


# Those of the small S-JEPA preset; one for all runs, so that objectives can be compared.
SMALL_VIEWS = Views(crop_min=0.6, form="body", rotation=1.2, tilt=0.2)
STRONG_VIEWS = replace(SMALL_VIEWS, scale=0.2, time_warp=0.2, joint_drop=0.1)


def linear_recipe(name: Family, config: TrainConfig) -> LinearRecipe:
    """Return the defaults of a recipe for a run."""
    if is_small(name, config):
        return LinearRecipe(name="small", views=SMALL_VIEWS)
    return LinearRecipe(name="paper")


def finetune_recipe(name: FinetuneFamily, config: TrainConfig, *, scratch: bool) -> FinetuneRecipe:
    """Return the defaults of a recipe for a run; `scratch` switches layer decay off.

    The small recipe was chosen on N-UCLA with camera 1 for training and camera 2 for validation.
    The strong one is the small one for longer and in smaller batches, with what keeps it from
    learning the training clips by heart; mixup and a time pyramid, which hurt, are not among it
    (docs/protocols.md). Of a run in another stream than joints, or with frames by number, it leaves
    out what cannot be.
    """
    layer_decay = 1.0 if scratch else 0.8
    if name == "auto":
        name = "strong" if config.eval.recipe == "small" else "paper"
    if name == "paper":
        return FinetuneRecipe(name="paper", layer_decay=layer_decay)
    small = FinetuneRecipe(
        name="small",
        length=240,
        warmup=20,
        unit="steps",
        score_every=60,
        batch_size=64,
        lr=2e-3,
        layer_decay=layer_decay,
        drop_path=0.1,
        hidden=256,
        clip_grad=3.0,
        views=SMALL_VIEWS,
    )
    if name == "small":
        return small
    views = STRONG_VIEWS
    if config.data.sampling == "index":
        views = replace(views, time_warp=0.0)
    return replace(
        small,
        name="strong",
        length=0,
        warmup=100,
        score_every=500,
        batch_size=32,
        streams="all" if config.data.stream == "joint" else "run",
        token_drop=0.3,
        ema=0.998,
        test_crops=4,
        views=views,
    )


# What a length of 0 means: passes over the labelled clips, and the fewest and most steps for them.
PASSES, STEPS = 125, (1000, 4000)


def fitted_length(recipe: FinetuneRecipe, clips: int) -> FinetuneRecipe:
    """Return the recipe with its length in steps for a number of labelled clips, if that is 0.

    125 passes over the clips, but 1,000 steps at least and 4,000 at most. Raises InputError if the
    recipe counts epochs.
    """
    if recipe.length != 0:
        return recipe
    if recipe.unit != "steps":
        raise InputError("recipe.length", "0 epochs", "give a number, or --recipe.unit steps")
    batch = max(1, min(recipe.batch_size, clips))
    return replace(recipe, length=min(max(PASSES * clips // batch, STEPS[0]), STEPS[1]))
