"""Synthetic skeletons: deterministic, anatomical, learnable and not trivial."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sjepa_fast.config.schema import DataConfig
from sjepa_fast.data.clips import load_resident
from sjepa_fast.data.store import Store
from sjepa_fast.data.synthetic import (
    ACTIONS,
    Motion,
    make_subject,
    performance,
    pose,
    synthetic_clip,
    write_synthetic_store,
)
from sjepa_fast.data.synthetic_actions import PAIRS
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.metrics import accuracy
from sjepa_fast.evaluation.probes.neighbours import knn_predict
from sjepa_fast.skeletons import NTU25


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_synthetic_store(tmp_path_factory.mktemp("data") / "demo")


def test_at_least_twelve_actions_with_two_of_two_people() -> None:
    assert len(ACTIONS) >= 12 and len(PAIRS) == 2
    for name in PAIRS:
        assert len(performance(0, ACTIONS.index(name), 3, 0)) == 2


def test_clip_depends_on_its_key_alone() -> None:
    first = synthetic_clip(3, 4, 1, 2, seed=5)
    synthetic_clip(0, 0, 0, 0, seed=5)
    assert np.array_equal(first, synthetic_clip(3, 4, 1, 2, seed=5))
    for other in (
        (2, 4, 1, 2, 5),
        (3, 5, 1, 2, 5),
        (3, 4, 2, 2, 5),
        (3, 4, 1, 3, 5),
        (3, 4, 1, 2, 6),
    ):
        clip = synthetic_clip(*other[:4], seed=other[4])
        assert clip.shape != first.shape or not np.allclose(clip, first)


def test_bone_lengths_are_the_subjects_own_and_rigid() -> None:
    room = performance(0, ACTIONS.index("throw"), 2, 0)[0]
    for child, parent in ((5, 4), (6, 5), (13, 12), (17, 16), (3, 2)):
        length = np.linalg.norm(room[:, child] - room[:, parent], axis=1)
        expected = np.linalg.norm(make_subject(0, 2).offsets[child])
        np.testing.assert_allclose(length, expected, rtol=1e-9)
    people = {round(float(np.linalg.norm(make_subject(0, s).offsets[13])), 6) for s in range(6)}
    assert len(people) == 6


def test_rest_pose_stands_upright_facing_the_sensor() -> None:
    rest = pose(make_subject(0, 0), Motion(1))[0]
    assert rest[3, 1] > rest[20, 1] > rest[0, 1] > rest[15, 1]
    assert rest[4, 0] < 0 < rest[8, 0], "the own left is at smaller x"
    assert rest[15, 2] < rest[14, 2], "toes point to the sensor"


def test_actions_move_what_they_should() -> None:
    hand = {}
    for name in ("raise arm", "lower arm"):
        room = performance(0, ACTIONS.index(name), 0, 0)[0]
        heights = np.maximum(room[:, 7, 1], room[:, 11, 1]) - room[:, 20, 1]
        hand[name] = heights[-5:].mean() - heights[:5].mean()
    assert hand["raise arm"] > 0.4 and hand["lower arm"] < -0.4
    seated = performance(0, ACTIONS.index("sit down"), 0, 0)[0][:, 0, 1]
    assert seated[-3:].mean() < seated[:3].mean() - 0.2


def test_store_has_noise_missing_bodies_ragged_lengths_and_three_splits(demo: Store) -> None:
    assert demo.layout == NTU25 and len(np.unique(demo.frames)) > 30
    pairs = np.isin(demo.labels, [ACTIONS.index(n) for n in PAIRS])
    assert (demo.bodies[~pairs] == 1).all()
    lost = (demo.bodies[pairs] == 1).mean()
    assert 0.05 < lost < 0.3
    for split, rule in (("xsub", "subject"), ("xview", "camera")):
        train, test = demo.ids(split, "train"), demo.ids(split, "test")
        assert set(demo.meta[rule][train]).isdisjoint(demo.meta[rule][test])
    both_train, both_test = demo.ids("xsub_xview", "train"), demo.ids("xsub_xview", "test")
    for rule in ("subject", "camera"):
        assert set(demo.meta[rule][both_train]).isdisjoint(demo.meta[rule][both_test])
    assert set(demo.labels[both_train]) == set(demo.labels[both_test]) == set(range(len(ACTIONS)))


def nearest(demo: Store, split: str, data: DataConfig) -> float:
    clips = load_resident(demo, data, torch.device("cpu"))
    train, test = (torch.from_numpy(demo.ids(split, part)) for part in ("train", "test"))
    x, y = clips.eval_crop(train, data).flatten(1), clips.eval_crop(test, data).flatten(1)
    guess = clips.labels_N[train][torch.cdist(y, x).argmin(dim=1)]
    cosine = knn_predict(x, clips.labels_N[train], y)[1]
    return max(accuracy(guess, clips.labels_N[test]), accuracy(cosine, clips.labels_N[test]))


def test_raw_nearest_neighbour_across_subjects_and_views_is_below_70(demo: Store) -> None:
    raw = nearest(demo, "xsub_xview", DataConfig(frames=32, center=True, eval_crop=1.0))
    assert 30 < raw < 70


def test_classes_are_learnable(demo: Store) -> None:
    data = DataConfig(frames=32, center=True, align_yaw=True, normalize_size=True, eval_crop=1.0)
    assert nearest(demo, "xview", data) > 90, "the same performance from another side"


@pytest.mark.parametrize(
    ("argument", "value"), [("subjects", 0), ("repetitions", 0), ("cameras", 4), ("seed", -1)]
)
def test_impossible_sizes_are_named_and_leave_nothing(
    tmp_path: Path, argument: str, value: int
) -> None:
    with pytest.raises(InputError, match=f"^{argument}: {value}; use"):
        write_synthetic_store(tmp_path / "s", **{argument: value})
    assert list(tmp_path.iterdir()) == []


def test_size_is_free(tmp_path: Path) -> None:
    small = write_synthetic_store(tmp_path / "s", subjects=2, repetitions=1, cameras=2)
    assert len(small) == len(ACTIONS) * 4
