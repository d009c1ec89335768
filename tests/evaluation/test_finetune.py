"""Fine-tuning by hand: head, drop path, layer decay, batches, and a whole step in plain torch."""

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sjepa_fast.config.presets import preset
from sjepa_fast.config.schema import replace
from sjepa_fast.data.clips import augmentation, load_resident
from sjepa_fast.data.order import epoch_order
from sjepa_fast.data.synthetic import write_synthetic_store
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.probes.classifier import (
    _batches,
    recipe_lengths,
    train_classifier,
)
from sjepa_fast.evaluation.probes.classifier_step import build_finetune_optimizer, layer_of
from sjepa_fast.evaluation.recipes import FinetuneRecipe, finetune_recipe, linear_recipe
from sjepa_fast.models.encoder import SkeletonTransformer
from sjepa_fast.models.heads import ActionClassifier, ActionHead
from sjepa_fast.models.residual import Residual
from sjepa_fast.models.transformer import Block, set_drop_path
from sjepa_fast.runtime.progress import SILENT


def test_head_has_the_papers_size() -> None:
    head = ActionHead(width=256, joints=25, classes=60)
    count = sum(weight.numel() for weight in head.parameters())
    # 6400 * 2048 + 2048, BatchNorm 2 * 2048, 2048 * 60 + 60: the 13.24 M of method 6.2.
    assert count == 13_236_284


def test_head_by_hand() -> None:
    torch.manual_seed(0)
    head = ActionHead(width=5, joints=4, classes=3, hidden=7, dropout=0.3).eval().double()
    head.norm.running_mean.normal_()
    head.norm.running_var.uniform_(0.5, 2)
    tokens = torch.randn(2, 3, 8, 5, dtype=torch.float64)
    x = tokens.numpy().reshape(2, 3, 2, 4, 5)
    joints = x.mean(axis=2).reshape(2, 3, 20).mean(axis=1)
    part = {name: value.numpy() for name, value in head.state_dict().items()}
    hidden = joints @ part["fc1.weight"].T + part["fc1.bias"]
    hidden = (hidden - part["norm.running_mean"]) / np.sqrt(part["norm.running_var"] + 1e-5)
    hidden = np.maximum(hidden * part["norm.weight"] + part["norm.bias"], 0)
    expected = hidden @ part["fc2.weight"].T + part["fc2.bias"]
    np.testing.assert_allclose(head(tokens).detach().numpy(), expected, rtol=1e-12)


