"""A batch in parts, one after the other, makes the update of the whole batch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from sjepa_fast.build import build_model, build_optimizer
from sjepa_fast.config.presets import preset
from sjepa_fast.config.schema import replace
from sjepa_fast.config.validation import validate
from sjepa_fast.errors import InputError
from sjepa_fast.models.shadow import TrainedShadows
from sjepa_fast.objectives.objective import StepOutput
from sjepa_fast.runtime.dist import World
from sjepa_fast.runtime.schedule import Schedule
from sjepa_fast.training.inputs import check_shares
from sjepa_fast.training.memory import kept_bytes
from sjepa_fast.training.step import TrainStep
from sjepa_fast.training.trial import try_step
from tests.tiny import CPU, PREDICTING, STEP_CONFIG, flags, metrics, step_clips, trained
from tests.training.test_step import OTHERS, make_step

IDS = torch.arange(6)
KINDS = PREDICTING


def step_of(kind: str, parts: int, every: int = 1, *, absent: bool = False) -> TrainStep:
    sections = {**OTHERS[kind], "optim": {"accumulate": parts, "clip_grad": 0.0}}
    sections["objective"] = {**sections.get("objective", {}), "target_every": every}
    step = make_step(momentum=0.5, **sections)
    if absent:
        step.clips = dataclasses.replace(step.clips, max_bodies=2, most_bodies=6)
    return step


def gradients(step: TrainStep) -> dict[str, Tensor]:
    """Gradients that the next step's update reads, kept in passing."""
    found: dict[str, Tensor] = {}

    def keep(*_: object) -> None:
        for name, weight in step.model.named_parameters():
            if weight.grad is not None:
                found[name] = weight.grad.clone()

    step.optimizer.register_step_pre_hook(keep)
    return found


