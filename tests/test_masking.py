"""Masks: the motion measure, the key, the counts and the simulated visibility rates."""

import numpy as np
import pytest
import torch

from sjepa_fast.config import MaskConfig, kept_tokens
from sjepa_fast.objectives.masking import (
    gumbel,
    motion_aware_keys,
    motion_intensity,
    select_smallest,
)


def test_motion_intensity_is_the_mean_change_over_one_segment():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(2, 12, 12)).astype(np.float32)
    ours = motion_intensity(torch.from_numpy(tokens), joints=4).numpy()
    for b in range(2):
        for segment in range(3):
            for joint in range(4):
                here = max(segment, 1)
                change = tokens[b, here * 4 + joint] - tokens[b, (here - 1) * 4 + joint]
                expected = np.abs(change).mean()
                assert ours[b, segment * 4 + joint] == pytest.approx(expected, rel=1e-5)


def test_one_segment_has_no_motion():
    assert torch.equal(motion_intensity(torch.ones(1, 4, 12), joints=4), torch.zeros(1, 4))


def test_key_is_log_softmax_of_scaled_motion_plus_gumbel():
    rng = np.random.default_rng(1)
    motion, draws = rng.random((3, 20)), rng.random((3, 20))
    ours = motion_aware_keys(torch.from_numpy(motion), torch.from_numpy(draws), 0.8).numpy()
    x = motion / (motion.max(axis=1, keepdims=True) * 0.8 + 1e-10)
    log_p = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    noise = -np.log(-np.log(draws + 1e-10) + 1e-10)
    np.testing.assert_allclose(ours, log_p + noise, rtol=1e-9)


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-24], ids=["zero", "largest"])
def test_gumbel_is_finite_at_the_ends_of_the_uniform(draw: float):
    assert torch.isfinite(gumbel(torch.tensor(draw, dtype=torch.float32)))


def test_a_body_without_motion_is_masked_uniformly():
    keys = motion_aware_keys(torch.zeros(1, 30), torch.rand(1, 30), 0.8)
    assert torch.isfinite(keys).all()


@pytest.mark.parametrize(
    ("tokens", "mamp", "expected"), [(750, False, 75), (750, True, 74), (160, False, 16)]
)
def test_kept_tokens(tokens: int, mamp: bool, expected: int):
    assert kept_tokens(MaskConfig(ratio=0.9, mamp_count=mamp), tokens) == expected


def test_selection_keeps_the_smallest_and_partitions_the_tokens():
    keys = torch.rand(5, 40)
    keep, mask = select_smallest(keys, 7)
    together = torch.cat([keep, mask], dim=1).sort(dim=1).values
    assert torch.equal(together, torch.arange(40).expand(5, 40))
    largest_kept = keys.gather(1, keep).amax(dim=1)
    smallest_masked = keys.gather(1, mask).amin(dim=1)
    assert (largest_kept < smallest_masked).all()
    assert (keep.diff(dim=1) > 0).all()


def test_visibility_rates_match_the_simulated_oracle():
    # method 3.4, tau 0.8, exponential motion: calmest decile 13.5 %, most moving 3.3 %.
    generator = torch.Generator().manual_seed(0)
    motion = torch.empty(2000, 750).exponential_(generator=generator)
    keys = motion_aware_keys(motion, torch.rand(2000, 750, generator=generator), 0.8)
    keep, _ = select_smallest(keys, 74)
    visible = torch.zeros(2000, 750).scatter_(1, keep, 1.0)
    by_motion = visible.gather(1, motion.argsort(dim=1))
    assert by_motion[:, :75].mean().item() == pytest.approx(0.135, abs=0.003)
    assert by_motion[:, -75:].mean().item() == pytest.approx(0.033, abs=0.003)
    assert visible.mean().item() == pytest.approx(74 / 750)
