"""Multi-view and the regularizers of all objectives against NumPy in float64; and collapse."""

from __future__ import annotations

import dataclasses
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sjepa_fast.build import build_model, build_optimizer
from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.errors import InputError
from sjepa_fast.objectives.objective import Objective, StepInput, make_step_input
from sjepa_fast.objectives.regularizer import Samples, regularize
from sjepa_fast.runtime.dist import World
from sjepa_fast.runtime.schedule import tabulate
from sjepa_fast.skeletons import NTU25
from sjepa_fast.training.diagnosis import replay
from sjepa_fast.training.inputs import check_shares
from sjepa_fast.training.step import TrainStep
from sjepa_kernels.losses.directions import unit_directions_ref
from tests.tiny import AIMS, CPU, PREDICTING, drawn, objective, packed, step_input
from tests.training.test_step import OTHERS, make_step

REGULARIZERS = ("sigreg", "visreg", "vicreg")
CLIPS, VIEWS, DIRECTIONS, STEP = 5, 3, 7, 2
PRESENT = [2, 1, 1, 2, 1]


def config_of(kind: str = "multiview", **sections: dict[str, object]) -> TrainConfig:
    base = replace(
        TrainConfig(),
        data={"frames": 12, "bodies": 2, "crop_min_frames": 4},
        model={"width": 32, "depth": 1, "heads": 1, "predictor_depth": 1, "projector_width": 6},
        mask={"kind": "random", "ratio": 0.4},
        objective={**AIMS[kind], "views": VIEWS, "directions": DIRECTIONS, "target_layers": 1},
    )
    return replace(base, **sections)


def clips() -> list[Tensor]:
    """Clips of one and of two bodies."""
    return drawn(PRESENT, [12, 9, 20, 15, 12], NTU25, seed=1)


def softened(x: np.ndarray) -> np.ndarray:
    """The exact GELU."""
    return x * np.vectorize(NormalDist().cdf)(x)


def projected(model: Objective, features: np.ndarray) -> np.ndarray:
    assert model.projector is not None
    first, last = model.projector.fc1, model.projector.fc2
    w, b, w2 = (x.double().detach().numpy() for x in (first.weight, first.bias, last.weight))
    hidden = softened(features.reshape(-1, features.shape[-1]) @ w.T + b)
    hidden = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
    z: np.ndarray = (hidden @ w2.T).reshape(*features.shape[:-1], -1)
    return z


def mean_of_present(visible: np.ndarray) -> np.ndarray:
    """Features (clips, D) of visible tokens (clips, bodies, K, D)."""
    clips = zip(visible, PRESENT, strict=True)
    return np.stack([bodies[:present].mean((0, 1)) for bodies, present in clips])


def axes(width: int, step: int = STEP) -> np.ndarray:
    zero = torch.tensor(0)
    return unit_directions_ref(zero, zero + step, DIRECTIONS, width, torch.float64).numpy()


def sigreg_of(z: np.ndarray) -> float:
    total, t = 0.0, 3 / 16 * np.arange(17)
    weights = np.where((t == 0) | (t == 3), 1, 2) * 3 / 16 * np.exp(-(t**2) / 2)
    for view in z:
        x = view @ axes(z.shape[-1]).T
        waves = np.exp(1j * x[:, :, None] * t).mean(0) - np.exp(-(t**2) / 2)
        total += float((len(view) * (weights * np.abs(waves) ** 2).sum(-1)).mean())
    return total / len(z)


def visreg_of(z: np.ndarray) -> float:
    quantiles = [NormalDist().inv_cdf(i / (z.shape[1] + 1)) for i in range(1, z.shape[1] + 1)]
    total = 0.0
    for view in z:
        mean, deviation = view.mean(0), view.std(0) + 1e-6
        x = np.sort((view - mean) / deviation @ axes(z.shape[-1]).T, axis=0)
        shape = ((x - np.array(quantiles)[:, None]) ** 2).mean()
        total += (mean**2).mean() + ((deviation - 1) ** 2).mean() + shape
    return total / len(z)


def vicreg_of(z: np.ndarray) -> float:
    total = 0.0
    for view in z:
        covariance = np.cov(view.T)
        variances = np.diag(covariance)
        variance = np.maximum(0, 1 - np.sqrt(variances + 1e-4)).mean()
        total += 25 * variance + ((covariance**2).sum() - (variances**2).sum()) / len(variances)
    return total / len(z)


