"""Views, bones and normalisations on stores of every known layout."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sjepa_fast.config.schema import DataConfig, ModelConfig, TrainConfig, ViewConfig
from sjepa_fast.data.clips import augmentation, load_resident
from sjepa_fast.data.normalize import align_heading, body_size, heading
from sjepa_fast.data.store_writer import StoreWriter
from sjepa_fast.skeletons import LAYOUTS, SkeletonLayout

RNG = np.random.default_rng(0)
FRAMES, SEGMENT = 8, 4


def tokens(layout: SkeletonLayout, folder: Path, view: ViewConfig) -> tuple[np.ndarray, np.ndarray]:
    """View and clip of one random crop, each (T, V, 3)."""
    with StoreWriter(folder, "one", layout, ("a",)) as writer:
        writer.add("x", RNG.normal(size=(1, 40, layout.num_joints, 3)).astype(np.float32), 0, {})
        store = writer.finish({})
    data = DataConfig(frames=FRAMES, bodies=1)
    config = TrainConfig(data=data, model=ModelConfig(segment_length=SEGMENT), view=view)
    clips = load_resident(store, data, torch.device("cpu"))
    ids, zero = torch.zeros(1, dtype=torch.int64), torch.zeros((), dtype=torch.int64)
    out = clips.train_tokens(ids, zero, zero, augmentation(config, clips.max_bodies))
    shape = (FRAMES // SEGMENT, layout.num_joints, SEGMENT, 3)
    first, second = (
        x[0].reshape(shape).permute(0, 2, 1, 3).reshape(FRAMES, -1, 3).numpy() for x in out
    )
    return first, second


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_flipped_view_mirrors_about_the_center_and_swaps_the_sides(
    layout: SkeletonLayout, tmp_path: Path
) -> None:
    view = ViewConfig(rotation=0, translation=0, flip=1)
    flipped, clip = tokens(layout, tmp_path / "s", view)
    names = {name: j for j, name in enumerate(layout.joints)}
    pivot = clip[:, layout.center].mean(axis=0)
    for name, j in names.items():
        other = name.replace("left", "?").replace("right", "left").replace("?", "right")
        wanted = clip[:, names[other]].copy()
        wanted[:, 0] = 2 * pivot[0] - wanted[:, 0]
        np.testing.assert_allclose(flipped[:, j], wanted, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_rotated_view_keeps_bone_lengths_and_the_center(
    layout: SkeletonLayout, tmp_path: Path
) -> None:
    turned, clip = tokens(
        layout, tmp_path / "s", ViewConfig(rotation=0.5, tilt=0.2, translation=0, flip=0)
    )
    child, parent = np.array(layout.bones).T
    lengths = [np.linalg.norm(x[:, child] - x[:, parent], axis=-1) for x in (turned, clip)]
    np.testing.assert_allclose(lengths[0], lengths[1], rtol=1e-4)
    centers = [x[:, layout.center].mean(axis=0) for x in (turned, clip)]
    np.testing.assert_allclose(centers[0], centers[1], atol=1e-5)
    assert np.abs(turned - clip).max() > 0.05


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_heading_and_size_use_the_layouts_joints(layout: SkeletonLayout) -> None:
    pose = np.zeros((layout.num_joints, 3))
    for left, right in (layout.shoulders, layout.hips):
        pose[left], pose[right] = [-0.2, 0, 0.2], [0.2, 0, -0.2]
    clip = np.repeat(pose[None, None], 9, axis=1).astype(np.float32)
    assert heading(clip, layout) == pytest.approx(-np.pi / 4, abs=1e-6)
    straight = align_heading(clip, layout)
    left, right = layout.shoulders
    across = straight[0, 0, right] - straight[0, 0, left]
    np.testing.assert_allclose(across, [np.sqrt(0.32), 0, 0], atol=1e-6)
    offsets = pose - pose[layout.center]
    wanted = np.sqrt((offsets**2).sum(axis=-1).mean())
    assert body_size(clip, layout) == pytest.approx(wanted, rel=1e-5)
