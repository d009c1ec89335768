"""Index sampling: which frames are drawn, from whose draws, and what becomes of them."""

import itertools

import numpy as np
import pytest
import torch

from sjepa_fast.config.schema import DataConfig, ModelConfig, TrainConfig, ViewConfig
from sjepa_fast.data.clips import ResidentClips, augmentation
from sjepa_fast.skeletons import KINECT20
from sjepa_kernels import clip_uniforms
from sjepa_kernels.augment.frames import even_frames, random_frames
from sjepa_kernels.tubelets import to_tubelets
from tests.tiny import drawn as clip_noise
from tests.tiny import packed

FRAMES = 9


def drawn(rows: int, columns: int = FRAMES + 1) -> torch.Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(0))


def by_hand(uniforms: np.ndarray, length: int) -> list[int]:
    """The three cases of method 1.4, one frame after the other."""
    if length < FRAMES:
        start = int(uniforms[0] * length)
        return [(start + t) % length for t in range(FRAMES)]
    if length < 2 * FRAMES:
        skips = sorted(np.argsort(uniforms, kind="stable")[: length - FRAMES])
        found, frame = [], 0
        for t in range(FRAMES):
            frame += t in skips
            found.append(frame)
            frame += 1
        return found
    bounds = [t * length // FRAMES for t in range(FRAMES + 1)]
    pairs = itertools.pairwise(bounds)
    return [low + int(u * (high - low)) for u, (low, high) in zip(uniforms, pairs, strict=False)]


@pytest.mark.parametrize("length", [1, 2, 8, 9, 10, 14, 17, 18, 19, 50, 300])
def test_drawn_frames_follow_the_method(length: int) -> None:
    uniforms = drawn(40)
    found = random_frames(uniforms, torch.full((40,), length), FRAMES)
    for row, numbers in zip(uniforms.numpy(), found.tolist(), strict=True):
        assert numbers == by_hand(row, length)
        assert min(numbers) >= 0 and max(numbers) < length
        if length >= FRAMES:
            assert numbers == sorted(set(numbers)), "in order, none twice"


def test_every_frame_can_be_drawn_and_all_skips_are_equally_likely() -> None:
    uniforms = drawn(20_000)
    found = random_frames(uniforms, torch.full((20_000,), 12), FRAMES)
    counts = torch.bincount(found.flatten(), minlength=12).double() / 20_000
    # Each of the 10 places skips with probability 3 / 10, so that every frame is seen.
    assert (counts > 0.1).all()
    assert counts[0].item() == pytest.approx(0.7, abs=0.02)


def test_evaluation_takes_the_middles_of_equal_bins_or_wraps() -> None:
    lengths = torch.tensor([4, 9, 12, 27])
    found = even_frames(lengths, FRAMES)
    assert found[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert found[1].tolist() == list(range(9))
    assert found[2].tolist() == [int((t + 0.5) * 12 / 9) for t in range(9)]
    assert found[3].tolist() == [1, 4, 7, 10, 13, 16, 19, 22, 25]


def resident() -> ResidentClips:
    return packed(clip_noise([1, 2, 1], [4, 12, 40], KINECT20, seed=1), KINECT20)


def frame(clips: ResidentClips, clip: int, body: int, number: int) -> np.ndarray:
    if body >= clips.bodies_N[clip]:
        return np.zeros((20, 3), np.float32)
    row = clips.offsets_N[clip] + body * clips.frames_N[clip] + number
    return clips.joints_RVC[row].numpy()


def test_tokens_are_the_drawn_frames_turned_about_the_three_axes() -> None:
    config = TrainConfig(
        data=DataConfig(frames=FRAMES, bodies=2, sampling="index"),
        model=ModelConfig(segment_length=3),
        view=ViewConfig(form="axes", rotation=0.3, translation=0.0, flip=0.0),
    )
    clips, seed, step = resident(), torch.tensor(5), torch.tensor(2)
    ids = torch.tensor([2, 0, 1])
    view, clip = clips.train_tokens(ids, seed, step, augmentation(config, clips.max_bodies))
    uniforms = clip_uniforms(seed, step, ids, 0, FRAMES + 1).numpy()
    angles = (clip_uniforms(seed, step, ids, 1, 3).double().numpy() * 2 - 1) * 0.3
    expected = np.zeros((3, 2, FRAMES, 20, 3), np.float32)
    turned = np.zeros_like(expected)
    for b, number in enumerate(ids.tolist()):
        chosen = by_hand(uniforms[b], int(clips.frames_N[number]))
        (cx, cy, cz), (sx, sy, sz) = np.cos(angles[b]), np.sin(angles[b])
        about_x = np.array([[1, 0, 0], [0, cx, sx], [0, -sx, cx]])
        about_y = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
        about_z = np.array([[cz, sz, 0], [-sz, cz, 0], [0, 0, 1]])
        for m in range(2):
            expected[b, m] = [frame(clips, number, m, t) for t in chosen]
            turned[b, m] = expected[b, m] @ (about_z @ about_y @ about_x).T
    for found, x in ((clip, expected), (view, turned)):
        tokens = to_tubelets(torch.from_numpy(x).flatten(0, 1), 3)
        torch.testing.assert_close(found, tokens, rtol=1e-4, atol=1e-5)
    alone = clips.train_tokens(ids[2:], seed, step, augmentation(config, clips.max_bodies))
    assert torch.equal(alone[0], view[4:]), "draws do not depend on the batch"


def test_evaluation_crop_by_index() -> None:
    clips, data = resident(), DataConfig(frames=FRAMES, sampling="index", eval_crop=0.5)
    x = clips.eval_crop(torch.tensor([1, 2]), data)
    assert x.shape == (2, 2, FRAMES, 20, 3)
    # 12 frames, centered half: 3..8, six frames that wrap around; 40: 10..29, bins of 20 / 9.
    for t in range(FRAMES):
        for m in range(2):
            np.testing.assert_array_equal(x[0, m, t], frame(clips, 1, m, 3 + t % 6))
        np.testing.assert_array_equal(x[1, 0, t], frame(clips, 2, 0, 10 + int((t + 0.5) * 20 / 9)))
    assert not x[1, 1].any()


def test_the_stream_is_made_of_the_sampled_frames() -> None:
    """Motion is the difference of frames that were drawn, in training and in evaluation."""
    clips, ids, zero = resident(), torch.tensor([2, 1]), torch.tensor(0)
    plain, motion = (
        TrainConfig(
            data=DataConfig(frames=FRAMES, bodies=2, sampling="index", stream=stream),
            model=ModelConfig(segment_length=3),
        )
        for stream in ("joint", "motion")
    )
    before, after = (clips.eval_crop(ids, config.data) for config in (plain, motion))
    torch.testing.assert_close(after[:, :, :-1], before[:, :, 1:] - before[:, :, :-1])
    assert not after[:, :, -1].any()
    for x, y in zip(
        clips.train_tokens(ids, zero, zero, augmentation(plain, clips.max_bodies)),
        clips.train_tokens(ids, zero, zero, augmentation(motion, clips.max_bodies)),
        strict=True,
    ):
        # Numbers 0..2 and 3..5 of a token are its first and second frame.
        torch.testing.assert_close(y[..., :3], x[..., 3:6] - x[..., :3])
