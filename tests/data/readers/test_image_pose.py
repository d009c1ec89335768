"""Estimated poses: linking people, unseen joints, scale and axes, against values by hand."""

import numpy as np
import pytest

from sjepa_fast.data.readers.image_pose import Person, clip_from_poses, link_bodies
from sjepa_fast.skeletons import COCO17, LAYOUTS, MEDIAPIPE33, SkeletonLayout

RNG = np.random.default_rng(0)


def standing(layout: SkeletonLayout, x: float = 0.0, height: float = 400.0) -> np.ndarray:
    """A person in an image, (V, 4), y down: shoulders above hips, the own left at larger x."""
    pose = np.ones((layout.num_joints, 4))
    pose[:, 0] = x + RNG.uniform(-20, 20, layout.num_joints)
    pose[:, 1] = RNG.uniform(100, 100 + height, layout.num_joints)
    for (left, right), y in ((layout.shoulders, 150), (layout.hips, 250)):
        pose[left, :2], pose[right, :2] = (x + 30, y), (x - 30, y)
    pose[:, 2] = 0
    return pose


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_image_poses_stand_upright_with_a_metric_torso(layout: SkeletonLayout) -> None:
    poses = np.stack([standing(layout, 600 + t) for t in range(5)])[None]
    clip, reason = clip_from_poses(poses, layout, image=True)
    assert clip is not None and reason == ""
    np.testing.assert_array_equal(clip[0, 0, layout.center], 0)
    top = clip[0, :, list(layout.shoulders)].mean(axis=0)
    foot = clip[0, :, list(layout.hips)].mean(axis=0)
    np.testing.assert_allclose(np.linalg.norm(top - foot, axis=1), 0.5, rtol=1e-5)
    assert (top[:, 1] > foot[:, 1]).all(), "y points up"
    left, right = layout.shoulders
    assert (clip[0, :, left, 0] < clip[0, :, right, 0]).all(), "the own left at smaller x"
    assert not clip[..., 2].any(), "z is 0, not the confidence"


def test_depth_of_world_landmarks_is_kept_and_the_frame_is_right_handed() -> None:
    poses = np.stack([standing(MEDIAPIPE33, height=1.7) for _ in range(3)])[None]
    poses[..., :3] = RNG.normal(size=(1, 3, 33, 3))
    clip, _ = clip_from_poses(poses, MEDIAPIPE33, image=False)
    assert clip is not None
    wanted = (poses[..., :3] - poses[0, 0, MEDIAPIPE33.center, :3]) * [-1, -1, 1]
    np.testing.assert_allclose(clip, wanted, atol=1e-6)


def test_joints_that_were_not_seen() -> None:
    poses = np.stack([standing(COCO17) for _ in range(6)])[None]
    poses[0, [2, 3], 9, 3] = 0.01  # low confidence: between frames 1 and 4
    poses[0, 5, 10, :2] = np.nan  # at the end: as it was seen last
    poses[0, :, 15, :] = 0  # never: on its parent, the knee
    poses[0, :, [13, 15], 3] = 0  # nor the knee: on the hip
    clip, _ = clip_from_poses(poses, COCO17, image=True)
    assert clip is not None
    np.testing.assert_allclose(clip[0, 2, 9], (2 * clip[0, 1, 9] + clip[0, 4, 9]) / 3, atol=1e-6)
    np.testing.assert_array_equal(clip[0, 5, 10], clip[0, 4, 10])
    np.testing.assert_array_equal(clip[0, :, 15], clip[0, :, 11])
    np.testing.assert_array_equal(clip[0, :, 13], clip[0, :, 11])


def test_a_root_that_is_never_seen_sits_amid_the_others() -> None:
    poses = np.stack([standing(COCO17) for _ in range(2)])[None]
    poses[0, :, [0, 1], 3] = 0
    clip, _ = clip_from_poses(poses, COCO17, image=True)
    assert clip is not None
    np.testing.assert_allclose(clip[0, :, 0], clip[0, :, 2:].mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(clip[0, :, 1], clip[0, :, 2:].mean(axis=1), atol=1e-5)


def test_absent_bodies_stay_zero_and_empty_frames_go() -> None:
    poses = np.zeros((3, 5, 17, 4))
    poses[0, 1:4] = [standing(COCO17) for _ in range(3)]
    poses[2, 3] = standing(COCO17, 300)
    clip, _ = clip_from_poses(poses, COCO17, image=True)
    assert clip is not None and clip.shape[:2] == (2, 3), "a body that never appears is none"
    assert not clip[1, :2].any() and clip[1, 2].any()


@pytest.mark.parametrize(
    ("poses", "words"),
    [
        (np.zeros((1, 4, 17, 4)), "no joint"),
        (np.full((1, 4, 17, 4), np.nan), "no joint"),
        (np.zeros((0, 0, 0, 4)), "nobody"),
        (np.ones((1, 4, 17, 4)), "no scale"),
    ],
)
def test_unusable_poses_have_a_reason(poses: np.ndarray, words: str) -> None:
    clip, reason = clip_from_poses(poses, COCO17, image=True)
    assert clip is None and words in reason


def test_people_are_followed_by_place() -> None:
    walks = [[standing(COCO17, x + 3 * t) for t in range(6)] for x in (0, 800)]
    frames = [[Person(walks[0][t]), Person(walks[1][t])][:: (-1) ** t] for t in range(6)]
    frames[3] = [Person(walks[1][3])]
    passer = standing(COCO17, 3000)
    passer[:, 3] = 0.3
    frames[2].append(Person(passer))
    frames.insert(4, [])
    linked = link_bodies(frames)
    assert linked.shape == (2, 6, 17, 4), "two bodies, no empty frame"
    np.testing.assert_array_equal(linked[0], walks[1], "the one seen most comes first")
    np.testing.assert_array_equal(linked[1, [0, 1, 2, 4, 5]], np.delete(walks[0], 3, axis=0))
    assert not linked[1, 3].any()


def test_people_are_followed_from_where_they_were_last() -> None:
    bodies = [standing(COCO17, x) for x in (0, 2000)]
    walks = [[body + np.array([200.0 * t, 0, 0, 0]) for t in range(11)] for body in bodies]
    linked = link_bodies([[Person(walks[0][t]), Person(walks[1][t])] for t in range(11)])
    np.testing.assert_array_equal(linked, walks)


def test_somebody_far_away_is_somebody_else() -> None:
    walks = [[standing(COCO17, x + 3 * t) for t in range(3)] for x in (0, 3000)]
    linked = link_bodies([[Person(pose)] for walk in walks for pose in walk])
    np.testing.assert_array_equal(linked[0, :3], walks[0])
    np.testing.assert_array_equal(linked[1, 3:], walks[1])
    assert not linked[0, 3:].any() and not linked[1, :3].any()


def test_identities_count_for_more_than_places() -> None:
    walks = [[standing(COCO17, x + 3 * t) for t in range(4)] for x in (0, 800)]
    frames = [[Person(walks[0][t], 7), Person(walks[1][t], 2)] for t in range(4)]
    frames[1][0], frames[1][1] = Person(walks[1][1], 7), Person(walks[0][1], 2)
    linked = link_bodies(frames)
    np.testing.assert_array_equal(linked[0, 1], walks[1][1])
    np.testing.assert_array_equal(linked[0, 2], walks[0][2])


def test_nobody() -> None:
    assert link_bodies([[], []]).size == 0