TRUTH = {"sigreg": sigreg_of, "visreg": visreg_of, "vicreg": vicreg_of}


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_loss_of_views_matches_numpy(regularizer: str) -> None:
    config = config_of(objective={"regularizer": regularizer, "regularizer_weight": 0.2})
    model, batch = objective(config), step_input(config, clips(), STEP)
    with torch.no_grad():
        visible = model.view_encoder(batch.view_BNP, batch.ids_keep_BK).double().numpy()
    assert visible.shape[:2] == (VIEWS * CLIPS * 2, 45)
    by_view = visible.reshape(VIEWS, CLIPS, 2, 45, 32)
    features = np.stack([mean_of_present(view) for view in by_view])
    z = projected(model, features)
    expected = 0.8 * ((z.mean(0) - z) ** 2).mean() + 0.2 * TRUTH[regularizer](z)
    out = model(batch)
    assert out.loss.item() == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(out.features.numpy(), features, rtol=1e-4, atol=1e-5)
    assert model.predictor is None and model.target_encoder is None and out.center_sum is None
    assert model.eval_encoder is model.view_encoder


@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize("kind", PREDICTING)
def test_a_regularizer_is_added_to_the_loss_of_an_objective(kind: str, regularizer: str) -> None:
    """It sees each mask of all clips as a view, and no token that the mask hides."""
    plain = config_of(kind, mask={"num_masked_views": 2})
    config = replace(plain, objective={"regularizer": regularizer, "regularizer_weight": 0.3})
    without, model = objective(plain), objective(config)
    left = without.load_state_dict(model.state_dict(), strict=False)
    assert left.missing_keys == []
    assert {name.split(".")[0] for name in left.unexpected_keys} == {"projector"}
    batch = step_input(config, clips(), STEP)
    with torch.no_grad():
        view = batch.view_BNP.repeat_interleave(2, dim=0)
        visible = model.view_encoder(view, batch.ids_keep_BK).double().numpy()
    by_mask = visible.reshape(CLIPS, 2, 2, *visible.shape[1:]).swapaxes(0, 2).swapaxes(1, 2)
    z = projected(model, np.stack([mean_of_present(mask) for mask in by_mask]))
    expected = without(step_input(plain, clips(), STEP)).loss.item() + 0.3 * TRUTH[regularizer](z)
    out = model(batch)
    assert out.loss.item() == pytest.approx(expected, rel=1e-4)
    out.loss.backward()
    for name, weight in model.named_parameters():
        if not name.startswith("target_encoder"):
            assert weight.grad is not None and weight.grad.abs().sum() > 0, name


def test_views_are_the_crops_and_masks_of_further_steps() -> None:
    config, one = config_of(), config_of("skeletonmae")
    found = step_input(config, clips(), STEP)
    single = [step_input(one, clips(), STEP * VIEWS + v) for v in range(VIEWS)]
    assert torch.equal(found.view_BNP, torch.cat([part.view_BNP for part in single]))
    assert torch.equal(found.ids_keep_BK, torch.cat([part.ids_keep_BK for part in single]))
    assert found.clip_BNP is found.view_BNP
    for first, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(single[first].view_BNP, single[other].view_BNP)
        assert not torch.equal(single[first].ids_keep_BK, single[other].ids_keep_BK)


def test_absent_bodies_count_for_nothing() -> None:
    alone = [clip[:1] for clip in clips()]
    losses = []
    for bodies in (1, 2):
        config = config_of(data={"bodies": bodies})
        packing = dataclasses.replace(packed(alone, NTU25), max_bodies=bodies)
        zero, ids = torch.tensor(0), torch.arange(CLIPS)
        batch = make_step_input(packing, ids, zero, zero, config)
        assert len(batch.view_BNP) == VIEWS * CLIPS * bodies
        losses.append(objective(config)(batch).loss)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("regularizer", ["sigreg", "visreg"])
def test_each_step_has_directions_of_its_own(regularizer: str) -> None:
    config = config_of(objective={"regularizer": regularizer})
    z = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(0))

    def value(seed: int, step: int) -> float:
        keys = torch.tensor(seed), torch.tensor(step)
        samples = Samples.of(torch.ones(9, 1), *keys, World())
        return regularize(z, samples, config.objective).item()

    assert value(0, 1) == value(0, 1) != value(0, 2)
    assert value(0, 1) != value(1, 1)


