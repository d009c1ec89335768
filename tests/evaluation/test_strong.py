"""The parts of the strong recipe by hand, a few steps of it in plain torch, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sjepa_fast import evaluate
from sjepa_fast.config.presets import preset
from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.data.clips import ResidentClips, load_resident
from sjepa_fast.data.order import epoch_order
from sjepa_fast.data.store import Store
from sjepa_fast.data.store_writer import StoreWriter
from sjepa_fast.data.synthetic import write_synthetic_store
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.probes import classifier, classifier_step, scoring
from sjepa_fast.evaluation.probes.mixing import Mixing
from sjepa_fast.evaluation.probes.streams import join_streams
from sjepa_fast.evaluation.probes.weight_ema import WeightEma
from sjepa_fast.evaluation.recipes import FinetuneRecipe, Views, finetune_recipe, fitted_length
from sjepa_fast.models.encoder import SkeletonTransformer
from sjepa_fast.models.heads import ActionClassifier, time_means
from sjepa_fast.runtime.progress import SILENT
from sjepa_kernels import random_mask
from sjepa_kernels.purposes import MASK
from sjepa_kernels.tubelets import split_streams, to_stream, to_tubelets
from tests.tiny import flags, trained

FRAMES, LENGTH, JOINTS, CLASSES = 8, 2, 25, 14
SHORT = ["--recipe.length", "4", "--recipe.warmup", "1", "--recipe.score-every", "2"]
SHORT += ["--recipe.hidden", "8", "--recipe.batch-size", "16"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_synthetic_store(
        tmp_path_factory.mktemp("strong") / "store", subjects=2, repetitions=1, cameras=1
    )


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    data = {"frames": FRAMES, "split": "xsub", "bodies": 2, "whiten": 0.5, "crop_min_frames": 4}
    return replace(preset("sjepa-nucla"), data=data, model={"segment_length": LENGTH})


@pytest.fixture(scope="module")
def clips(store: Store, config: TrainConfig) -> ResidentClips:
    return load_resident(store, config.data, torch.device("cpu"))


def encoder(whiten: bool = False) -> SkeletonTransformer:
    torch.manual_seed(0)
    return SkeletonTransformer(FRAMES // LENGTH, JOINTS, LENGTH * 3, 8, 1, 2, whiten=whiten)


def test_small_sets_get_the_strong_recipe_as_far_as_the_run_allows() -> None:
    small = preset("sjepa-nucla")
    strong = finetune_recipe("auto", small, scratch=False)
    assert (strong.name, strong.length, strong.unit, strong.batch_size) == (
        "strong",
        0,
        "steps",
        32,
    )
    assert (strong.streams, strong.token_drop, strong.mixup) == ("all", 0.3, 0.0)
    assert (strong.ema, strong.pool, strong.test_crops) == (0.998, "joint", 4)
    assert min(strong.views.scale, strong.views.joint_drop, strong.views.time_warp) > 0
    assert finetune_recipe("strong", preset("sjepa-ntu60-xsub"), scratch=True).name == "strong"
    bone = finetune_recipe("auto", replace(small, data={"stream": "bone"}), scratch=False)
    assert bone.streams == "run"
    by_number = finetune_recipe("auto", replace(small, data={"sampling": "index"}), scratch=False)
    assert by_number.views.time_warp == 0
    # 125 passes, within bounds; a length that is given stays.
    for clips, steps in ((20, 1000), (100, 1000), (516, 2015), (5000, 4000)):
        assert fitted_length(strong, clips).length == steps
        assert fitted_length(dataclasses.replace(strong, length=7), clips).length == 7
    with pytest.raises(InputError, match=r"recipe.length: 0 epochs.*--recipe.unit steps"):
        fitted_length(dataclasses.replace(strong, unit="epochs"), 100)
    # Nothing of it reaches the recipes of before.
    for name in ("paper", "small"):
        told = dataclasses.asdict(finetune_recipe(name, small, scratch=False))
        plain = dataclasses.asdict(FinetuneRecipe())
        for part in ("streams", "token_drop", "mixup", "ema", "pool", "test_crops"):
            assert told[part] == plain[part], part
        assert not any(told["views"][part] for part in ("scale", "joint_drop", "time_warp"))


@pytest.mark.parametrize("segments", [4, 5, 8])
def test_time_means_by_hand(segments: int) -> None:
    torch.manual_seed(0)
    kept = (torch.rand(2, 3, segments, 5, 1) < 0.5).double()
    x = torch.randn(2, 3, segments, 5, 4, dtype=torch.float64) * kept
    found = time_means(x, (1, 2, 4), kept).numpy()
    assert found.shape == (2, 3, 7, 5, 4)
    quarter = segments / 4
    spans = [(0, 4), (0, 2), (2, 4), (0, 1), (1, 2), (2, 3), (3, 4)]
    for i, (first, last) in enumerate(spans):
        part = slice(int(np.floor(first * quarter)), int(np.ceil(last * quarter)))
        for b, m, v in np.ndindex(2, 3, 5):
            there = kept[b, m, part, v, 0].numpy() > 0
            values = x[b, m, part, v].numpy()[there]
            wanted = values.mean(axis=0) if len(values) else np.zeros(4)
            np.testing.assert_allclose(found[b, m, i, v], wanted, atol=1e-12)
    everything = torch.ones_like(kept)
    torch.testing.assert_close(time_means(x, (1, 2, 4)), time_means(x, (1, 2, 4), everything))


@pytest.mark.parametrize("pool", ["joint", "pyramid"])
def test_dropped_tokens_are_unknown_to_encoder_and_head(pool: Any) -> None:
    model = ActionClassifier(encoder(), JOINTS, 3, 6, 0.0, pool).eval()
    tokens, count = torch.randn(4, FRAMES // LENGTH * JOINTS, LENGTH * 3), FRAMES // LENGTH * JOINTS
    with torch.no_grad():
        whole = model(tokens, 2)
        order = torch.stack([torch.randperm(count) for _ in range(4)]).int()
        torch.testing.assert_close(model(tokens, 2, order), whole, rtol=1e-4, atol=1e-5)
        kept = order[:, : count // 2]
        half = model(tokens, 2, kept)
        spoilt = tokens.clone()
        spoilt.scatter_(1, order[:, count // 2 :, None].long().expand(-1, -1, LENGTH * 3), 9.0)
        assert torch.equal(model(spoilt, 2, kept), half)
        assert (half - whole).abs().max() > 1e-3


def test_mixup_mixes_whole_clips_and_their_labels() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(6, 2, 5, 3).flatten(0, 1)
    mixed, drawn = Mixing(0.2, torch.device("cpu")).mix(tokens, bodies=2)
    share, other = drawn.share_B, drawn.other_B
    assert share is not None and other is not None and len(share) == 6
    assert sorted(other.tolist()) == list(range(6)) and 0 < share.min() < share.max() < 1
    for clip in range(6):
        for body in range(2):
            own, partner = tokens[2 * clip + body], tokens[2 * int(other[clip]) + body]
            expected = share[clip] * own + (1 - share[clip]) * partner
            torch.testing.assert_close(mixed[2 * clip + body], expected)
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    of = [
        cross_entropy(logits, y, label_smoothing=0.1, reduction="none")
        for y in (labels, labels[other])
    ]
    expected = (share * of[0] + (1 - share) * of[1]).mean()
    torch.testing.assert_close(drawn.loss(logits, labels, 0.1), expected)
    state = torch.get_rng_state()
    same, plain = Mixing(0.0, torch.device("cpu")).mix(tokens, bodies=2)
    assert same is tokens and torch.equal(torch.get_rng_state(), state)
    expected = cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.equal(plain.loss(logits, labels, 0.1), expected)


def test_average_of_weights_and_statistics() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    names = [name for name, x in model.state_dict().items() if x.is_floating_point()]
    average = WeightEma(model, 0.9)
    wanted = {name: model.state_dict()[name].clone() for name in names}
    for step in range(1, 200):
        with torch.no_grad():
            for name in names:
                model.state_dict()[name].add_(torch.randn_like(wanted[name]))
        average.update()
        momentum = min(0.9, (1 + step) / (10 + step))
        assert (momentum == 0.9) == (step >= 80)
        for name in names:
            wanted[name].mul_(momentum).add_(model.state_dict()[name], alpha=1 - momentum)
    live = copy.deepcopy(model.state_dict())
    with average.in_place():
        for name in names:
            torch.testing.assert_close(model.state_dict()[name], wanted[name])
    assert all(torch.equal(model.state_dict()[name], live[name]) for name in names)
    average.keep()
    torch.testing.assert_close(model[1].running_mean, wanted["1.running_mean"])
    off = WeightEma(model, 0.0)
    off.update(), off.keep()
    torch.testing.assert_close(model[1].running_mean, wanted["1.running_mean"])


def test_new_streams_begin_at_nothing_or_in_scale(
    clips: ResidentClips, config: TrainConfig
) -> None:
    ids = torch.arange(len(clips.labels_N))
    crop = clips.eval_crop(ids, config.data, stream="all").flatten(0, 1)
    joints = clips.eval_crop(ids, config.data).flatten(0, 1)
    parts = [
        to_stream(joints, clips.tables.parents_V, kind) for kind in ("joint", "bone", "motion")
    ]
    assert torch.equal(crop, torch.cat(parts, dim=-1))
    tokens, plain = to_tubelets(crop, LENGTH), to_tubelets(joints, LENGTH)
    assert torch.equal(split_streams(tokens)[0], plain)
    before = encoder()
    began = copy.deepcopy(before)
    join_streams(began, clips, ids, config, fresh=False)
    assert torch.equal(began(tokens), before(plain)), "what the encoder has learnt stays"
    began(tokens).square().sum().backward()
    others = began.embed.others
    assert others is not None and others.proj.weight.grad.abs().max() > 0, "and it can learn"
    fresh = copy.deepcopy(before)
    join_streams(fresh, clips, ids, config, fresh=True)
    assert (fresh(tokens) - before(plain)).abs().max() > 0.1
    there = (crop != 0).flatten(1).any(dim=1)
    scaled = (split_streams(tokens[there])[1] - others.mean) * others.factor
    spread = scaled.flatten(0, 1).std(dim=0, correction=0)
    torch.testing.assert_close(spread, torch.ones_like(spread), rtol=1e-3, atol=1e-3)
    # A layer of the head's age learns at the head's rate.
    assert classifier_step.layer_of("encoder.embed.others.proj.weight", 3) == 4
    assert classifier_step.layer_of("encoder.embed.proj.weight", 3) == 0


def test_parts_of_a_test_clip(clips: ResidentClips, config: TrainConfig) -> None:
    parts = scoring.scored_parts
    assert parts(1) == [(0.0, 1.0)]
    assert parts(2)[1] == pytest.approx((0.1, 0.9))
    np.testing.assert_allclose(parts(4), [(0, 1), (0, 0.8), (0.1, 0.9), (0.2, 1)])
    ids, valid = torch.arange(6), clips.frames_N[:6]
    whole = dataclasses.replace(config.data, eval_crop=1.0)
    for first, last in parts(4):
        start = (valid * first).long()
        length = (valid * (last - first)).round().long()
        expected = clips.crop_resize(ids, torch.minimum(start, valid - length), length, FRAMES)
        assert torch.equal(clips.eval_crop(ids, whole, within=(first, last)), expected)
    model = ActionClassifier(encoder(), JOINTS, CLASSES, 6, 0.0).eval()
    scores = scoring.classify(model, clips, ids, config, torch.float32, crops=3)
    each = []
    for within in parts(3):
        x = clips.eval_crop(ids, config.data, within=within).flatten(0, 1)
        with torch.no_grad():
            each.append(model(to_tubelets(x, LENGTH), clips.max_bodies).softmax(dim=1))
    torch.testing.assert_close(scores.exp(), torch.stack(each).mean(dim=0))


class Silent:
    """Stands in for the run's log."""

    def row(self, step: int, values: dict[str, float]) -> None:
        pass


