"""The trainer's masks: the counts, the draws they rest on, and who gets which."""

import numpy as np
import pytest
import torch

from sjepa_fast.config.schema import MaskConfig, kept_joints, kept_tokens
from sjepa_fast.objectives.masking import draw_mask
from sjepa_kernels import clip_uniforms
from sjepa_kernels.purposes import MASK

CLIPS, BODIES, SEGMENTS, JOINTS, SIZE = 3, 2, 5, 7, 12
TOKENS = SEGMENTS * JOINTS
SEED, STEP, IDS = torch.tensor(11), torch.tensor(4), torch.tensor([40, 2, 977])


def clip_tokens() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(CLIPS * BODIES, TOKENS, SIZE, generator=generator)


@pytest.mark.parametrize(
    ("tokens", "joints", "mamp", "expected"),
    [(750, 25, False, 75), (750, 25, True, 74), (160, 20, False, 16)],
)
def test_kept_tokens(tokens: int, joints: int, mamp: bool, expected: int) -> None:
    assert kept_tokens(MaskConfig(ratio=0.9, mamp_count=mamp), tokens, joints) == expected


@pytest.mark.parametrize(
    ("ratio", "joints", "mamp", "expected"),
    [
        (0.9, 25, False, 2),
        (0.9, 25, True, 2),
        (0.8, 25, False, 5),
        (0.8, 25, True, 4),
        (0.9, 20, False, 2),
        (0.9, 20, True, 1),
        (0.95, 25, False, 1),
    ],
)
def test_tubes_keep_the_whole_part(ratio: float, joints: int, mamp: bool, expected: int) -> None:
    mask = MaskConfig(kind="tube", ratio=ratio, mamp_count=mamp)
    assert kept_joints(mask, joints) == expected
    assert kept_tokens(mask, 30 * joints, joints) == 30 * expected


@pytest.mark.parametrize("kind", ["motion_aware", "random"])
def test_mask_follows_the_method_on_the_clips_own_draws(kind: str) -> None:
    mask = MaskConfig(kind=kind, ratio=0.8, tau=0.5)
    x = clip_tokens()
    drawn = draw_mask(x, IDS, BODIES, SEED, STEP, mask, JOINTS)
    uniform = clip_uniforms(SEED, STEP, IDS, MASK, BODIES * TOKENS).double().numpy()
    key = uniform = uniform.reshape(CLIPS * BODIES, TOKENS)
    if kind == "motion_aware":
        grid = x.double().numpy().reshape(-1, SEGMENTS, JOINTS, SIZE)
        change = np.abs(np.diff(grid, axis=1)).mean(axis=-1)
        motion = np.concatenate([change[:, :1], change], axis=1).reshape(-1, TOKENS)
        scaled = motion / (motion.max(axis=1, keepdims=True) * 0.5 + 1e-10)
        log_p = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
        key = log_p - np.log(-np.log(uniform + 1e-10) + 1e-10)
    order = key.argsort(axis=1)
    np.testing.assert_array_equal(drawn.ids_keep_BK, np.sort(order[:, :7], axis=1))
    np.testing.assert_array_equal(drawn.ids_mask_BQ, np.sort(order[:, 7:], axis=1))


@pytest.mark.parametrize("kind", ["motion_aware", "random"])
def test_a_clip_has_its_mask_in_any_batch(kind: str) -> None:
    mask = MaskConfig(kind=kind, ratio=0.8)
    x = clip_tokens()
    together = draw_mask(x, IDS, BODIES, SEED, STEP, mask, JOINTS)
    alone = draw_mask(x[2:4], IDS[1:2], BODIES, SEED, STEP, mask, JOINTS)
    for all_rows, row in zip(together, alone, strict=True):
        assert torch.equal(all_rows[2:4], row)
