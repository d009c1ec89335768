# SPDX-License-Identifier: Apache-2.0
"""The linear probe on a frozen encoder: the papers' SGD, or logistic regression (method 6.1)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal, Self

import torch
from torch import Tensor

from sjepa_fast.config.schema import Pool, TrainConfig
from sjepa_fast.config.validation import validate_pool
from sjepa_fast.data.clips import augmentation
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.features import CHUNK, pooled_features
from sjepa_fast.evaluation.frozen import encoded, frozen_features
from sjepa_fast.evaluation.metrics import accuracy
from sjepa_fast.evaluation.outcome import Outcome, over_seeds
from sjepa_fast.evaluation.probes.logistic import fit_logistic
from sjepa_fast.evaluation.probes.neighbours import standardize_features
from sjepa_fast.evaluation.probes.sgd import linear_probe
from sjepa_fast.evaluation.recipes import LinearRecipe, linear_recipe
from sjepa_fast.evaluation.request import ProbeRequest, RecipeRequest, frozen_name
from sjepa_fast.evaluation.subject import Subject, make_encoder
from sjepa_fast.models.encoder import SkeletonTransformer


@dataclass(frozen=True)
class LinearRequest(RecipeRequest, ProbeRequest):
    """A linear classifier on frozen features (method 6.1)."""

    pool: Pool = "mean"
    """Pooling of tokens."""
    augment: bool = False
    """Compute training features anew each epoch, on random views, as the papers do."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the probe (SGD); mean and deviation are reported."""
    recipe: LinearRecipe = field(default_factory=LinearRecipe)

    def default_recipe(self, config: TrainConfig) -> LinearRecipe:
        """Return the defaults of the named recipe, or of the one in the run's configuration."""
        return linear_recipe(self.recipe.name, config)

    def settled(self, config: TrainConfig) -> Self:
        """Check the request; it takes no value from the run but those of the recipe."""
        _check(self)
        validate_pool("pool", self.pool, config)
        return self

    def result_name(self) -> str:
        """Name the result: protocol, encoder, pooling, and augment."""
        name = frozen_name("linear", self.encoder, self.pool)
        return f"{name}-augment" if self.augment else name

    def untrained(self, encoder: Literal["raw", "random"]) -> Self:
        """Return the request for an encoder without training; coordinates have no views."""
        augment = self.augment and encoder != "raw"
        return dataclasses.replace(super().untrained(encoder), augment=augment)


def _check(request: LinearRequest) -> None:
    recipe = request.recipe
    for name, least in (("epochs", recipe.epochs), ("batch_size", recipe.batch_size)):
        if least < 1:
            raise InputError(f"recipe.{name}", least, "give at least 1")
    if not recipe.lr or min(recipe.lr) <= 0:
        raise InputError("recipe.lr", recipe.lr, "give one positive rate or more")
    if recipe.name == "small" and request.augment:
        fix = "add --recipe.name paper, which trains by epochs"
        raise InputError("augment", "with the small recipe, which has no epochs", fix)
    if recipe.name == "small" and len(request.seeds) > 1:
        fix = "give one seed, or --recipe.name paper"
        raise InputError("seeds", "several with the small recipe, which draws nothing", fix)
    if request.encoder == "raw" and request.augment:
        raise InputError("augment", "with --encoder raw", "name an encoder")
    if not request.seeds or min(request.seeds) < 0:
        raise InputError("seeds", request.seeds, "give one or more, 0 or above")


def _epoch_features(
    subject: Subject, request: LinearRequest, encoder: SkeletonTransformer, seed: int, epoch: int
) -> Tensor:
    device, clips, ranges = subject.device, subject.clips, request.recipe.views
    views = augmentation(subject.config, clips.max_bodies, crop=ranges, view=ranges)
    key, count = torch.tensor(seed, device=device), torch.tensor(epoch, device=device)

    @torch.no_grad()
    def encode(ids: Tensor) -> Tensor:
        tokens, _ = clips.train_tokens(ids, key, count, views, with_clip=False)
        return pooled_features(encoder, clips, tokens, subject.dtype, request.pool)

    return subject.world.map_rows(encode, subject.train_ids.split(CHUNK))


def run_linear(subject: Subject, request: LinearRequest) -> Outcome:
    """Train the probe of the recipe on cached features, or on new views of every epoch.

    Returns accuracy after the last epoch (the headline) and at the best one, over seeds. Raises
    InputError if parts of the request contradict each other.
    """
    request = request.settled(subject.config)
    return (_logistic if request.recipe.name == "small" else _sgd)(subject, request)


def _logistic(subject: Subject, request: LinearRequest) -> Outcome:
    train, test = standardize_features(*frozen_features(subject, request.encoder, request.pool))
    # Our choice for small sets: strength by feature count, fixed beforehand.
    wide = request.pool != "mean" or request.encoder == "raw"
    subject.display.phase("linear probe")
    c = request.recipe.c or (0.01 if wide else 0.1)
    fitted = fit_logistic(train, subject.labels(subject.train_ids), subject.classes, c)
    scores = fitted.scores(test)
    guess = scores.argmax(dim=1)
    return Outcome(
        name=request.result_name(),
        figures={"top1": accuracy(guess, subject.labels(subject.test_ids))},
        recipe={"name": "small", "kind": "L2 logistic regression", "C": c, "pool": _pool(request)},
        predicted_SQ=guess[None],
        scores_SQC=scores[None].float(),
        features=train.shape[1],
    )


def _sgd(subject: Subject, request: LinearRequest) -> Outcome:
    recipe = request.recipe
    labels, test_labels = subject.labels(subject.train_ids), subject.labels(subject.test_ids)
    if request.augment:
        encoder = make_encoder(subject, request.encoder, subject.fit_ids)
        test = encoded(subject, encoder, subject.test_ids, request.pool)
    else:
        train, test = frozen_features(subject, request.encoder, request.pool)
    runs = []
    subject.display.count("linear probe: epoch", recipe.epochs * len(request.seeds))
    for number, seed in enumerate(request.seeds):

        def features(epoch: int, seed: int = seed, before: int = number * recipe.epochs) -> Tensor:
            subject.display.at(before + epoch)
            if request.augment:
                return _epoch_features(subject, request, encoder, seed, epoch)
            return train

        runs.append(
            linear_probe(
                features,
                labels,
                test,
                test_labels,
                subject.classes,
                lrs=recipe.lr,
                epochs=recipe.epochs,
                batch=recipe.batch_size,
                seed=seed,
            )
        )
    heads = [results[0] for results in runs]
    swept = {
        str(lr): {"top1": [r[i].last for r in runs], "top1_best_epoch": [r[i].best for r in runs]}
        for i, lr in enumerate(recipe.lr)
    }
    stated = {k: v for k, v in dataclasses.asdict(recipe).items() if k not in ("c", "views")}
    views = dataclasses.asdict(recipe.views) if request.augment else None
    return Outcome(
        name=request.result_name(),
        figures={
            **over_seeds("top1", [r.last for r in heads]),
            **over_seeds("top1_best_epoch", [r.best for r in heads]),
            "best_epoch_per_seed": [r.best_epoch for r in heads],
            "seeds": list(request.seeds),
            "by_lr": swept,
        },
        recipe={**stated, "kind": "sgd", "pool": _pool(request), "views": views},
        predicted_SQ=torch.stack([r.predicted_Q for r in heads]),
        scores_SQC=torch.stack([r.scores_QC for r in heads]),
        features=test.shape[1],
    )


def _pool(request: LinearRequest) -> str | None:
    return None if request.encoder == "raw" else request.pool