@pytest.mark.parametrize("absent", [False, True], ids=["all present", "absent bodies"])
@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_parts_make_the_update_of_the_whole(kind: str, parts: int, absent: bool) -> None:
    whole, split = step_of(kind, 1, absent=absent), step_of(kind, parts, absent=absent)
    seen: list[int] = []
    split.model.register_forward_pre_hook(lambda _, batch: seen.append(len(batch[0].view_BNP)))
    ours, expected = gradients(split), gradients(whole)
    split(IDS)
    whole(IDS)
    bodies = 2 if absent else 1
    assert seen == [6 * bodies // parts] * parts
    torch.testing.assert_close(split.history_W3[0], whole.history_W3[0], rtol=2e-6, atol=0)
    assert ours.keys() == expected.keys() and ours
    for name, grad in expected.items():
        scale = float(grad.abs().max())
        torch.testing.assert_close(ours[name], grad, rtol=0, atol=2e-5 * scale + 1e-7, msg=name)
    if kind == "sjepa":
        assert whole.model.center.abs().max() > 1e-3
        torch.testing.assert_close(split.model.center, whole.model.center, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["sjepa", "skeleton2vec"])
def test_parts_and_steps_that_share_targets_go_together(kind: str) -> None:
    whole, split = step_of(kind, 1, every=2), step_of(kind, 3, every=2)
    passes: list[int] = []
    target = split.model.network("target_encoder")
    target.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    whole(IDS)
    split(IDS)
    assert passes == [2, 2, 2] and split.step == 2
    torch.testing.assert_close(split.recent(2, 2), whole.recent(2, 2), rtol=1e-4, atol=0)


def test_one_part_that_is_not_finite_skips_the_whole_step() -> None:
    step = step_of("sjepa", 3)
    calls: list[int] = []

    def second(_: object, __: object, output: StepOutput) -> StepOutput:
        calls.append(1)
        return (
            dataclasses.replace(output, loss=output.loss * torch.nan) if len(calls) == 2 else output
        )

    step.model.register_forward_hook(second)
    before = {name: x.clone() for name, x in step.model.state_dict().items()}
    step(IDS)
    assert step.recent(1, 1)[0, 2] == 1
    assert all(torch.equal(x, before[name]) for name, x in step.model.state_dict().items())


def test_half_precision_gradients_of_parts_are_summed_in_float32() -> None:
    master, half = torch.zeros(3), torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    shadows = TrainedShadows([master], [half])
    for value in (256.0, 1.0, 1.0):
        half.grad = torch.full_like(half, value)
        shadows.hand_over()
        assert half.grad is None
    # In bfloat16 256 + 1 is 256.
    assert master.grad is not None and master.grad.tolist() == [258.0] * 3
    master.grad = None
    half.grad = torch.ones_like(half)
    shadows.hand_over()
    assert master.grad.tolist() == [1.0] * 3


def _one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for kind in KINDS:
        sections = {**OTHERS[kind], "optim": {"accumulate": 3, "clip_grad": 0.0}}
        config, clips = replace(STEP_CONFIG, **sections), step_clips()
        model = build_model(config, clips, IDS, CPU)
        schedule = Schedule(torch.full((9,), 1e-3), torch.full((9,), 0.5, dtype=torch.float64))
        optimizer = build_optimizer(model, config)
        world = World(rank=rank, size=2)
        step = TrainStep(config, clips, model, optimizer, torch.float32, world, schedule)
        assert isinstance(step.objective, DistributedDataParallel)
        ours, reduced = gradients(step), []
        # Not a function: its annotations, as text, are refused.
        step.objective.register_comm_hook(
            reduced,
            lambda seen, bucket: seen.append(bucket.index()) or allreduce_hook(None, bucket),
        )
        step(IDS[3 * rank : 3 * rank + 3])
        found[kind] = {
            "loss": step.world.sum_(step.recent(1, 1)[0, 0].clone()) / 2,
            "norm": step.recent(1, 1)[0, 1],
            "center": torch.zeros(1) if model.center is None else model.center,
            "reductions": torch.tensor(len(reduced) / len(set(reduced))),
            **ours,
        }
        # NaN in one process alone: both skip.
        before = {name: x.clone() for name, x in model.state_dict().items()}
        if rank == 1:
            poison = model.register_forward_hook(
                lambda _, __, output: dataclasses.replace(output, loss=output.loss * torch.nan)
            )
        else:
            poison = None
        step(IDS[3 * rank : 3 * rank + 3])
        same = [torch.equal(x, before[name]) for name, x in model.state_dict().items()]
        found[kind]["skipped"] = torch.tensor(float(all(same))) * step.recent(2, 1)[0, 2]
        if poison is not None:
            poison.remove()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_parts_follow_one_without(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_one_of_two, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in (0, 1))
    for kind in KINDS:
        whole = step_of(kind, 1)
        expected = gradients(whole)
        whole(IDS)
        found = first[kind]
        loss, norm, _ = whole.recent(1, 1)[0]
        torch.testing.assert_close(found.pop("loss"), loss, rtol=1e-5, atol=0)
        torch.testing.assert_close(found.pop("norm"), norm, rtol=1e-4, atol=0)
        center = found.pop("center")
        if whole.model.center is not None:
            torch.testing.assert_close(center, whole.model.center, rtol=1e-5, atol=1e-7)
        assert found.pop("reductions") == 1, "gradients travel once a step"
        assert found.pop("skipped") == second[kind]["skipped"] == 1
        for name, grad in expected.items():
            scale = float(grad.abs().max())
            torch.testing.assert_close(
                found[name], grad, rtol=0, atol=2e-5 * scale + 1e-7, msg=f"{kind} {name}"
            )


@pytest.mark.parametrize(
    ("batch", "parts", "size", "says"),
    [
        (6, 4, 1, "4 does not divide optim.batch_size 6"),
        (12, 4, 2, "4 does not divide the 6 clips of each process"),
        (12, 0, 1, "0"),
    ],
)
def test_parts_that_are_not_equal_are_refused(batch: int, parts: int, size: int, says: str) -> None:
    config = replace(preset("sjepa-nucla"), optim={"batch_size": batch, "accumulate": parts})
    with pytest.raises(InputError, match=says) as error:
        validate(config)
        check_shares(config, World(size=size))
    assert error.value.argument == "optim.accumulate"
    assert error.value.fix


def test_processes_that_cannot_share_a_batch_are_told_so() -> None:
    config = replace(preset("sjepa-nucla"), optim={"batch_size": 9, "accumulate": 3})
    with pytest.raises(InputError, match="multiple of the 2 processes"):
        check_shares(config, World(size=2))
    check_shares(config, World(size=3))


def test_no_more_memory_is_reckoned_with_than_a_part_needs() -> None:
    whole = preset("sjepa-ntu60-xsub")
    split = replace(whole, optim={"accumulate": 4})
    of_whole, of_part = (kept_bytes(c, 25, torch.bfloat16) for c in (whole, split))
    assert of_whole == 4 * of_part


def test_a_trial_is_of_one_part() -> None:
    step, seen = step_of("sjepa", 3), []
    step.model.register_forward_pre_hook(lambda _, batch: seen.append(len(batch[0].view_BNP)))
    try_step(step, IDS)
    assert seen == [2]


def test_a_run_in_parts_follows_one_without(store: Path, tmp_path: Path) -> None:
    own = {
        "optim.length": 3,
        "optim.unit": "steps",
        "runtime.dtype": "float32",
        "data.split": "xsub",
    }
    whole = trained(store, tmp_path / "whole", *flags(own))
    split = trained(store, tmp_path / "split", *flags({**own, "optim.accumulate": 4}))
    rows = [[row["loss"] for row in metrics(run) if "loss" in row] for run in (whole, split)]
    assert rows[1] == pytest.approx(rows[0], rel=1e-4)
    free = {"optim.accumulate": 2, "runtime.max-skipped": 99}
    trained(store, split, *flags({**own, **free}), "--resume=auto")