def run(block: Block, x: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = block(Residual(x)).settled()
    return out


def test_drop_path_leaves_out_whole_branches_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    blocks = [Block(8, 2) for _ in range(4)]
    x = torch.randn(2000, 3, 8)
    kept = run(blocks[3].eval(), x)
    set_drop_path(blocks, 0.6)
    assert torch.allclose(
        torch.stack([b.drop_path for b in blocks]), torch.tensor([0.0, 0.2, 0.4, 0.6])
    )
    assert torch.equal(run(blocks[3], x), kept), "evaluation leaves nothing out"
    blocks[3].train()
    with torch.no_grad():
        thinned = run(blocks[3], x)
        attended = run(blocks[3].eval(), x)
        change = (thinned - x).abs().amax(dim=(1, 2))
        # Both branches are left out with probability 0.6 * 0.6.
        assert 0.32 < (change == 0).float().mean() < 0.40
        blocks[3].fc2.weight.zero_(), blocks[3].fc2.bias.zero_()
        branch = run(blocks[3], x) - x
        blocks[3].train()
        drawn = run(blocks[3], x) - x
    left = (drawn != 0).flatten(1).any(dim=1)
    assert 0.36 < left.float().mean() < 0.44
    torch.testing.assert_close(drawn[left], branch[left] / 0.4, rtol=1e-4, atol=1e-5)
    assert attended.shape == x.shape


def test_without_drop_path_training_and_evaluation_are_the_same() -> None:
    torch.manual_seed(0)
    block, x = Block(8, 2), torch.randn(3, 4, 8)
    assert torch.equal(run(block.train(), x), run(block.eval(), x))
    assert "drop_path" not in block.state_dict()
    set_drop_path([block, Block(8, 2)], 0.5)
    assert "drop_path" not in block.state_dict(), "it is no weight"
    set_drop_path([block], 0.0)
    assert block.drop_path is None


def classifier() -> ActionClassifier:
    torch.manual_seed(0)
    encoder = SkeletonTransformer(2, 4, 12, 8, depth=3, heads=2)
    return ActionClassifier(encoder, joints=4, classes=3, hidden=6, dropout=0.0)


def test_layer_decay_by_name() -> None:
    model, recipe = classifier(), FinetuneRecipe(layer_decay=0.5, weight_decay=0.05)
    optimizer = build_finetune_optimizer(model, recipe)
    scale, decay = {}, {}
    for group in optimizer.param_groups:
        for weight in group["params"]:
            scale[id(weight)], decay[id(weight)] = group["scale"], group["weight_decay"]
    expected = {
        "encoder.embed.proj.weight": 0.5**4,
        "encoder.embed.spatial": 0.5**4,
        "encoder.blocks.0.qkv.weight": 0.5**3,
        "encoder.blocks.2.fc2.bias": 0.5,
        "encoder.norm.weight": 1.0,
        "head.fc1.weight": 1.0,
    }
    named = dict(model.named_parameters())
    assert len(scale) == len(named)
    for name, value in expected.items():
        assert scale[id(named[name])] == value, name
    for name, weight in named.items():
        assert decay[id(weight)] == (0.05 if weight.ndim > 1 else 0.0), name
    assert layer_of("head.fc2.bias", 8) == 9 and layer_of("encoder.blocks.7.norm1.bias", 8) == 8


def test_lengths_count_epochs_or_steps() -> None:
    batch, lengths = recipe_lengths(FinetuneRecipe(), 40_091)
    assert batch == 48
    assert (lengths.per_epoch, lengths.total, lengths.warmup) == (835, 83_500, 4175)
    batch, lengths = recipe_lengths(FinetuneRecipe(unit="steps", length=90, warmup=9), 20)
    assert batch == 20 and (lengths.per_epoch, lengths.total, lengths.warmup) == (1, 90, 9)
    for wrong in (
        {"warmup": 100},
        {"length": 0},
        {"drop_path": 1.0},
        {"lr": math.inf},
        {"batch_size": 1},
    ):
        with pytest.raises(InputError, match=f"recipe.{next(iter(wrong))}"):
            recipe_lengths(FinetuneRecipe(**wrong), 100)


def test_batches_visit_every_clip_once_an_epoch_in_a_new_order() -> None:
    ids = torch.arange(10, 22)
    drawn = _batches(ids, 4, 3, seed=1)
    epochs = [torch.cat([next(drawn) for _ in range(3)]) for _ in range(2)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == ids.tolist()
    assert not torch.equal(*epochs)


def test_recipes_follow_the_papers_or_the_run() -> None:
    paper = finetune_recipe("auto", preset("sjepa-ntu60-xsub"), scratch=False)
    assert (paper.name, paper.lr, paper.lr_end, paper.batch_size) == ("paper", 3e-4, 1e-5, 48)
    assert (paper.layer_decay, paper.drop_path, paper.dropout) == (0.8, 0.3, 0.3)
    assert (paper.length, paper.warmup, paper.unit, paper.hidden) == (100, 5, "epochs", 2048)
    assert (paper.label_smoothing, paper.weight_decay, paper.clip_grad) == (0.1, 0.05, 0.0)
    assert (paper.views.crop_min, paper.views.form, paper.views.rotation) == (0.5, "axes", 0.3)
    assert finetune_recipe("auto", preset("sjepa-ntu60-xsub"), scratch=True).layer_decay == 1
    small = finetune_recipe("small", preset("sjepa-nucla"), scratch=False)
    assert (
        small.name == "small" and small.views.rotation == preset("sjepa-nucla").view.rotation == 1.2
    )
    assert finetune_recipe("paper", preset("sjepa-nucla"), scratch=False) == paper
    # The run's own shortest crop: 64 frames are more than a small set's clips have.
    views = augmentation(preset("sjepa-nucla"), 1, crop=paper.views, view=paper.views)
    assert (views.crop_min, views.crop_min_frames, views.form) == (0.5, 8, "axes")
    probe = linear_recipe("auto", preset("sjepa-ntu60-xsub"))
    assert (probe.name, probe.epochs, probe.batch_size, probe.lr) == ("paper", 100, 256, (0.1,))
    assert linear_recipe("auto", preset("sjepa-nucla")).name == "small"


def test_classifier_folds_bodies_as_clips_have_them() -> None:
    model = classifier().eval()
    tokens = torch.randn(6, 8, 12)
    with torch.no_grad():
        got = model(tokens, bodies=2)
        alone = model.head(
            torch.stack([model.encoder(tokens[2:3])[0], model.encoder(tokens[3:4])[0]])[None]
        )
    torch.testing.assert_close(got[1:2], alone)
    assert isinstance(model.head.norm, nn.BatchNorm1d)


class Silent:
    """Stands in for the run's log."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def row(self, step: int, values: dict[str, float]) -> None:
        self.rows.append({"step": step, **values})


def test_training_equals_a_plain_loop(tmp_path: Path) -> None:
    """Schedule, smoothing, layer decay, weight decay and clipping against a loop written anew."""
    store = write_synthetic_store(tmp_path / "s", subjects=2, repetitions=1, cameras=1)
    base = replace(
        preset("sjepa-nucla"), data={"frames": 8, "split": "xsub", "bodies": 2, "whiten": 0.0}
    )
    clips = load_resident(store, base.data, torch.device("cpu"))
    train = torch.from_numpy(store.ids("xsub", "train"))
    torch.manual_seed(0)
    encoder = SkeletonTransformer(2, 25, 12, 8, depth=2, heads=2)
    model = ActionClassifier(encoder, joints=25, classes=14, hidden=6, dropout=0.0)
    plain = copy.deepcopy(model)
    recipe = FinetuneRecipe(
        length=3, warmup=1, batch_size=5, lr=0.01, lr_end=1e-3, layer_decay=0.5, drop_path=0.0
    )
    recipe = dataclasses.replace(recipe, clip_grad=0.5)
    log = Silent()
    graph = replace(base, runtime={"cuda_graph": "on"})
    with pytest.raises(InputError, match="cuda-graph: on with cpu; leave it on auto"):
        train_classifier(model, clips, train, train, graph, recipe, torch.float32, 3, log, SILENT)
    train_classifier(model, clips, train, train, base, recipe, torch.float32, 3, log, SILENT)

    depth_of = {"encoder.embed": 0, "encoder.blocks.0": 1, "encoder.blocks.1": 2}
    groups = []
    for name, weight in plain.named_parameters():
        layer = next((n for key, n in depth_of.items() if name.startswith(key)), 3)
        decay = 0.05 if weight.ndim > 1 else 0.0
        groups.append({"params": [weight], "weight_decay": decay, "factor": 0.5 ** (3 - layer)})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
    told = augmentation(base, clips.max_bodies, crop=recipe.views, view=recipe.views)
    step = 0
    for epoch in range(3):
        order = torch.from_numpy(epoch_order(train.numpy(), 3, epoch))
        for ids in (order[:5], order[5:10]):
            if step < 2:
                rate = 0.01 * step / 2
            else:
                rate = 1e-3 + 0.009 * 0.5 * (1 + math.cos(math.pi * (step - 2) / 4))
            key = torch.tensor(3), torch.tensor(step)
            x = clips.train_tokens(ids, *key, told)[0]
            scores = plain.train()(x, 2)
            wanted = torch.full_like(scores, 0.1 / 14)
            wanted[torch.arange(5), clips.labels_N[ids]] += 0.9
            optimizer.zero_grad()
            (-(wanted * scores.log_softmax(dim=1)).sum(dim=1).mean()).backward()
            nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            optimizer.step()
            step += 1
    # No gradient but rounding: biases of keys (softmax) and of what BatchNorm centers.
    void = (
        "head.fc1.bias",
        "encoder.norm.bias",
        "encoder.blocks.0.qkv.bias",
        "encoder.blocks.1.qkv.bias",
    )
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        if name in void:
            continue
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=name)
    assert [row["step"] for row in log.rows] == [2, 4, 6]
