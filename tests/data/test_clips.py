"""Crops from the packed ragged array against torch's own interpolation, clip by clip."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from sjepa_fast.config.schema import DataConfig, ModelConfig, TrainConfig, ViewConfig, replace
from sjepa_fast.data.clips import ResidentClips, augmentation
from sjepa_fast.data.order import epoch_order
from sjepa_fast.skeletons import KINECT20
from sjepa_kernels.tubelets import to_tubelets
from tests.tiny import drawn, packed

FRAMES = [1, 7, 40, 13]
BODIES = [1, 2, 1, 2]
Packed = tuple[ResidentClips, list[torch.Tensor]]


@pytest.fixture
def clips() -> Packed:
    arrays = drawn(BODIES, FRAMES, KINECT20)
    return packed(arrays, KINECT20), arrays


@pytest.mark.parametrize("frames", [5, 32, 120])
def test_crop_resize_equals_torch_interpolate(clips: Packed, frames: int) -> None:
    resident, arrays = clips
    start, length = [0, 2, 5, 0], [1, 5, 30, 13]
    out = resident.crop_resize(torch.arange(4), torch.tensor(start), torch.tensor(length), frames)
    for i, clip in enumerate(arrays):
        part = clip[:, start[i] : start[i] + length[i]]
        flat = part.permute(0, 2, 3, 1).flatten(1, 2)
        expected = interpolate(flat, size=frames, mode="linear", align_corners=False)
        expected = expected.view(-1, 20, 3, frames).permute(0, 3, 1, 2)
        torch.testing.assert_close(out[i, : BODIES[i]], expected, rtol=1e-5, atol=1e-5)
        assert (out[i, BODIES[i] :] == 0).all()


def test_split_bodies_are_the_present_bodies_of_the_chosen_clips(clips: Packed) -> None:
    resident, arrays = clips
    bodies, ids = resident.split_bodies(np.array([1, 2, 3]))
    expected = [(1, 0), (1, 1), (2, 0), (3, 0), (3, 1)]
    assert len(ids) == len(expected) and bodies.max_bodies == 1
    for number, (clip, body) in zip(ids, expected, strict=True):
        here, length = torch.tensor([int(number)]), torch.tensor([FRAMES[clip]])
        out = bodies.crop_resize(here, torch.tensor([0]), length, FRAMES[clip])
        torch.testing.assert_close(out[0, 0], arrays[clip][body])


def test_training_tokens_are_the_crop_in_tubelets_and_a_view_of_it(clips: Packed) -> None:
    resident, _ = clips
    still = {"rotation": 0.0, "translation": 0.0, "flip": 0.0}
    config = TrainConfig(
        data=DataConfig(frames=8, crop_min=1.0),
        model=ModelConfig(segment_length=2),
        view=ViewConfig(**still),
    )
    ids, seed, step = torch.tensor([3, 1]), torch.tensor(1), torch.tensor(2)
    view, clip = resident.train_tokens(ids, seed, step, augmentation(config, resident.max_bodies))
    whole = resident.crop_resize(ids, torch.zeros_like(ids), torch.tensor([13, 7]), 8)
    assert torch.equal(clip, to_tubelets(whole.flatten(0, 1), 2))
    torch.testing.assert_close(view, clip, rtol=1e-5, atol=1e-5)
    shifted = replace(config, view=still | {"translation": 0.5})
    moved = (
        resident.train_tokens(ids, seed, step, augmentation(shifted, resident.max_bodies))[0] - clip
    )
    assert moved.view(4, -1, 3).std(dim=1).max() < 1e-5 and moved.abs().max() > 0.05


def test_eval_crop_is_centerd(clips: Packed) -> None:
    resident, arrays = clips
    out = resident.eval_crop(torch.tensor([2]), DataConfig(frames=36, eval_crop=0.9))
    torch.testing.assert_close(out[0, 0], arrays[2][0, 2:38])
    # int(0.3 * 13 / 2) = 1 frame goes at either end.
    out = resident.eval_crop(torch.tensor([3]), DataConfig(frames=11, eval_crop=0.7))
    torch.testing.assert_close(out[0], arrays[3][:, 1:12])


def test_epoch_order_is_a_permutation_fixed_by_seed_and_epoch() -> None:
    ids = np.arange(100, 150)
    first = epoch_order(ids, 0, 0)
    assert sorted(first) == sorted(ids)
    assert (first == epoch_order(ids, 0, 0)).all()
    assert (first != epoch_order(ids, 0, 1)).any() and (first != epoch_order(ids, 1, 0)).any()
