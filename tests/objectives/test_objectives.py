"""MAMP, SkeletonMAE and Skeleton2vec against NumPy derivations, and what all four share."""

import dataclasses

import numpy as np
import pytest
import torch

from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.models.residual import Residual
from sjepa_fast.objectives.coordinates import denormalized, normalized
from sjepa_fast.objectives.objective import Objective, StepInput
from sjepa_fast.objectives.skeleton2vec import Skeleton2vec, legacy_places
from sjepa_fast.skeletons import NTU25
from sjepa_kernels import tube_mask
from tests.tiny import AIMS, NORMS, PREDICTING, drawn, objective, step_input

KINDS = tuple(NORMS)
CLIPS, BODIES, FRAMES, LENGTH, JOINTS = 3, 2, 12, 3, 25
SEGMENTS = FRAMES // LENGTH


def config_of(kind: str, **sections: dict[str, object]) -> TrainConfig:
    base = replace(
        TrainConfig(),
        data={"frames": FRAMES, "bodies": BODIES},
        model={"segment_length": LENGTH, "width": 32, "depth": 3, "heads": 1, "predictor_depth": 1},
        view={"form": "axes", "rotation": 0.3, "translation": 0.0, "flip": 0.0},
        objective={**AIMS[kind], "target_layers": 2},
    )
    return replace(base, **sections)


def inputs(config: TrainConfig) -> StepInput:
    return step_input(config, drawn([BODIES] * CLIPS, [FRAMES] * CLIPS, NTU25, seed=1))


def prediction_of(model: Objective, batch: StepInput) -> np.ndarray:
    with torch.no_grad():
        visible = model.view_encoder(batch.view_BNP, batch.ids_keep_BK)
        drawn = model.predictor(visible, batch.ids_keep_BK, batch.ids_mask_BQ)
    return drawn.double().numpy()


def frame_grid(tubelets: torch.Tensor) -> np.ndarray:
    """Coordinates x[sequence, frame, joint, coordinate], one tubelet at a time."""
    x = np.zeros((len(tubelets), FRAMES, JOINTS, 3))
    for n in range(SEGMENTS * JOINTS):
        segment, joint = divmod(n, JOINTS)
        rows = tubelets[:, n].double().numpy().reshape(-1, LENGTH, 3)
        x[:, segment * LENGTH : (segment + 1) * LENGTH, joint] = rows
    return x


def numbers_loss(target: np.ndarray, prediction: np.ndarray, ids_mask: np.ndarray) -> float:
    """Mean squared error at the masked tokens, a token's numbers in the order (frame, coord)."""
    errors = []
    for b, ids in enumerate(ids_mask):
        for q, token in enumerate(ids):
            segment, joint = divmod(int(token), JOINTS)
            frames = slice(segment * LENGTH, (segment + 1) * LENGTH)
            errors.append((prediction[b, q] - target[b, frames, joint].ravel()) ** 2)
    return float(np.mean(errors))


def by_patch(x: np.ndarray) -> np.ndarray:
    out = np.zeros_like(x)
    for segment in range(SEGMENTS):
        frames = slice(segment * LENGTH, (segment + 1) * LENGTH)
        for joint in range(JOINTS):
            numbers = x[:, frames, joint].reshape(len(x), -1)
            mean, var = numbers.mean(1), numbers.var(1, ddof=1)
            scaled = (numbers - mean[:, None]) / np.sqrt(var[:, None] + 1e-6)
            out[:, frames, joint] = scaled.reshape(len(x), LENGTH, 3)
    return out


