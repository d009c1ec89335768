"""Several steps in turn on one batch, with one pass of the target encoder."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from sjepa_fast.config.presets import PRESETS, preset
from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.config.validation import validate
from sjepa_fast.data.order import BatchOrder
from sjepa_fast.data.store import open_store
from sjepa_fast.errors import InputError
from sjepa_fast.objectives.distinct import Encoded
from sjepa_fast.objectives.masking import draw_mask
from sjepa_fast.objectives.objective import Targets, make_step_input
from sjepa_fast.training.flops import step_flops
from sjepa_fast.training.inputs import run_lengths
from sjepa_fast.training.step import TrainStep
from sjepa_fast.training.verify import VerifiedStep
from sjepa_kernels import ContextualizedTargets
from tests.tiny import flags, metrics, trained, weights
from tests.training.test_step import OTHERS, make_step

IDS = torch.arange(6)
KINDS = ["sjepa", "skeleton2vec"]


def step_of(kind: str, every: int, *, absent: bool = False) -> TrainStep:
    sections = dict(OTHERS[kind])
    chosen = {**sections.get("objective", {}), "kind": kind, "target_every": every}
    sections |= {"objective": chosen, "mask": {**sections.get("mask", {}), "num_masked_views": 1}}
    step = make_step(momentum=0.5, **sections)
    if absent:
        step.clips = dataclasses.replace(step.clips, max_bodies=2, most_bodies=6)
    return step


def state(step: TrainStep) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in step.model.state_dict().items()}


@pytest.mark.parametrize("absent", [False, True], ids=["all present", "absent bodies"])
@pytest.mark.parametrize("kind", KINDS)
def test_second_step_has_the_first_ones_clips_and_targets_and_its_own_masks(
    kind: str, absent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, single = step_of(kind, 2, absent=absent), step_of(kind, 1, absent=absent)
    first = make_step_input(single.clips, IDS, single.seed, single.step, single.config)
    teacher = copy.deepcopy(single.model.target_encoder)
    assert teacher is not None
    losses = [single(IDS).loss]

    # The second step by hand: the old clips through the old target encoder, all of them.
    config, bodies = single.config, single.clips.max_bodies
    drawn = draw_mask(first.clip_BNP, IDS, bodies, single.seed, torch.tensor(1), config.mask, 20)
    assert not torch.equal(drawn.ids_keep_BK, first.ids_keep_BK)
    with torch.no_grad():
        if kind == "sjepa":
            tokens = teacher(first.clip_BNP)
        else:
            layers = ContextualizedTargets(1, "instance")
            teacher(first.clip_BNP, layers=layers)
            tokens = layers.finish()
    second = dataclasses.replace(
        first,
        ids_keep_BK=drawn.ids_keep_BK,
        ids_mask_BQ=drawn.ids_mask_BQ,
        distinct=None,
        targets=Targets(tokens, Encoded(tokens)),
    )
    monkeypatch.setattr("sjepa_fast.training.step.make_step_input", lambda *_, **__: second)
    losses.append(single(IDS).loss)
    monkeypatch.undo()

    together(IDS)
    assert int(together.step) == 2
    torch.testing.assert_close(together.recent(2, 2)[:, 0], torch.stack(losses), rtol=1e-6, atol=0)
    expected = state(single)
    for name, tensor in state(together).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("every", [1, 3])
def test_target_encoder_runs_once_a_call_and_all_else_each_step(kind: str, every: int) -> None:
    step = step_of(kind, every)
    passes: dict[str, int] = dict.fromkeys(("target_encoder", "view_encoder", "predictor"), 0)

    def count(name: str) -> None:
        passes[name] += 1

    for name in passes:
        network = step.model.network(name)
        network.register_forward_pre_hook(lambda *_, name=name: count(name))
    for _ in range(2):
        step(IDS)
    assert passes == {"target_encoder": 2, "view_encoder": 2 * every, "predictor": 2 * every}
    losses, norms, _ = step.recent(2 * every, 2 * every).T
    assert len(set(losses.tolist())) == 2 * every and (norms > 0).all()


def test_a_run_saved_between_batches_resumes_with_the_same_bits(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    # Outside of the step, which a resumed run does twice the first time.
    real = VerifiedStep.__call__

    def watched(self: VerifiedStep, ids_B: torch.Tensor) -> object:
        seen.append(ids_B.tolist())
        return real(self, ids_B)

    monkeypatch.setattr(VerifiedStep, "__call__", watched)
    values = {"data.split": "xsub", "data.skip-empty-bodies": False, "log.every": 2}
    values |= {"optim.length": 9, "optim.unit": "steps", "log.panel-every": 4}
    words = flags({**values, "objective.target-every": 2, "checkpoint.every": 4})
    whole = trained(store, tmp_path / "whole", *words)
    opened = open_store(store)
    part = opened.ids("xsub", "train")
    order = BatchOrder(part, seed=0, batch_size=8, rank=0, size=1)
    # The ninth step has no second one to share a batch with.
    assert seen == [order.ids(i).tolist() for i in range(4)]
    assert [row["step"] for row in metrics(whole) if "loss" in row] == [2, 4, 6, 8]

    parts = tmp_path / "parts"
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "step-00000008")
    seen.clear()
    trained(store, parts, *words, "--resume=auto")
    assert seen == [order.ids(i).tolist() for i in (2, 3)]
    ours, theirs = weights(parts, 8), weights(whole, 8)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def of(**sections: dict[str, object]) -> TrainConfig:
    base = replace(preset("sjepa-nucla"), objective={"target_every": 2})
    return replace(base, **sections)


@pytest.mark.parametrize(
    ("config", "argument"),
    [
        (of(objective={"target_every": 0}), "objective.target_every"),
        (of(objective={"kind": "mamp", "target_norm": "patch"}), "objective.target_every"),
        (of(log={"every": 5}), "log.every"),
        (of(log={"panel_every": 25}), "log.panel_every"),
        (of(log={"knn_every": 75}), "log.knn_every"),
        (of(checkpoint={"every": 101}), "checkpoint.every"),
        (of(log={"profile": True}), "profile"),
    ],
)
def test_what_would_fall_between_the_steps_of_a_batch_is_refused(
    config: TrainConfig, argument: str
) -> None:
    with pytest.raises(InputError) as error:
        validate(config)
    assert error.value.argument == argument


def test_a_run_ends_with_a_whole_batch() -> None:
    steps: dict[str, object] = {"unit": "steps", "length": 9, "warmup": 3, "batch_size": 4}
    assert run_lengths(of(optim=steps), 40) == (8, 3)
    epochs = {**steps, "unit": "epochs", "length": 3, "warmup": 1}
    assert run_lengths(of(optim=epochs), 20) == (14, 5)
    with pytest.raises(InputError, match="target_every"):
        run_lengths(of(objective={"target_every": 10}, optim=steps), 40)


def test_the_count_is_the_mean_over_the_steps() -> None:
    single = preset("sjepa-ntu60-xsub")
    double = step_flops(replace(single, objective={"target_every": 2}))
    assert 2 * double.target_encoder == step_flops(single).target_encoder
    assert double.predictor == step_flops(single).predictor


def test_no_preset_shares_targets() -> None:
    assert {preset(name).objective.target_every for name in PRESETS} == {1}
