"""Each rung of the reference trains like the library's step; the per-clip feeder is a feeder."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from benchmarks.reference.feeder import ClipFeeder, feeding_loader, padded_clips
from benchmarks.reference.sjepa_step import ReferenceStep
from benchmarks.steps import ntu_like_clips, our_step, reference_step, shared_batch
from sjepa_fast.config.schema import DataConfig, ModelConfig, OptimConfig, TrainConfig, replace

CPU = torch.device("cpu")
CONFIG = TrainConfig(
    data=DataConfig(frames=16, bodies=2, crop_min_frames=8),
    model=ModelConfig(segment_length=4, width=16, depth=2, heads=2, predictor_depth=1),
    optim=OptimConfig(batch_size=4),
)


def curves(
    rung: str, dtype: torch.dtype, config: TrainConfig = CONFIG
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of 200 steps, ours and a rung's, from equal weights on equal clips, views, masks."""
    clips = ntu_like_clips(16, CPU)
    model, ours = our_step(config, clips, CPU, dtype)
    reference, run = reference_step(config, clips, CPU, rung)
    reference.load_weights(model.state_dict())
    pairs = []
    for number in range(200):
        ids = torch.arange(4) + 4 * (number % 4)
        batch = shared_batch(config, clips, ids, number)
        pairs.append((ours(ids).item(), run(*batch).item()))
    mine, theirs = torch.tensor(pairs).T
    assert theirs[-20:].mean() < 0.1 * theirs[0], "the curve is one of learning"
    return mine, theirs


def test_rung_a_has_our_loss_curve_in_float32() -> None:
    torch.testing.assert_close(*curves("A", torch.float32), rtol=1e-3, atol=0)


def assert_close_in_bfloat16(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Rounding differs, so means of 20 steps are compared, to 3 %."""
    means = [curve.view(10, 20).mean(1) for curve in (ours, theirs)]
    torch.testing.assert_close(*means, rtol=0.03, atol=0)


@pytest.mark.parametrize("rung", ["B", "C"])
def test_bfloat16_rungs_have_our_loss_curve(rung: str) -> None:
    assert_close_in_bfloat16(*curves(rung, torch.bfloat16))


def test_the_compiled_rung_has_our_loss_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whole graph with its gradients; the code that Inductor makes of it takes minutes."""
    graph = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr("benchmarks.reference.sjepa_step.torch.compile", graph)
    assert_close_in_bfloat16(*curves("D", torch.bfloat16, replace(CONFIG, model={"depth": 1})))


def test_rungs_a_and_c_draw_the_same_views_and_masks() -> None:
    """Without autocast, all rungs are one computation."""
    clip = torch.randn(2, 1, 16, 25, 3, generator=torch.Generator().manual_seed(0))
    losses = []
    for rung in ("A", "C"):
        step = ReferenceStep(2, 1, 16, 25, 16, 2, 1, 2, rung=rung)
        step.rung = type(step.rung)(amp=False, fused=step.rung.fused)
        torch.manual_seed(3)
        losses.append([step.step(clip, 1e-3, 0.9).item() for _ in range(5)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(set(losses[0])) == 5


def whole_crops() -> TrainConfig:
    return TrainConfig(data=DataConfig(frames=30, crop_min=1.0))


def test_feeder_crops_and_resizes_like_the_resident_clips() -> None:
    clips = ntu_like_clips(6, CPU, two_persons=0.5)
    ids = torch.arange(6)
    padded = padded_clips(clips, ids)
    assert padded.shape == (6, 3, 300, 25, 2)
    feeder = ClipFeeder(padded, whole_crops())
    fed = torch.stack([feeder[i][0] for i in range(6)])
    expected = clips.crop_resize(ids, torch.zeros(6, dtype=torch.long), clips.frames_N, 30)
    torch.testing.assert_close(fed, expected, rtol=0, atol=1e-6)


def test_feeder_crops_have_the_lengths_and_places_of_the_method() -> None:
    """A clip whose value is its frame number shows where each crop begins and ends."""
    padded = np.zeros((1, 3, 300, 25, 1), np.float32)
    padded[0, :, :200] = np.arange(1, 201, dtype=np.float32)[:, None, None]
    feeder = ClipFeeder(padded, TrainConfig(data=DataConfig(frames=400, crop_min=0.2)))
    crops = np.stack([feeder[0][0][0, [0, -1], 0, 0].numpy() for _ in range(300)])
    lengths = crops[:, 1] - crops[:, 0] + 1
    assert lengths.min() >= 63.5 and lengths.max() > 190
    assert crops[:, 0].min() < 5 and crops[:, 1].max() > 195
    # Shares below 64 frames are raised to 64: (64/200 - 0.2) / 0.8 of all crops.
    assert (lengths < 65).mean() == pytest.approx(0.15, abs=0.06)


def test_feeder_view_is_a_rigid_motion_of_all_bodies_with_absent_ones_left_at_zero() -> None:
    clips = ntu_like_clips(8, CPU, two_persons=0.5)
    feeder = ClipFeeder(padded_clips(clips, torch.arange(8)), whole_crops())
    mirrored = 0
    for i in range(8):
        clip, view = feeder[i]
        if clips.bodies_N[i] == 1:
            assert not view[1].any()
        bodies = int(clips.bodies_N[i])
        shown, seen = clip[:bodies].transpose(0, 1).flatten(1, 2), view[:bodies].transpose(0, 1)
        seen = seen.flatten(1, 2)
        swap = torch.tensor([j + 25 * b for b in range(bodies) for j in feeder.swap])
        same = [
            torch.allclose(torch.cdist(seen, seen), torch.cdist(x, x), atol=1e-3)
            for x in (shown, shown[:, swap])
        ]
        assert any(same) and (seen - shown).abs().max() > 0.02
        mirrored += same[1] and not same[0]
    assert 0 < mirrored < 8


def test_loader_feeds_whole_batches_of_crops_and_views() -> None:
    config = TrainConfig(data=DataConfig(frames=12), optim=OptimConfig(batch_size=3))
    padded = padded_clips(ntu_like_clips(7, CPU), torch.arange(7))
    batches = list(feeding_loader(padded, config, workers=0, pinned=False))
    assert [x.shape for batch in batches for x in batch] == [(3, 2, 12, 25, 3)] * 4


def test_clips_longer_than_the_padding_are_refused() -> None:
    clips = ntu_like_clips(1, CPU)
    clips.frames_N.fill_(301)
    with pytest.raises(ValueError, match="301 frames"):
        padded_clips(clips, torch.arange(1))
