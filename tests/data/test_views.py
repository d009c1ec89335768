"""Views: Rodrigues' rotation about the body's own axis, mirror, shift, and keyed draws."""

import math

import numpy as np
import pytest
import torch

from sjepa_fast.config.schema import TrainConfig, ViewConfig
from sjepa_fast.data.clips import augmentation, skeleton_tables
from sjepa_fast.skeletons import NTU25
from sjepa_kernels import clip_uniforms
from sjepa_kernels.augment import reference
from sjepa_kernels.augment.reference import rotation_about
from sjepa_kernels.purposes import VIEW

STILL = ViewConfig(rotation=0.0, tilt=0.0, translation=0.0, flip=0.0)
HALF = torch.full((1, 7), 0.5)


def random_view(x: torch.Tensor, draws: torch.Tensor, view: ViewConfig) -> torch.Tensor:
    told = augmentation(TrainConfig(view=view), bodies=2)
    return reference.random_view(x, draws, skeleton_tables(NTU25, x.device), told)


def body_axis(x: torch.Tensor) -> torch.Tensor:
    return reference.body_axis(x, NTU25.center, NTU25.spine_top)


def body(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 2, 6, 25, 3, generator=generator)
    x[:, :, :, NTU25.spine_top] = x[:, :, :, NTU25.center] + torch.tensor([0.1, 0.6, 0.2])
    return x


def test_rodrigues_matches_the_vector_formula() -> None:
    rng = np.random.default_rng(0)
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    v, angle = rng.normal(size=3), 0.7
    expected = (
        v * math.cos(angle)
        + np.cross(axis, v) * math.sin(angle)
        + axis * (axis @ v) * (1 - math.cos(angle))
    )
    matrix = rotation_about(
        torch.from_numpy(axis)[None], torch.tensor([angle], dtype=torch.float64)
    )[0]
    np.testing.assert_allclose(matrix.numpy() @ v, expected, rtol=1e-12)


def test_rotation_keeps_the_axis_of_the_first_body_and_all_distances() -> None:
    x = body()
    draws = HALF.clone()
    draws[:, 0] = 1.0
    view = random_view(x, draws, ViewConfig(rotation=0.5, translation=0.0, flip=0.0))
    torch.testing.assert_close(body_axis(view), body_axis(x))
    assert (view - x).abs().max() > 0.1
    points, turned = x.reshape(-1, 3), view.reshape(-1, 3)
    before = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    after = torch.cdist(turned, turned, compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)


def test_zero_ranges_change_nothing() -> None:
    torch.testing.assert_close(random_view(body(), HALF, STILL), body(), atol=1e-6, rtol=0)


def test_flip_twice_is_the_identity_and_swaps_left_and_right() -> None:
    x = body()
    always = ViewConfig(rotation=0.0, tilt=0.0, translation=0.0, flip=1.0)
    once = random_view(x, HALF, always)
    torch.testing.assert_close(random_view(once, HALF, always), x, atol=1e-5, rtol=1e-5)
    left, right = NTU25.swaps[0]
    pivot = x[:, 0, :, NTU25.center].mean(dim=1)[:, None, None, :]
    expected = (x - pivot[:, None])[:, :, :, right] * torch.tensor([-1.0, 1.0, 1.0]) + pivot
    torch.testing.assert_close(once[:, :, :, left], expected, atol=1e-5, rtol=1e-5)


def test_translation_is_the_scaled_draw_for_both_bodies() -> None:
    draws = HALF.clone()
    draws[:, 3:6] = torch.tensor([1.0, 0.0, 0.75])
    shift = ViewConfig(rotation=0.0, tilt=0.0, translation=0.2, flip=0.0)
    moved = random_view(body(), draws, shift) - body()
    torch.testing.assert_close(
        moved, torch.tensor([0.2, -0.2, 0.1]).expand_as(moved), atol=1e-5, rtol=0
    )


def test_absent_body_stays_zero() -> None:
    x = body()
    x[:, 1] = 0
    view = random_view(x, torch.rand(1, 7), ViewConfig(translation=0.5, flip=1.0))
    assert (view[:, 1] == 0).all() and (view[:, 0] != x[:, 0]).any()


def test_body_without_extent_rotates_about_the_vertical() -> None:
    axis = body_axis(torch.zeros(1, 1, 4, 25, 3))
    assert torch.equal(axis, torch.tensor([[0.0, 1.0, 0.0]]))


def test_draws_depend_on_the_clip_and_not_on_its_place_in_the_batch() -> None:
    seed, step = torch.tensor(3), torch.tensor(11)
    together = clip_uniforms(seed, step, torch.tensor([5, 9, 2]), VIEW, 7)
    alone = clip_uniforms(seed, step, torch.tensor([9]), VIEW, 7)
    assert torch.equal(together[1], alone[0])
    for other in (
        clip_uniforms(torch.tensor(4), step, torch.tensor([9]), VIEW, 7),
        clip_uniforms(seed, torch.tensor(12), torch.tensor([9]), VIEW, 7),
        clip_uniforms(seed, step, torch.tensor([9]), VIEW + 1, 7),
    ):
        assert not torch.equal(alone, other)


def test_draws_are_uniform() -> None:
    drawn = clip_uniforms(torch.tensor(0), torch.tensor(0), torch.arange(200), VIEW, 750)
    assert drawn.min() >= 0 and drawn.max() < 1
    counts = torch.histc(drawn, bins=20, min=0, max=1)
    expected = drawn.numel() / 20
    # Chi-squared with 19 degrees of freedom: above 43.8 once in a thousand.
    assert ((counts - expected) ** 2 / expected).sum() < 43.8
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.005)
