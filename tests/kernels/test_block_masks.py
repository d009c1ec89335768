"""Multi-block masks: what the collators of I-JEPA and V-JEPA promise, and the sizes of blocks."""

from __future__ import annotations

import pytest
import torch

from sjepa_kernels import block_mask, block_size, pack_tokens
from tests.kernels.cases import Place
from tests.kernels.ops._blocks import by_definition, compare


@pytest.mark.parametrize(
    ("grid", "context", "target", "targets", "keep"),
    [
        ((4, 5), (4, 4), (2, 2), 2, 6),
        ((3, 3), (3, 3), (3, 3), 1, 4),  # a target that covers everything
        ((2, 3, 4), (1, 3, 4), (2, 1, 2), 3, 24),
        ((1, 1), (1, 1), (1, 1), 1, 0),
        ((2, 40, 13), (2, 40, 13), (2, 20, 13), 2, 77),
    ],
    ids=str,
)
def test_blocks_and_ids_of_the_definition(
    place: Place, grid: tuple, context: tuple, target: tuple, targets: int, keep: int
) -> None:
    seed = torch.tensor(-(1 << 40) - 9, device=place.device)
    ids = torch.tensor([3, 1003], device=place.device)
    mask = block_mask(
        4, grid, keep, seed, target=target, targets=targets, context=context, step=7,
        clip_ids_C=ids, bodies=2, purpose=5, impl=place.impl,
    )  # fmt: skip
    counters = [(clip, body) for clip in (3, 1003) for body in range(2)]
    draws = (-(1 << 40) - 9, 7, 5)
    compare(mask, by_definition(grid, keep, (context, target, targets), draws, counters))


def test_of_an_image_context_and_targets_are_disjoint_and_one_op_packs_them(place: Place) -> None:
    """As in I-JEPA: 14 x 14 patches, four targets, a context that never sees them."""
    seed = torch.tensor(1, device=place.device)
    mask = block_mask(2, (14, 14), None, seed, target=(5, 6), context=(13, 13), impl=place.impl)
    kept = mask.ids_keep_BK.shape[1]
    assert kept == int(mask.free_B.min()) > 30
    for b in range(2):
        seen = set(mask.ids_keep_BK[b].tolist())
        for p in range(4):
            target = mask.ids_target_PBU[2 * p + b].tolist()
            assert not seen & set(target)
            rows, columns = {n // 14 for n in target}, {n % 14 for n in target}
            assert (len(rows), len(columns), len(target)) == (5, 6, 30)
    table = torch.randn(196, 8, device=place.device)
    x = torch.randn(2, kept, 8, device=place.device)
    hide, zero = mask.ids_target_PBU, torch.zeros(8, device=place.device)
    packed = pack_tokens(x, zero, mask.ids_keep_BK, hide, table, repeat=4, impl=place.impl)
    assert packed.shape == (8, kept + 30, 8)
    torch.testing.assert_close(packed[:, kept:], table[hide.long()])


def test_of_a_video_all_that_blocks_hide_is_predicted(place: Place) -> None:
    """As in V-JEPA: blocks as long as the clip; context and prediction are complements."""
    seed = torch.tensor(2, device=place.device)
    mask = block_mask(2, (2, 8, 8), None, seed, target=(2, 4, 3), targets=3, impl=place.impl)
    for b in range(2):
        hidden = set(mask.ids_target_PBU.view(3, 2, -1)[:, b].flatten().tolist())
        predicted = set(mask.ids_mask_BQ[b].tolist())
        assert hidden <= predicted
        assert len(predicted) == 128 - int(mask.free_B.min())
        frames = [{n % 64 for n in hidden if n // 64 == t} for t in range(2)]
        assert frames[0] == frames[1]


def test_every_place_is_as_likely_and_every_step_draws_anew() -> None:
    seed = torch.tensor(3)
    mask = block_mask(3000, (1, 5), 1, seed, target=(1, 2), targets=1, impl="torch")
    starts = mask.ids_target_PBU[:, 0].bincount(minlength=4)
    assert starts.shape == (4,)
    assert (starts - 750).abs().max() < 5 * 750**0.5
    # Of the three free tokens each is kept as often.
    first = mask.ids_target_PBU[:, 0] == 0
    kept = mask.ids_keep_BK[first, 0].bincount(minlength=5)
    assert kept[:2].tolist() == [0, 0]
    assert (kept[2:] - kept.sum() / 3).abs().max() < 5 * 250**0.5
    other = block_mask(3000, (1, 5), 1, seed, target=(1, 2), targets=1, step=1, impl="torch")
    assert not torch.equal(mask.ids_target_PBU, other.ids_target_PBU)


def test_no_sequences_and_nothing_free(place: Place) -> None:
    seed = torch.tensor(4, device=place.device)
    none = block_mask(0, (3, 3), None, seed, target=(1, 1), impl=place.impl)
    assert [tuple(t.shape) for t in none] == [(0, 1), (0, 8), (0, 9), (0, 1), (0,)]
    covered = block_mask(1, (2, 2), None, seed, target=(2, 2), targets=1, impl=place.impl)
    assert covered.free_B.tolist() == [0]
    assert covered.ids_keep_BK.shape == (1, 1)


@pytest.mark.parametrize(
    ("grid", "scale", "aspect"),
    [((14, 14), (0.15, 0.2), (0.75, 1.5)), ((8, 14, 14), (0.7, 0.7), (0.75, 1.5))],
    ids=["I-JEPA", "V-JEPA"],
)
def test_sizes_stay_in_their_ranges(grid: tuple, scale: tuple, aspect: tuple) -> None:
    sizes = [block_size(grid, scale, aspect, 5, step=step) for step in range(200)]
    assert len(set(sizes)) > 3
    assert block_size(grid, scale, aspect, 5, step=3) == sizes[3]
    rows, columns = grid[-2:]
    for *frames, h, w in sizes:
        assert frames == list(grid[:-2])
        # Each side is off by half a token at most, from rounding.
        assert (h - 0.5) * (w - 0.5) <= scale[1] * rows * columns
        assert (h + 0.5) * (w + 0.5) >= scale[0] * rows * columns - 1
        assert (h - 0.5) / (w + 0.5) <= aspect[1]
        assert (h + 0.5) / (w - 0.5) >= aspect[0]


def test_sizes_fit_the_grid_and_ranges_are_checked() -> None:
    assert block_size((4, 4), (1.0, 1.0), (9.0, 9.0), 0) == (4, 1)
    assert block_size((10, 4, 4), (0.01, 0.01), (1.0, 1.0), 0, frames=(0.2, 0.2)) == (2, 1, 1)
    for name in ("scale", "aspect", "frames"):
        ranges = {"scale": (0.1, 0.2), "aspect": (1.0, 1.0), "frames": (1.0, 1.0)}
        for bad in ((0.0, 0.5), (0.5, 0.4), (0.5, float("inf"))):
            with pytest.raises(ValueError, match=f"{name}: .*expected 0 < low <= high"):
                block_size((2, 4, 4), seed=0, **(ranges | {name: bad}))
