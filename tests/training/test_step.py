"""The training step never makes the host wait for the device, and does what it says."""

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sjepa_fast.build import build_model, build_optimizer
from sjepa_fast.config.schema import replace
from sjepa_fast.config.traits import TRAITS
from sjepa_fast.objectives.objective import make_step_input
from sjepa_fast.runtime.dist import World
from sjepa_fast.runtime.graph import StepGraph
from sjepa_fast.runtime.schedule import Schedule
from sjepa_fast.training.step import TrainStep
from tests.tiny import CPU, STEP_CONFIG, step_clips

AXES = ("temporal", "spatial")


def make_step(
    rate: float = 1e-3,
    momentum: float = 0.99,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    world: World | None = None,
    **sections: dict[str, object],
) -> TrainStep:
    config = dataclasses.replace(replace(STEP_CONFIG, **sections), seed=seed)
    clips = step_clips()
    model = build_model(config, clips, torch.arange(6), CPU)
    optimizer = build_optimizer(model, config)
    schedule = Schedule(torch.full((9,), rate), torch.full((9,), momentum, dtype=torch.float64))
    return TrainStep(config, clips, model, optimizer, dtype, world or World(), schedule)


class HostWaits(TorchDispatchMode):
    """Counts operations that read a device value on the host or copy a host value to the device."""

    # lift_fresh is what torch.tensor(...) becomes: on a GPU, a copy that the host waits for.
    WAITS = ("_local_scalar_dense", "nonzero", "lift_fresh", "is_nonzero", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        chosen = args[1] if name in ("index", "index_put_") else ()
        masks = [i for i in chosen if isinstance(i, torch.Tensor) and i.dtype == torch.bool]
        if name in self.WAITS or masks:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_the_watch_sees_a_wait() -> None:
    with HostWaits() as waits:
        torch.ones(2).sum().item()
        torch.tensor([1.0])
        torch.ones(3)[torch.ones(3) > 0]
    assert set(waits.seen) >= {"_local_scalar_dense", "lift_fresh", "index"}


OTHERS: dict[str, dict[str, dict[str, object]]] = {
    "sjepa": {},
    "skeleton2vec": {
        "objective": {"kind": "skeleton2vec", "target_norm": "instance", "target_layers": 1},
        "mask": {"kind": "tube", "tube_length": 2, "num_masked_views": 2},
        "data": {"sampling": "index"},
        "model": {"layer_scale": 0.1},
    },
    "mamp": {"objective": {"kind": "mamp", "target_norm": "patch"}},
    "skeletonmae": {
        "objective": {"kind": "skeletonmae", "target_norm": "temporal"},
        "mask": {"kind": "random"},
        "view": {"form": "axes", "tilt": 0.0},
    },
    "multiview": {
        "objective": {"kind": "multiview", "regularizer": "sigreg", "directions": 8},
        "mask": {"kind": "random", "ratio": 0.4},
    },
}


@pytest.mark.parametrize("absent", [False, True], ids=["all present", "absent bodies"])
@pytest.mark.parametrize("kind", TRAITS)
def test_steady_state_step_has_no_host_wait(
    kind: str, absent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a CPU, the fused ops read the values of ids and scalars to check them; on a GPU not.
    for module in ("_checks", "augment.checks"):
        path = f"sjepa_kernels.{module}.readable"
        monkeypatch.setattr(path, lambda _: False, raising=False)
    # So does its C++ of the regularizer, of the gradient that it multiplies by.
    monkeypatch.setattr("sjepa_kernels.losses.sigreg.has_cpu_code", lambda _: False)
    plain: dict[str, object] = {"kind": kind, "target_norm": TRAITS[kind].target_norms[0]}
    step = make_step(**OTHERS.get(kind, {"objective": plain}))
    if absent:
        step.clips = dataclasses.replace(step.clips, max_bodies=2, most_bodies=6)
    ids = torch.arange(6)
    step(ids)
    with HostWaits() as waits:
        step(ids)
    assert waits.seen == []


def test_step_moves_each_part_by_its_own_rule() -> None:
    step = make_step(momentum=0.75)
    model = step.model
    view = [p.clone() for p in model.view_encoder.parameters()]
    target = [p.clone() for p in model.target_encoder.parameters()]
    step(torch.arange(6))
    for old_target, new_target, new_view, old_view in zip(
        target,
        model.target_encoder.parameters(),
        model.view_encoder.parameters(),
        view,
        strict=True,
    ):
        assert not torch.equal(new_view, old_view)
        torch.testing.assert_close(new_target, 0.75 * old_target + 0.25 * new_view.detach())
    assert model.center.abs().sum() > 0 and int(step.step) == 1
    assert all(p.grad is None for p in model.parameters())


def test_center_is_updated_after_use_with_the_mean_of_masked_targets() -> None:
    step = make_step(0.0, 1.0, objective={"center_momentum": 0.7})
    ids = torch.arange(6)
    batch = make_step_input(step.clips, ids, step.seed, step.step, step.config)
    result = step(ids)
    index = batch.ids_mask_BQ.long()[:, :, None].expand(-1, -1, result.features.shape[-1])
    mean = result.features.gather(1, index).mean(dim=(0, 1))
    torch.testing.assert_close(step.model.center, 0.3 * mean, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(step.model.center, 0.3 * result.features.mean(dim=(0, 1)), rtol=1e-3)


def test_gradients_are_clipped_to_the_norm_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = {}
    for limit in (0.0, 1e-3):
        step = make_step(optim={"clip_grad": limit})
        seen: list[float] = []

        def measure(
            optimizer: torch.optim.Optimizer = step.optimizer, seen: list[float] = seen
        ) -> None:
            grads = [p.grad for g in optimizer.param_groups for p in g["params"]]
            seen.append(torch.stack([g.norm() for g in grads if g is not None]).norm().item())

        monkeypatch.setattr(step.optimizer, "step", measure)
        reported = step(torch.arange(6)).grad_norm.item()
        norms[limit] = (reported, seen[0])
    assert norms[0.0][0] == pytest.approx(norms[0.0][1], rel=1e-5)
    assert norms[1e-3][0] == pytest.approx(norms[0.0][0], rel=1e-5), "the norm before clipping"
    assert norms[1e-3][1] == pytest.approx(1e-3, rel=1e-3)


def test_equal_seeds_repeat_and_another_seed_does_not() -> None:
    first, second = make_step(), make_step()
    ids = torch.arange(6)
    a = [first(ids).loss for _ in range(3)]
    b = [second(ids).loss for _ in range(3)]
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(make_step(seed=1)(ids).loss, a[0])


def test_weight_decay_groups() -> None:
    step = make_step()
    names = {id(p): n for n, p in step.model.named_parameters()}
    decayed, free = ({names[id(p)] for p in g["params"]} for g in step.optimizer.param_groups)
    assert step.optimizer.param_groups[0]["weight_decay"] == 0.05
    assert step.optimizer.param_groups[1]["weight_decay"] == 0
    assert {"predictor.mask_token", "predictor.temporal", "view_encoder.embed.spatial"} <= decayed
    assert all(n.endswith("bias") or ".norm" in n for n in free)
    assert not any(n.startswith("target_encoder") for n in decayed | free)


def test_positions_can_be_spared_the_decay_and_layer_scales_always_are() -> None:
    step = make_step(
        optim={"decay_positions": False},
        model={"layer_scale": 0.1},
    )
    names = {id(p): n for n, p in step.model.named_parameters()}
    decayed, free = ({names[id(p)] for p in g["params"]} for g in step.optimizer.param_groups)
    tables = {f"{part}.{axis}" for part in ("view_encoder.embed", "predictor") for axis in AXES}
    assert tables <= free and "predictor.mask_token" in decayed
    assert {n for n in free if n.endswith("gamma")} == {
        f"{part}.blocks.0.scale{i}.gamma" for part in ("view_encoder", "predictor") for i in (1, 2)
    }
    assert all(n.endswith((".weight", "mask_token")) for n in decayed)


@pytest.mark.parametrize("kind", ["skeleton2vec", "mamp", "skeletonmae", "multiview"])
def test_only_what_an_objective_has_is_moved(kind: str) -> None:
    step = make_step(momentum=0.75, **OTHERS[kind])
    model = step.model
    old = {n: p.clone() for n, p in model.named_parameters()}
    step(torch.arange(6))
    for name, now in model.named_parameters():
        if name.startswith("target_encoder"):
            source = dict(model.named_parameters())[name.replace("target", "view", 1)].detach()
            torch.testing.assert_close(now, 0.75 * old[name] + 0.25 * source)
        else:
            assert not torch.equal(now, old[name]), name
    assert bool(step.ema) == (kind == "skeleton2vec") and model.center is None


def test_history_keeps_the_latest_steps_in_order() -> None:
    step = make_step(log={"every": 3})
    results = [step(torch.arange(6).roll(i)) for i in range(5)]
    rows = [torch.stack([r.loss, r.grad_norm, torch.tensor(0.0)]) for r in results[2:]]
    expected = torch.stack(rows)
    assert torch.equal(step.recent(5, 3), expected)
    assert torch.equal(step.recent(5, 1), expected[-1:])


def test_step_looks_up_its_own_rate_and_momentum() -> None:
    step = make_step()
    rates, momenta = torch.tensor([0.0, 1e-3]), torch.tensor([1.0, 0.5], dtype=torch.float64)
    step.schedule = Schedule(rates, momenta)
    weight = step.model.view_encoder.norm.weight
    target = step.model.target_encoder.norm.weight
    before = weight.detach().clone()
    step(torch.arange(6))
    assert torch.equal(weight, before) and torch.equal(target, before)
    step(torch.arange(6))
    assert not torch.equal(weight, before)
    torch.testing.assert_close(target, (before + weight.detach()) / 2)


def test_a_resumed_step_remembers_those_that_were_not_logged_yet() -> None:
    begun = make_step(log={"every": 4})
    for _ in range(3):
        begun(torch.arange(6))
    recent = begun.recent(3, 3)
    resumed = make_step(log={"every": 4})
    assert resumed.remember(recent, 3) == 3
    assert torch.equal(resumed.recent(3, 3), recent)
    # It would have logged step 2.
    oftener = make_step(log={"every": 2})
    assert oftener.remember(recent, 3) == 1
    assert torch.equal(oftener.recent(3, 1), recent[2:])
    assert resumed.remember(recent[:0], 3) == 0


def test_what_the_first_calls_do_is_named_and_counted() -> None:
    """The time that is left is reckoned without them."""
    step = make_step()
    assert step.beginning == ("first step", 1)
    step.graph = StepGraph(step.eager, required=False, warmup=3)
    assert step.beginning == ("capturing", 4), "three eagerly, and the one that is captured"
    step.compiles = True
    assert step.beginning == ("compiling", 4)
    step.graph = None
    assert step.beginning == ("compiling", 1)