def test_strong_training_equals_a_plain_loop(
    clips: ResidentClips, store: Store, config: TrainConfig
) -> None:
    train = torch.from_numpy(store.ids("xsub", "train"))
    recipe = FinetuneRecipe(
        unit="steps", length=4, warmup=1, score_every=9, batch_size=5, lr=0.01, drop_path=0.0,
        streams="all", token_drop=0.5, mixup=0.3, ema=0.99, pool="pyramid", test_crops=2,
        views=Views(time_warp=0.2, joint_drop=0.2, scale=0.2),
    )  # fmt: skip
    inside = encoder(whiten=True)
    join_streams(inside, clips, train, config, fresh=True)
    model = ActionClassifier(inside, JOINTS, CLASSES, 6, 0.0, "pyramid")
    plain = copy.deepcopy(model)
    torch.manual_seed(5)
    log: Any = Silent()
    result = classifier.train_classifier(
        model, clips, train, train, config, recipe, torch.float32, 3, log, SILENT
    )

    torch.manual_seed(5)
    optimizer = classifier_step.build_finetune_optimizer(plain, recipe)
    averaged = copy.deepcopy(plain)
    views = classifier.finetune_views(recipe, config, clips.max_bodies)
    assert (views.stream, views.time_warp, views.joint_drop) == ("all", 0.2, 0.2)
    beta = torch.distributions.Beta(torch.tensor(0.3), torch.tensor(0.3))
    per_epoch = len(train) // 5
    rates = [0.01 * 0 / 1, 0.01, None, None]
    for step in range(4):
        epoch, place = divmod(step, per_epoch)
        ids = torch.from_numpy(epoch_order(train.numpy(), 3, epoch))[5 * place :][:5]
        key = torch.tensor(3), torch.tensor(step)
        x = clips.train_tokens(ids, *key, views)[0].unflatten(0, (5, 2))
        share, other = beta.sample((5,)), torch.randperm(5)
        x = share[:, None, None, None] * x + (1 - share[:, None, None, None]) * x[other]
        kept = random_mask(
            10, 100, 50, key[0], step=key[1], clip_ids_C=ids, bodies=2, purpose=MASK
        ).ids_keep_BK
        logits = plain.train()(x.flatten(0, 1), 2, kept)
        labels = clips.labels_N[ids]
        loss = sum(
            (weight * cross_entropy(logits, y, label_smoothing=0.1, reduction="none")).mean()
            for weight, y in ((share, labels), (1 - share, labels[other]))
        )
        optimizer.zero_grad()
        loss.backward()
        rate = rates[step]
        if rate is None:
            rate = 1e-5 + (0.01 - 1e-5) * 0.5 * (1 + np.cos(np.pi * (step - 1) / 3))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        optimizer.step()
        momentum = (2 + step) / (11 + step)
        pairs = zip(averaged.state_dict().values(), plain.state_dict().values(), strict=True)
        for average, live in pairs:
            if live.is_floating_point():
                average.mul_(momentum).add_(live, alpha=1 - momentum)
    # No gradient but rounding, which Adam magnifies: biases of keys and of what BatchNorm centers.
    void = ("head.fc1.bias", "head.norm.running_mean", "encoder.norm.bias")
    void += ("encoder.blocks.0.qkv.bias",)
    for (name, ours), theirs in zip(
        model.state_dict().items(), averaged.state_dict().values(), strict=True
    ):
        if ours.is_floating_point() and name not in void:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5, msg=name)
    scores = scoring.classify(model, clips, train, config, torch.float32, stream="all", crops=2)
    assert torch.equal(scores, result.scores_QC), "what was scored is what is kept"


