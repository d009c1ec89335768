"""Clip normalisations: heading, size and centring, and the PCA whitening."""

import numpy as np
import pytest
import torch

from sjepa_fast.data.normalize import (
    align_heading,
    align_spine,
    body_size,
    heading,
    normalize_clip,
    rotation_between,
)
from sjepa_fast.data.synthetic import synthetic_clip
from sjepa_fast.data.whiten import fit_whitening
from sjepa_fast.skeletons import KINECT15, KINECT20, NTU25, SkeletonLayout


def turned(clip: np.ndarray, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    x, y, z = clip[..., 0], clip[..., 1], clip[..., 2]
    return np.stack([c * x - s * z, y, s * x + c * z], axis=-1).astype(np.float32)


@pytest.mark.parametrize("angle", [-2.5, 0.3, 1.5])
def test_alignment_undoes_any_turn_about_the_vertical(angle: float) -> None:
    clip = synthetic_clip(2, 0, 1, 0)
    once = align_heading(clip, NTU25)
    assert heading(once, NTU25) == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(align_heading(turned(clip, angle), NTU25), once, atol=2e-5)


def test_alignment_is_one_rotation_for_both_bodies() -> None:
    clip = synthetic_clip(12, 0, 1, 1)
    assert len(clip) == 2
    out = align_heading(clip, NTU25)
    before = np.linalg.norm(clip[0, 5] - clip[1, 5], axis=-1)
    np.testing.assert_allclose(np.linalg.norm(out[0, 5] - out[1, 5], axis=-1), before, rtol=1e-4)


@pytest.mark.parametrize(
    ("layout", "foot", "above"), [(NTU25, 0, 1), (KINECT20, 0, 1), (KINECT15, 2, 1)]
)
def test_spine_alignment_brings_the_first_frame_upright_whatever_the_pose(
    layout: SkeletonLayout, foot: int, above: int
) -> None:
    rng = np.random.default_rng(0)
    clip = rng.normal(size=(2, 3, layout.num_joints, 3)).astype(np.float32)
    left, right = layout.shoulders
    # Shoulders at a right angle to the spine, so that neither turn spoils the other's work.
    spine = clip[0, 0, above] - clip[0, 0, foot]
    across = np.cross(spine, [0.3, -0.5, 0.8])
    clip[0, 0, right] = clip[0, 0, left] + across.astype(np.float32)
    out = align_spine(clip, layout)
    upright = out[0, 0, above] - out[0, 0, foot]
    np.testing.assert_allclose(upright, [0, np.linalg.norm(spine), 0], atol=1e-5)
    side = out[0, 0, right] - out[0, 0, left]
    np.testing.assert_allclose(side, [np.linalg.norm(across), 0, 0], atol=1e-5)
    points, moved = clip.reshape(-1, 3), out.reshape(-1, 3)
    np.testing.assert_allclose(moved @ moved.T, points @ points.T, atol=1e-4)
    np.testing.assert_allclose(
        np.linalg.det(moved[:3]), np.linalg.det(points[:3]), rtol=1e-3, atol=1e-5
    )
    chosen = normalize_clip(clip, layout, center=False, align_yaw=False, size=False, spine=True)
    np.testing.assert_array_equal(chosen, out)


@pytest.mark.parametrize("end", [(0, 1, 0), (0, -3, 1e-6), (0, -2, 0), (1, 2, 3)])
def test_rotation_between_two_directions_also_opposite_ones(
    end: tuple[float, float, float],
) -> None:
    start, end_ = np.array([0.0, 2.0, 0.0]), np.array(end, dtype=float)
    matrix = rotation_between(start, end_)
    np.testing.assert_allclose(matrix @ start / 2, end_ / np.linalg.norm(end_), atol=1e-6)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-6)
    assert np.linalg.det(matrix) == pytest.approx(1)
    np.testing.assert_array_equal(rotation_between(start, np.zeros(3)), np.eye(3))


def test_size_is_the_rms_distance_from_the_root() -> None:
    clip = np.zeros((1, 2, 25, 3), dtype=np.float32)
    clip[..., 1] = 3.0
    clip[:, :, NTU25.center] = 0
    assert body_size(clip, NTU25) == pytest.approx(3 * np.sqrt(24 / 25))
    out = normalize_clip(clip * 7, NTU25, center=False, align_yaw=False, size=True)
    assert body_size(out, NTU25) == pytest.approx(1, rel=1e-5)


def test_centring_moves_the_first_root_to_the_origin_and_keeps_absent_bodies_zero() -> None:
    clip = synthetic_clip(12, 0, 1, 1)
    clip[1] = 0
    out = normalize_clip(clip, NTU25, center=True, align_yaw=True, size=True)
    np.testing.assert_allclose(out[0, 0, NTU25.center], 0, atol=1e-6)
    assert (out[1] == 0).all() and np.isfinite(out).all()


def test_a_clip_without_extent_survives() -> None:
    out = normalize_clip(
        np.zeros((1, 3, 25, 3), dtype=np.float32), NTU25, center=True, align_yaw=True, size=True
    )
    assert (out == 0).all()


def test_full_whitening_gives_unit_covariance_and_half_its_square_root() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5000, 12, generator=generator) @ torch.randn(12, 12, generator=generator) + 3
    mean, matrix = fit_whitening(x, 1.0)
    y = (x - mean) @ matrix
    torch.testing.assert_close(y.T @ y / 5000, torch.eye(12), atol=1e-3, rtol=0)
    mean, matrix = fit_whitening(x, 0.5)
    y = ((x - mean) @ matrix).double()
    variances = torch.linalg.eigvalsh(torch.cov(x.double().T, correction=0))
    torch.testing.assert_close(y.var(dim=0, correction=0), variances.sqrt(), rtol=1e-3, atol=1e-4)


def test_whitening_of_flat_directions_stays_finite() -> None:
    x = torch.randn(100, 12)
    x[:, 5] = 2.0
    mean, matrix = fit_whitening(x, 1.0)
    assert torch.isfinite((x - mean) @ matrix).all()
