"""Pre-training, fine-tuning and augmented probes train on the same kind of frames."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sjepa_fast.config.presets import preset
from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.data.clips import ResidentClips, load_resident
from sjepa_fast.data.synthetic import write_synthetic_store
from sjepa_fast.evaluation.probes.classifier import train_classifier
from sjepa_fast.evaluation.protocols.linear import _epoch_features
from sjepa_fast.evaluation.recipes import FinetuneRecipe, LinearRecipe, Views
from sjepa_fast.models.encoder import SkeletonTransformer
from sjepa_fast.models.heads import ActionClassifier
from sjepa_fast.objectives.objective import make_step_input
from sjepa_fast.runtime.dist import World
from sjepa_fast.runtime.progress import SILENT

FRAMES, LENGTH = 10, 2
STILL = Views(rotation=0.0)


def pretrain(
    clips: ResidentClips, ids: Tensor, config: TrainConfig, encoder: SkeletonTransformer
) -> None:
    zero = torch.tensor(0)
    encoder(make_step_input(clips, ids, zero, zero, config).view_BNP)


def finetune(
    clips: ResidentClips, ids: Tensor, config: TrainConfig, encoder: SkeletonTransformer
) -> None:
    recipe = FinetuneRecipe(length=1, warmup=0, unit="steps", batch_size=len(ids), views=STILL)
    model = ActionClassifier(encoder, clips.layout.num_joints, classes=14, hidden=4, dropout=0.0)
    log: Any = SimpleNamespace(row=lambda *_: None)
    train_classifier(model, clips, ids, ids, config, recipe, torch.float32, 0, log, SILENT)


def probe(
    clips: ResidentClips, ids: Tensor, config: TrainConfig, encoder: SkeletonTransformer
) -> None:
    subject: Any = SimpleNamespace(
        device=ids.device,
        world=World(),
        clips=clips,
        train_ids=ids,
        config=config,
        dtype=torch.float32,
    )
    request: Any = SimpleNamespace(recipe=LinearRecipe(views=STILL), pool="mean")
    _epoch_features(subject, request, encoder, seed=0, epoch=0)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ResidentClips:
    root = tmp_path_factory.mktemp("data") / "store"
    store = write_synthetic_store(root, subjects=2, repetitions=1, cameras=1)
    return load_resident(store, preset("sjepa-demo").data, torch.device("cpu"))


@pytest.mark.parametrize("path", [pretrain, finetune, probe])
@pytest.mark.parametrize("sampling", ["index", "resize"])
def test_frames_taken_by_number_are_the_clips_own(
    clips: ResidentClips, path: Callable[..., None], sampling: str
) -> None:
    config = replace(
        preset("sjepa-demo"),
        data={"frames": FRAMES, "sampling": sampling, "crop_min_frames": 8},
        model={"segment_length": LENGTH},
        view={"rotation": 0.0, "tilt": 0.0, "translation": 0.0, "flip": 0.0},
    )
    joints = clips.layout.num_joints
    encoder = SkeletonTransformer(
        FRAMES // LENGTH, joints, LENGTH * 3, 8, 1, 2, whiten=False, layer_scale=0.0
    )
    given: list[Tensor] = []
    encoder.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    # The batch's order is the path's own.
    ids = torch.arange(4)
    path(clips, ids, config, encoder)
    grid = given[0].view(-1, FRAMES // LENGTH, joints, LENGTH, 3).transpose(2, 3)
    frames = grid.reshape(-1, joints * 3)
    whole = clips.joints_RVC.flatten(1)
    # A view turns about the body's center, which costs a rounding even at angle 0.
    nearest = torch.cdist(frames.double(), whole.double()).amin(dim=1)
    own = (nearest < 1e-6) | (frames == 0).all(dim=1)
    assert own.all() if sampling == "index" else not own.all()