def over_time(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, ddof=1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("norm", ["patch", "temporal", "none"])
@pytest.mark.parametrize("kind", ["mamp", "skeletonmae"])
def test_loss_on_numbers_matches_numpy(kind: str, norm: str) -> None:
    config = config_of(kind, objective={"target_norm": norm})
    model, batch = objective(config), inputs(config)
    x = frame_grid(batch.view_BNP)
    if kind == "mamp":
        x = np.concatenate([np.diff(x, axis=1), np.zeros_like(x[:, :1])], axis=1)
    target = {"patch": by_patch, "temporal": over_time, "none": lambda y: y}[norm](x)
    expected = numbers_loss(target, prediction_of(model, batch), batch.ids_mask_BQ.numpy())
    out = model(batch)
    assert out.loss.item() == pytest.approx(expected, rel=1e-4)
    assert out.center_sum is None and model.target_encoder is None
    assert model.eval_encoder is model.view_encoder
    assert out.features.shape == (CLIPS * BODIES, batch.ids_keep_BK.shape[1], 32)
    assert not out.features.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_every_trainable_weight_has_a_gradient(kind: str) -> None:
    model = objective(config_of(kind))
    model(inputs(config_of(kind))).loss.backward()
    for name, weight in model.named_parameters():
        if name.startswith("target_encoder"):
            assert weight.grad is None, name
        else:
            assert weight.grad is not None and weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", ["skeleton2vec", "mamp", "skeletonmae"])
def test_masks_and_targets_come_from_the_view(kind: str) -> None:
    config = config_of(kind)
    batch = inputs(config)
    assert batch.clip_BNP is batch.view_BNP
    plain = inputs(replace(config, view={"rotation": 0.0}))
    assert not torch.allclose(plain.view_BNP, batch.view_BNP)
    x, y = frame_grid(plain.view_BNP), frame_grid(batch.view_BNP)
    np.testing.assert_allclose(
        np.linalg.norm(x, axis=-1), np.linalg.norm(y, axis=-1), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", PREDICTING)
def test_several_masks_of_a_clip_are_the_mean_of_single_ones(kind: str) -> None:
    config = config_of(kind, mask={"num_masked_views": 3, "ratio": 0.8})
    model, batch = objective(config), inputs(config)
    sequences, tokens = CLIPS * BODIES, SEGMENTS * JOINTS
    keep, mask = (x.view(sequences, 3, -1) for x in (batch.ids_keep_BK, batch.ids_mask_BQ))
    assert keep.shape[2] + mask.shape[2] == tokens
    assert not torch.equal(keep[:, 0], keep[:, 1])
    out = model(batch)
    single = [
        model(StepInput(batch.view_BNP, batch.clip_BNP, keep[:, r], mask[:, r])) for r in range(3)
    ]
    mean = torch.stack([one.loss for one in single]).mean()
    torch.testing.assert_close(out.loss, mean, rtol=1e-5, atol=1e-6)
    first = inputs(replace(config, mask={"num_masked_views": 1}))
    assert torch.equal(first.ids_keep_BK, keep[:, 0])
    if kind == "sjepa":
        sums = torch.stack([one.center_sum for one in single if one.center_sum is not None])
        torch.testing.assert_close(out.center_sum, sums.sum(dim=0), rtol=1e-4, atol=1e-3)
        assert out.center_count == batch.ids_mask_BQ.numel()


def standardized(x: np.ndarray, axis: int, eps: float = 1e-5) -> np.ndarray:
    return (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + eps)


@pytest.mark.parametrize(("norm", "axis"), [("instance", 1), ("layernorm", 2), ("none", None)])
def test_skeleton2vec_loss_matches_numpy(norm: str, axis: int | None) -> None:
    config = config_of(
        "skeleton2vec",
        objective={"target_norm": norm},
        mask={"kind": "tube", "tube_length": 2},
        model={"layer_scale": 0.3},
    )
    model, batch = objective(config), inputs(config)
    assert isinstance(model, Skeleton2vec)
    with torch.no_grad():
        for weight in model.target_encoder.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
        x = model.target_encoder.embed(batch.view_BNP)
        layers = []
        for block in model.target_encoder.blocks:
            x = block(Residual(x)).settled()
            layers.append(x.double().numpy())
        after = model.target_encoder.norm(x)
    kept = layers[-2:] if axis is None else [standardized(y, axis) for y in layers[-2:]]
    target = standardized(np.mean(kept, axis=0), 2)
    picked = np.take_along_axis(target, batch.ids_mask_BQ.long().numpy()[..., None], axis=1)
    expected = np.mean((prediction_of(model, batch) - picked) ** 2)
    out = model(batch)
    assert out.loss.item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(out.features, after)
    assert model.eval_encoder is model.target_encoder and model.center is None


def paper_tubes() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(2, 750, 9, generator=torch.Generator().manual_seed(3))
    tubes = tube_mask(x, 2, torch.tensor(0), joints=25, tube_length=5)
    return tubes.ids_keep_BK, tubes.ids_mask_BQ


def test_legacy_layout_misplaces_what_the_authors_misplace() -> None:
    """Method 4.2: 2 of 60 are right, 54 visible places hold mask tokens, 54 masked features."""
    keep, mask = paper_tubes()
    place, rest = legacy_places(keep, mask, 25)
    for b in range(2):
        # The authors' way, token by token: [60 features, 690 mask tokens] as 30 rows of 25, each
        # of them reordered from [visible joints, masked joints] to the joints.
        grid = np.full(750, -1)
        content = [*range(60), *[-1] * 690]
        visible = set(keep[b].tolist())
        for segment in range(30):
            joints = range(segment * 25, segment * 25 + 25)
            order = sorted(joints, key=lambda token: (token not in visible, token))
            for rank, token in enumerate(order):
                grid[token] = content[segment * 25 + rank]
        assert [int(t) for t in place[b]] == [int(np.flatnonzero(grid == i)[0]) for i in range(60)]
        assert set(rest[b].tolist()) == set(np.flatnonzero(grid == -1).tolist())
        assert sum(int(p == k) for p, k in zip(place[b], keep[b], strict=True)) == 2
        assert sum(grid[token] == -1 for token in visible) == 54
        assert sum(grid[token] != -1 for token in mask[b].tolist()) == 54


@pytest.mark.parametrize("legacy", [False, True])
def test_predictions_belong_to_their_tokens_in_both_layouts(legacy: bool) -> None:
    mask = {"kind": "tube", "tube_length": 2, "ratio": 0.8}
    config = config_of("skeleton2vec", objective={"legacy_tube_layout": legacy}, mask=mask)
    model, batch = objective(config), inputs(config)
    assert isinstance(model, Skeleton2vec)
    ids_keep, ids_mask = batch.ids_keep_BK, batch.ids_mask_BQ
    place = legacy_places(ids_keep, ids_mask, JOINTS)[0] if legacy else ids_keep
    net, tokens = model.predictor, SEGMENTS * JOINTS
    with torch.no_grad():
        visible = model.encode_visible(batch)
        found = model._predict(visible, ids_keep, ids_mask)
        grid = net.mask_token.expand(len(visible), tokens, -1).clone()
        index = place.long()[:, :, None].expand(-1, -1, 32)
        grid = grid.scatter(1, index, net.proj_in(visible))
        x = grid + (net.temporal[:, None] + net.spatial[None]).flatten(0, 1)
        for block in net.blocks:
            x = block(Residual(x)).settled()
        full = net.proj_out(net.norm(x))
    rows = ids_mask.long()[:, :, None].expand(-1, -1, 32)
    torch.testing.assert_close(found, full.gather(1, rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "sizes", "encoder", "predictor"),
    [
        ("sjepa", (120, 4, 5, 0.0), 6_336_000, 4_095_232),
        ("mamp", (120, 4, 3, 0.0), 6_336_000, 8_789_004 - 6_336_000),
        ("skeletonmae", (120, 4, 3, 0.0), 6_336_000, 8_789_004 - 6_336_000),
        ("skeleton2vec", (90, 3, 3, 1e-4), 6_339_328, 2_517_248),
    ],
)
def test_parameter_counts_of_the_papers(
    kind: str, sizes: tuple[int, int, int, float], encoder: int, predictor: int
) -> None:
    frames, length, depth, scale = sizes
    config = replace(
        TrainConfig(),
        data={"frames": frames},
        model={"segment_length": length, "predictor_depth": depth, "layer_scale": scale},
        objective={"kind": kind, "target_norm": NORMS[kind]},
    )
    model = objective(config)
    assert sum(p.numel() for p in model.view_encoder.parameters()) == encoder
    assert sum(p.numel() for p in model.predictor.parameters()) == predictor
    if kind in ("sjepa", "skeleton2vec"):
        copied = sum(p.numel() for p in model.eval_encoder.parameters())
        assert copied == encoder and model.eval_encoder is not model.view_encoder


def test_skeleton2vec_starts_as_the_authors_do() -> None:
    model = objective(
        config_of("skeleton2vec", model={"layer_scale": 1e-4, "width": 256, "heads": 8})
    )
    block = model.view_encoder.blocks[0]
    assert block.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert block.norm1.eps == model.predictor.norm.eps == 1e-6
    assert torch.equal(block.scale1.gamma, torch.full((256,), 1e-4))
    others = objective(config_of("mamp"))
    assert others.view_encoder.norm.eps == 1e-5
    assert not any("gamma" in name for name, _ in others.named_parameters())


@pytest.mark.parametrize("kind", PREDICTING)
@pytest.mark.parametrize("views", [1, 2])
def test_losses_of_tokens_have_the_mean_of_the_step(kind: str, views: int) -> None:
    config = config_of(kind, mask={"num_masked_views": views, "predict_ratio": 0.5})
    model, batch = objective(config), inputs(config)
    with torch.no_grad():
        losses, loss = model.token_losses(batch), model(batch).loss
    assert losses.shape == batch.ids_by_sequence().shape
    torch.testing.assert_close(losses.mean(), loss)
    assert losses.std() > 0
    # They follow the ids, whatever their order.
    with torch.no_grad():
        order = torch.arange(len(batch.ids_mask_BQ[0])).flip(0)
        turned = dataclasses.replace(batch, ids_mask_BQ=batch.ids_mask_BQ[:, order])
        found = model.token_losses(turned).unflatten(1, (views, -1))
    torch.testing.assert_close(found.flip(2).flatten(1), losses, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("norm", ["patch", "temporal", "none"])
def test_normalised_numbers_can_be_restored(norm: str) -> None:
    torch.manual_seed(0)
    numbers = torch.randn(2, SEGMENTS * JOINTS, LENGTH * 3) * 3 + 1
    there = normalized(numbers, JOINTS, norm)
    torch.testing.assert_close(denormalized(there, numbers, JOINTS, norm), numbers)
