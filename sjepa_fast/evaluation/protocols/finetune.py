# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning, its semi-supervised form, and transfer (methods 6.2, 6.3 and 6.4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import safetensors.torch
import torch
from torch import Tensor

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.outcome import Outcome, over_seeds
from sjepa_fast.evaluation.probes.classifier import (
    Finetuned,
    finetune_views,
    recipe_lengths,
    train_classifier,
)
from sjepa_fast.evaluation.probes.streams import join_streams
from sjepa_fast.evaluation.recipes import FinetuneRecipe, finetune_recipe, fitted_length
from sjepa_fast.evaluation.request import RecipeRequest
from sjepa_fast.evaluation.subject import Subject, make_encoder
from sjepa_fast.evaluation.subset import draw_subset
from sjepa_fast.models.heads import ActionClassifier
from sjepa_fast.models.transformer import set_drop_path
from sjepa_fast.names import file_name
from sjepa_fast.runtime.files import new_folder
from sjepa_fast.runtime.logging import RunLog


@dataclass(frozen=True)
class FinetuneRequest(RecipeRequest):
    """Train encoder and head on labels (method 6.2); --encoder random is training from scratch."""

    seeds: tuple[int, ...] = (0,)
    """Seeds of head, order, views and dropout, and of a random encoder."""
    recipe: FinetuneRecipe = field(default_factory=FinetuneRecipe)
    save: bool = False
    """Keep the trained classifiers."""

    def default_recipe(self, config: TrainConfig) -> FinetuneRecipe:
        """Return the defaults of the named recipe, or of the one in the run's configuration."""
        return finetune_recipe(self.recipe.name, config, scratch=self.encoder == "random")


@dataclass(frozen=True)
class SemiRequest(FinetuneRequest):
    """Fine-tune on a share of the labels, drawn once for each seed (method 6.3)."""

    ratio: float = 0.1
    """Share of the training clips whose labels are used: int(N * ratio) clips."""
    balanced: bool = False
    """Draw the same number of clips of every class, up to one."""


@dataclass(frozen=True)
class TransferRequest(FinetuneRequest):
    """Fine-tune on another store, also of another skeleton (method 6.4)."""


def run_finetune(subject: Subject, request: FinetuneRequest) -> Outcome:
    """Train encoder and head on all labels of the training part, once for each seed.

    Raises InputError if a class of the test clips has no training clip.
    """
    check_classes(subject)
    name = f"finetune-{request.encoder}"
    return over_labels(subject, request, name, lambda _: subject.train_ids)


def run_semi(subject: Subject, request: SemiRequest) -> Outcome:
    """Fine-tune on a subset of the labels; each seed has its own, the same in every process."""

    def labelled(seed: int) -> Tensor:
        ids = draw_subset(
            subject.store, subject.config.data.split, request.ratio, seed, balanced=request.balanced
        )
        return torch.from_numpy(ids).to(subject.device)

    protocol = f"semi{request.ratio:g}" + ("-balanced" if request.balanced else "")
    outcome = over_labels(subject, request, f"{protocol}-{request.encoder}", labelled)
    names = {
        seed: [str(subject.store.names[i]) for i in labelled(seed).tolist()]
        for seed in request.seeds
    }
    drawn = {"ratio": request.ratio, "balanced": request.balanced}
    drawn["labelled_clips"] = len(names[request.seeds[0]])
    return dataclasses.replace(outcome, ids=names, recipe=outcome.recipe | drawn)


def run_transfer(subject: Subject, request: TransferRequest) -> Outcome:
    """Fine-tune on a store that the run was not trained on.

    Clips of any length become the run's T frames; joints are matched by body part.

    Raises InputError if the store is the run's own, or a class of the test clips has no training
    clip.
    """
    if request.data.root is None:
        raise InputError("data.root", "not given", "add --data.root STORE with the other data")
    check_classes(subject)
    name = f"transfer-{request.encoder}"
    return over_labels(subject, request, name, lambda _: subject.train_ids)