def test_bad_recipes_are_refused_before_anything_is_trained(config: TrainConfig) -> None:
    def refused(told: str, changed: TrainConfig = config, **values: Any) -> None:
        with pytest.raises(InputError, match=told):
            classifier.finetune_views(FinetuneRecipe(**values), changed, 1)

    bones = replace(config, data={"stream": "bone"})
    refused(
        r"recipe.streams: all for a run .* bone; use --recipe.streams run", bones, streams="all"
    )
    few = replace(config, data={"frames": 4})
    refused("recipe.pool: pyramid of 2 segments", few, pool="pyramid")
    by_number = replace(config, data={"sampling": "index"})
    refused("recipe.views.time_warp: 0.1; use", by_number, views=Views(time_warp=0.1))
    refused("recipe.views.scale: 2; give a finite number", views=Views(scale=2))
    for wrong in ({"token_drop": 1.0}, {"ema": 1.0}, {"mixup": -1.0}, {"test_crops": 0}):
        with pytest.raises(InputError, match=f"recipe.{next(iter(wrong))}"):
            classifier.recipe_lengths(FinetuneRecipe(**wrong), 100)


def supervised(store: Path, run: Path, *more: str) -> int:
    words = ["supervised", str(run), "--data.root", str(store), *SHORT, *more]
    return evaluate.run(words)


