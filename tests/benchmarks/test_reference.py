"""The benchmark's plain S-JEPA step is a correct S-JEPA: sizes, loss, update rules, learning."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks.reference.networks import ReferenceEncoder
from benchmarks.reference.sampling import (
    HAND_PAIRS,
    MIRROR_PAIRS,
    keys_of_given_ids,
    mask_from_keys,
    motion_aware_keys,
    random_view,
)
from benchmarks.reference.sjepa_step import ReferenceStep
from sjepa_fast.config.schema import DataConfig, ModelConfig, TrainConfig
from sjepa_fast.objectives.objective import StepInput
from sjepa_fast.objectives.sjepa import SJEPA
from sjepa_fast.skeletons import NTU25
from sjepa_kernels.tubelets import to_tubelets

TINY = {"frames": 16, "joints": 25, "width": 16, "depth": 2, "predictor_depth": 1, "heads": 2}


def clips(batch: int, bodies: int, frames: int, joints: int, seed: int = 0) -> torch.Tensor:
    """Smooth random walks of joints around a standing pose, in metres."""
    generator = torch.Generator().manual_seed(seed)
    pose = torch.randn(batch, bodies, 1, joints, 3, generator=generator) * 0.4
    walk = torch.randn(batch, bodies, frames, joints, 3, generator=generator).cumsum(2) * 0.02
    return pose + walk


def rows_with_ids(sequences: int, tokens: int, kept: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(
        [torch.randperm(tokens, generator=generator)[:kept] for _ in range(sequences)]
    )


def test_parameter_counts_are_the_papers() -> None:
    step = ReferenceStep()
    assert sum(weight.numel() for weight in step.view_encoder.parameters()) == 6_336_000
    assert sum(weight.numel() for weight in step.target_encoder.parameters()) == 6_336_000
    assert sum(weight.numel() for weight in step.predictor.parameters()) == 4_095_232
    grouped = [w for group in step.optimizer.param_groups for w in group["params"]]
    assert sum(weight.numel() for weight in grouped) == 10_431_232
    assert step.kept == 75 and step.tokens == 750


def test_no_position_or_weight_starts_at_zero() -> None:
    encoder = ReferenceEncoder(3, 5, 3, 4, 16, 1, 2)
    for name, weight in encoder.named_parameters():
        if name.endswith("bias"):
            assert not weight.any(), name
        elif "norm" in name:
            assert (weight == 1).all(), name
        else:
            assert weight.std() > 0.01, name


def numpy_norm(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * weights[f"{name}.weight"] + weights[
        f"{name}.bias"
    ]


def numpy_linear(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def numpy_softmax(x: np.ndarray) -> np.ndarray:
    exponent = np.exp(x - x.max(-1, keepdims=True))
    return exponent / exponent.sum(-1, keepdims=True)


def numpy_block(x: np.ndarray, weights: dict[str, np.ndarray], name: str, heads: int) -> np.ndarray:
    """One pre-norm block on a single sequence (N, D), head by head."""
    width = x.shape[1]
    size = width // heads
    qkv = numpy_linear(numpy_norm(x, weights, f"{name}.norm1"), weights, f"{name}.qkv")
    mixed = []
    for head in range(heads):
        columns = slice(head * size, (head + 1) * size)
        q, k, v = (qkv[:, part * width : (part + 1) * width][:, columns] for part in range(3))
        mixed.append(numpy_softmax(q @ k.T / math.sqrt(size)) @ v)
    x = x + numpy_linear(np.concatenate(mixed, -1), weights, f"{name}.proj")
    hidden = numpy_linear(numpy_norm(x, weights, f"{name}.norm2"), weights, f"{name}.fc1")
    hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    return x + numpy_linear(hidden, weights, f"{name}.fc2")


def numpy_encoder(
    clip: np.ndarray,
    weights: dict[str, np.ndarray],
    name: str,
    ids: np.ndarray,
    sizes: dict[str, int],
) -> np.ndarray:
    """Tokens embedded one by one from their index segment * V + joint, then the blocks."""
    kernel = weights[f"{name}.embed.proj.weight"][..., 0]
    rows = []
    for token in ids:
        segment, joint = divmod(int(token), sizes["joints"])
        tubelet = clip[segment * 4 : segment * 4 + 4, joint]
        rows.append(
            np.einsum("dcl,lc->d", kernel, tubelet)
            + weights[f"{name}.embed.proj.bias"]
            + weights[f"{name}.embed.temporal"][0, segment, 0]
            + weights[f"{name}.embed.spatial"][0, 0, joint]
        )
    x = np.stack(rows)
    for layer in range(sizes["depth"]):
        x = numpy_block(x, weights, f"{name}.blocks.{layer}", sizes["heads"])
    return numpy_norm(x, weights, f"{name}.norm")


def numpy_loss(
    view: np.ndarray, clip: np.ndarray, ids: np.ndarray, weights: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Losses and targets at the hidden tokens of one sequence, by the equations of the method."""
    joints = TINY["joints"]
    tokens = TINY["frames"] // 4 * joints
    visible = numpy_encoder(view, weights, "view_encoder", ids, TINY)
    grid = np.repeat(weights["predictor.mask_token"][0], tokens, axis=0)
    grid[ids] = visible
    x = numpy_linear(grid, weights, "predictor.proj_in")
    for token in range(tokens):
        x[token] += weights["predictor.temporal"][0, token // joints, 0]
        x[token] += weights["predictor.spatial"][0, 0, token % joints]
    for layer in range(TINY["predictor_depth"]):
        x = numpy_block(x, weights, f"predictor.blocks.{layer}", TINY["heads"])
    x = numpy_linear(numpy_norm(x, weights, "predictor.norm"), weights, "predictor.proj_out")
    target = numpy_encoder(clip, weights, "target_encoder", np.arange(tokens), TINY)
    hidden = np.setdiff1d(np.arange(tokens), ids)
    sharp = numpy_softmax((target[hidden] - weights["center"]) / 0.06)
    log_p = np.log(numpy_softmax(x[hidden] / 0.1))
    return -(sharp * log_p).sum(-1), target[hidden]


def test_one_step_is_the_written_equations() -> None:
    """Loss, center, EMA and AdamW of one step against NumPy and against the update formulas."""
    step = ReferenceStep(2, 1, **TINY, seed=3).double()
    with torch.no_grad():
        step.center.normal_(std=0.3)
        for weight in step.target_encoder.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    before = {name: value.numpy().copy() for name, value in step.state_dict().items()}
    clip, view = clips(2, 1, 16, 25).double(), clips(2, 1, 16, 25, seed=1).double()
    ids = rows_with_ids(2, step.tokens, step.kept)
    loss = step.step(clip, 1e-3, 0.99, view_BMTVC=view, ids_keep=ids)

    rows = [
        numpy_loss(view[b, 0].numpy(), clip[b, 0].numpy(), ids[b].numpy(), before) for b in range(2)
    ]
    assert loss.item() == pytest.approx(np.concatenate([row[0] for row in rows]).mean(), rel=1e-9)
    after = {name: value.numpy() for name, value in step.state_dict().items()}
    center = 0.9 * before["center"] + 0.1 * np.concatenate([row[1] for row in rows]).mean(0)
    np.testing.assert_allclose(after["center"], center, rtol=1e-9)
    for name, target in after.items():
        if name.startswith("target_encoder."):
            source = after[name.replace("target_encoder", "view_encoder")]
            np.testing.assert_allclose(target, 0.99 * before[name] + 0.01 * source, rtol=1e-9)
    for name, weight in step.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None
            # Adam's first update is lr g / (|g| + eps), after the decay of what is not 1-D.
            gradient = weight.grad.numpy()
            decayed = before[name] * (1 - 1e-3 * (0.05 if weight.ndim > 1 else 0.0))
            expected = decayed - 1e-3 * gradient / (np.abs(gradient) + 1e-8)
            np.testing.assert_allclose(after[name], expected, rtol=1e-6, atol=1e-9)


def test_loss_falls() -> None:
    step = ReferenceStep(4, 2, **TINY, seed=0)
    clip = clips(4, 2, 16, 25)
    losses = [step.step(clip, 3e-3, 0.999).item() for _ in range(20)]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_same_seed_gives_the_same_step() -> None:
    clip = clips(2, 2, 16, 25)
    first, second, other = (
        ReferenceStep(2, 2, **TINY, seed=seed).step(clip, 1e-3, 0.99).item() for seed in (5, 5, 6)
    )
    assert first == second
    assert first != other


def test_given_ids_are_the_visible_ones() -> None:
    ids = rows_with_ids(3, 40, 7)
    kept, restore, mask = mask_from_keys(keys_of_given_ids(ids, 40), 7)
    assert torch.equal(kept, ids)
    for row in range(3):
        assert set(torch.nonzero(mask[row] == 0).flatten().tolist()) == set(ids[row].tolist())
        # restore maps every token to its place in [visible | hidden].
        assert restore[row][ids[row]].tolist() == list(range(7))
        assert sorted(restore[row].tolist()) == list(range(40))


def test_masking_matches_the_simulated_oracle() -> None:
    """P(visible) with exponential motion: 13.5 % of the calmest decile, 3.3 % of the liveliest."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    change = torch.empty(64, 30, 1, 25, 1).exponential_(generator=generator)
    clip = change.cumsum(1).expand(64, 30, 4, 25, 3).reshape(64, 120, 25, 3)
    visible = 1 - mask_from_keys(motion_aware_keys(clip, 4, 0.8), 74)[2]
    motion = torch.cat([change[:, 1:2], change[:, 1:]], dim=1).flatten(1)
    ranked = visible.gather(1, motion.argsort(dim=1))
    assert visible.mean().item() == pytest.approx(74 / 750, abs=1e-6)
    assert ranked[:, :75].mean().item() == pytest.approx(0.135, abs=0.01)
    assert ranked[:, -75:].mean().item() == pytest.approx(0.033, abs=0.01)


@pytest.mark.parametrize("flip", [0.0, 1.0], ids=["rotated", "mirrored"])
def test_view_is_a_rigid_motion_about_the_body_axis(flip: float) -> None:
    torch.manual_seed(1)
    clip = clips(3, 2, 6, 25).double()
    clip[2, 1] = 0
    view = random_view(clip.float(), 0.3, 0.1, flip).double()
    assert not view[2, 1].any()
    swap = list(range(25))
    for left, right in MIRROR_PAIRS + HAND_PAIRS:
        swap[left], swap[right] = right, left
    given = clip[:, 0][:, :, swap] if flip else clip[:, 0]
    seen = view[:, 0]
    assert (seen - given).abs().amax() > 0.05
    torch.testing.assert_close(
        torch.cdist(seen, seen), torch.cdist(given, given), rtol=1e-4, atol=1e-5
    )
    if not flip:
        spine = (clip[:, 0, :, 20] - clip[:, 0, :, 0]).mean(1)
        turned = (view[:, 0, :, 20] - view[:, 0, :, 0]).mean(1)
        torch.testing.assert_close(turned, spine, rtol=1e-4, atol=1e-5)


def test_wrong_shapes_are_named() -> None:
    step = ReferenceStep(1, 1, **TINY)
    with pytest.raises(ValueError, match=r"x_BMTVC: shape \(2, 1, 16, 25, 3\)"):
        step.step(clips(2, 1, 16, 25), 1e-3, 0.99)
    with pytest.raises(ValueError, match=r"ids_keep: shape \(1, 3\)"):
        step.step(clips(1, 1, 16, 25), 1e-3, 0.99, ids_keep=torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(FloatingPointError, match="nan"):
        step.step(clips(1, 1, 16, 25) * math.nan, 1e-3, 0.99)


def test_the_library_has_the_same_loss_and_gradients() -> None:
    """Weights, view and mask shared: the packed, fused step equals the plain one."""
    config = TrainConfig(
        data=DataConfig(frames=16, bodies=2),
        model=ModelConfig(segment_length=4, width=16, depth=2, heads=2, predictor_depth=1),
    )
    torch.manual_seed(2)
    model = SJEPA(config, NTU25)
    model.center.normal_(std=0.3)
    plain = ReferenceStep(3, 2, **TINY)
    plain.load_weights(model.state_dict())
    clip, view = clips(3, 2, 16, 25), clips(3, 2, 16, 25, seed=1)
    ids = rows_with_ids(6, plain.tokens, plain.kept)
    keys = keys_of_given_ids(ids, plain.tokens)
    hidden = keys.argsort(dim=1)[:, plain.kept :]
    tokens = [to_tubelets(x.flatten(0, 1), 4) for x in (view, clip)]
    out = model(StepInput(tokens[0], tokens[1], ids, hidden))
    out.loss.backward()
    plain_loss, plain_center = plain.loss(view.flatten(0, 1), clip.flatten(0, 1), keys)
    plain_loss.backward()
    assert out.loss.item() == pytest.approx(plain_loss.item(), rel=1e-5)
    torch.testing.assert_close(out.center_sum / hidden.numel(), plain_center, rtol=1e-4, atol=1e-5)
    gradients = dict(plain.named_parameters())
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            expected = gradients[name].grad
            assert expected is not None and weight.grad is not None
            if name.endswith("embed.proj.weight"):
                expected = expected.squeeze(-1).transpose(1, 2)
            torch.testing.assert_close(
                weight.grad, expected.reshape(weight.shape), rtol=1e-3, atol=1e-5, msg=name
            )