def check_classes(subject: Subject) -> None:
    """Raise InputError if test clips are of a class that has no training clip."""
    trained, tested = (
        set(subject.labels(ids).tolist()) for ids in (subject.train_ids, subject.test_ids)
    )
    if missing := sorted(tested - trained):
        names = ", ".join(subject.store.class_names[label] for label in missing)
        value = f"{subject.config.data.split} has no training clip of {names}"
        raise InputError("data.split", value, "use a split whose training part has all classes")


def over_labels(
    subject: Subject, request: FinetuneRequest, name: str, labelled: Callable[[int], Tensor]
) -> Outcome:
    """Train on the clips that `labelled` returns for a seed, once for each seed of the request.

    `name` is the outcome's. Several processes share out the seeds. Raises InputError, before
    anything is trained, if parts of the request cannot work.
    """
    if request.encoder == "raw":
        raise InputError("encoder", "raw", "coordinates cannot be trained; use random")
    if not request.seeds or min(request.seeds) < 0:
        raise InputError("seeds", request.seeds, "give one or more, 0 or above")
    world = subject.world
    if world.size > len(request.seeds):
        # A batch cannot be cut: BatchNorm and dropout would see and draw something else.
        value = f"{len(request.seeds)} for {world.size} processes, each of which trains whole seeds"
        raise InputError("seeds", value, f"give {world.size} seeds or more, or start fewer")
    # All seeds have as many clips.
    recipe = fitted_length(request.recipe, len(labelled(request.seeds[0])))
    request = dataclasses.replace(request, recipe=recipe)
    for seed in request.seeds:
        # Everything that can be wrong is said before anything is trained.
        recipe_lengths(request.recipe, len(labelled(seed)))
    finetune_views(request.recipe, subject.config, subject.clips.max_bodies)
    own = world.shares(request.seeds)[world.rank]
    trained = [_train(subject, request, name, seed, labelled(seed)) for seed in own]
    found = world.gather(trained)
    scores = torch.stack([result.scores_QC for result in found]).to(subject.device)
    return Outcome(
        name=name,
        figures={
            **over_seeds("top1", [result.last for result in found]),
            **over_seeds("top1_best_epoch", [result.best for result in found]),
            "best_step_per_seed": [result.best_step for result in found],
            "seeds": list(request.seeds),
        },
        recipe=dataclasses.asdict(request.recipe),
        predicted_SQ=scores.argmax(dim=-1),
        scores_SQC=scores,
    )


def _train(
    subject: Subject, request: FinetuneRequest, name: str, seed: int, ids: Tensor
) -> Finetuned:
    recipe = request.recipe
    own_seed = seed if request.encoder == "random" else None
    encoder = make_encoder(subject, request.encoder, ids, own_seed).requires_grad_()
    # From here on dropout, drop path and the head's weights are drawn.
    torch.manual_seed(seed)
    if recipe.streams == "all":
        fresh = request.encoder == "random"
        join_streams(encoder, subject.clips, ids, subject.config, fresh=fresh)
    joints, classes = subject.store.layout.num_joints, subject.classes
    head = (recipe.hidden, recipe.dropout, recipe.pool)
    model = ActionClassifier(encoder, joints, classes, *head)
    model.to(subject.device)
    set_drop_path(list(encoder.blocks), recipe.drop_path)
    place = f"{name}-{subject.store.name}-{subject.config.data.split}-s{seed}"
    folder = subject.run / "finetune" / file_name(place)
    folder.mkdir(parents=True, exist_ok=True)
    subject.display.note(f"{place}: {len(ids)} labelled clips, recipe {recipe.name}")
    with RunLog(folder, 0) as log:
        result = train_classifier(
            model,
            subject.clips,
            ids,
            subject.test_ids,
            subject.config,
            recipe,
            subject.dtype,
            seed,
            log,
            subject.display,
        )
        # For the other processes.
        result = dataclasses.replace(result, scores_QC=result.scores_QC.cpu())
    if request.save:
        with new_folder(folder / "weights") as weights:
            state = {key: value.contiguous() for key, value in model.state_dict().items()}
            safetensors.torch.save_file(state, weights / "model.safetensors")
    return result