def test_supervised_needs_no_run(store: Store, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert supervised(store.root, run, "--data.split", "xsub", "--save") == 0
    file = run / "results" / "supervised-synthetic-xsub.json"
    found = json.loads(file.read_text())
    assert found["encoder"] == "random" and found["weights"] is None
    assert found["recipe"]["name"] == "strong" and found["recipe"]["layer_decay"] == 1.0
    assert found["recipe"]["length"] == 4 and found["recipe"]["views"]["time_warp"] > 0
    assert found["test_clips_seen_in_training"] is None
    saved = run / "finetune" / "supervised-synthetic-xsub-s0" / "weights" / "model.safetensors"
    assert "encoder.embed.others.proj.weight" in safetensors.torch.load_file(saved)
    # The folder is a run folder: other protocols take it, and it is continued with other recipes.
    assert supervised(store.root, run, "--data.split", "xsub", "--recipe", "small") == 0
    assert json.loads(file.read_text())["recipe"]["name"] == "small"
    assert evaluate.run(["knn", str(run), "--encoder", "random"]) == 0
    assert evaluate.run(["finetune", str(run), "--encoder", "random", *SHORT]) == 0
    with pytest.raises(InputError, match=r"run: .* holds a run of other settings"):
        supervised(store.root, run, "--data.split", "xsub", "--data.eval-crop", "0.5")


def test_what_supervised_refuses(store: Store, tmp_path: Path) -> None:
    for told, words in {
        "data.root: not given": [],
        "data.split: xset; synthetic has": ["--data.root", str(store.root), "--data.split", "xset"],
        "encoder: target; leave it random": ["--encoder", "target"],
        "preset: mamp-nuclea": ["--data.root", str(store.root), "--preset", "mamp-nuclea"],
    }.items():
        with pytest.raises(InputError, match=told):
            evaluate.run(["supervised", str(tmp_path / "new"), *words])
    with pytest.raises(InputError, match=r"recipe.warmup: 1000; make it shorter than .* 1000"):
        words = ["--data.split", "xsub", "--recipe.length", "1000", "--recipe.warmup", "1000"]
        supervised(store.root, tmp_path / "late", *words)


def test_a_class_without_training_clips_is_named(store: Store, tmp_path: Path) -> None:
    names = store.class_names
    with StoreWriter(tmp_path / "s", "holes", store.layout, names) as writer:
        part = []
        for i in [*store.ids("xsub", "train"), *store.ids("xsub", "test")]:
            if i in store.ids("xsub", "train") and store.labels[i] == 3:
                continue
            writer.add(str(store.names[i]), store.clip(i), int(store.labels[i]), {})
            part.append(1 if i in store.ids("xsub", "train") else 2)
        holes = writer.finish({"xsub": np.array(part, dtype=np.int8)})
    with pytest.raises(InputError, match=f"data.split: xsub has no training clip of {names[3]};"):
        supervised(holes.root, tmp_path / "run", "--data.split", "xsub")
    assert not (tmp_path / "run" / "finetune").exists()


def test_strong_fine_tuning_of_a_trained_run_through_the_command(
    store: Store, tmp_path: Path
) -> None:
    sizes = {"data.split": "xsub", "optim.length": 2, "optim.batch-size": 16}
    run = trained(store.root, tmp_path / "run", *flags(sizes))
    words = ["finetune", str(run), "--recipe", "strong", "--recipe.pool", "joint", *SHORT]
    assert evaluate.run([*words, "--recipe.lr", "0", "--recipe.lr-end", "0", "--save"]) == 0
    name = "finetune-target-synthetic-xsub"
    saved = safetensors.torch.load_file(
        run / "finetune" / f"{name}-s0" / "weights" / "model.safetensors"
    )
    assert not saved["encoder.embed.others.proj.weight"].any(), "it starts at 0"