class OneOfTwo(World):
    """Process `rank` of two, which knows what the other one adds to a sum."""

    def sum_(self, tensor: Tensor) -> Tensor:
        others = self.__dict__["others"]
        half = tensor.shape[1] // 2
        tensor[:, half * (1 - self.rank) : half * (2 - self.rank)] = others
        return tensor


def gradients(model: Objective, batch: StepInput) -> dict[str, Tensor]:
    model.zero_grad()
    model(batch).loss.backward()
    found = model.named_parameters()
    return {name: x.grad.clone() for name, x in found if x.grad is not None}


@pytest.mark.parametrize("kind", ["multiview", "mamp"])
def test_the_mean_gradient_of_two_processes_is_that_of_one(kind: str) -> None:
    config = config_of(kind, objective={"regularizer": "vicreg", "regularizer_weight": 0.5})
    both = packed(drawn([2] * 6, [12] * 6, NTU25, seed=1), NTU25)
    model, zero = objective(config), torch.tensor(0)

    def batch_of(ids: Tensor, world: World | None = None) -> StepInput:
        return make_step_input(both, ids, zero, zero, config, world or World())

    def features_of(batch: StepInput) -> Tensor:
        assert batch.samples is not None
        visible = model.encode_visible(batch).detach()
        views = VIEWS if kind == "multiview" else 1
        return batch.samples.features(visible.view(views, 3, 2, *visible.shape[1:]))

    parts = [torch.arange(3), torch.arange(3, 6)]
    found = []
    for rank, ids in enumerate(parts):
        world = OneOfTwo(rank=rank, size=2)
        world.__dict__["others"] = features_of(batch_of(parts[1 - rank]))
        found.append(gradients(model, batch_of(ids, world)))
    expected = gradients(model, batch_of(torch.arange(6)))
    assert expected.keys() == found[0].keys()
    for name, grad in expected.items():
        mean = (found[0][name] + found[1][name]) / 2
        scale = float(grad.abs().max())
        torch.testing.assert_close(mean, grad, rtol=0, atol=1e-4 * scale + 1e-7, msg=name)


def test_processes_with_one_clip_each_are_told_so() -> None:
    config = config_of(optim={"batch_size": 4})
    check_shares(config, World(size=2))
    with pytest.raises(InputError, match=r"4 for 4 processes; objective\.regularizer sigreg"):
        check_shares(config, World(size=4))


def test_the_replay_names_a_clip_once() -> None:
    step = make_step(**OTHERS["multiview"])
    first = int(step.clips.offsets_N[3])
    step.clips.joints_RVC[first : first + 20] = torch.inf
    found = replay(step, step.clips, torch.arange(6), 0)
    assert found is not None and (found.what, found.clips) == ("clip", (3,))


def spread(regularizer: str, weight: float) -> tuple[float, float]:
    """Deviation of z over the clips, before and after sixty steps on clips that move apart."""
    config = config_of(
        data={"bodies": 1},
        view={"rotation": 0.3},
        objective={"views": 2, "regularizer": regularizer, "regularizer_weight": weight},
        optim={"batch_size": 16, "lr": 5e-3, "lr_end": 5e-3, "length": 60, "unit": "steps"},
    )
    apart = drawn([1] * 16, [16] * 16, NTU25, seed=3)
    shapes = drawn([1] * 16, [1] * 16, NTU25, seed=4)
    held = packed([x / 4 + shape for x, shape in zip(apart, shapes, strict=True)], NTU25)
    ids = torch.arange(16)
    model = build_model(config, held, ids, CPU)
    schedule = tabulate(config, 60, 5, CPU)
    optimizer = build_optimizer(model, config)
    step = TrainStep(config, held, model, optimizer, torch.float32, World(), schedule)
    before = deviation(model, step(ids).features)
    for _ in range(59):
        result: Any = step(ids)
    return before, deviation(model, result.features)


@torch.no_grad()
def deviation(model: Objective, features: Tensor) -> float:
    assert model.projector is not None
    return model.projector(features).mean(0).std(0).mean().item()


def test_views_collapse_without_a_regularizer_and_not_with_one() -> None:
    before, after = spread("sigreg", 0.0)
    assert after < 0.15 * before
    for regularizer in REGULARIZERS:
        assert spread(regularizer, 0.3)[1] > 3 * after, regularizer
