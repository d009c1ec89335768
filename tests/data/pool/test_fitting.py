"""Joints and frame rates of clips that come into a pool."""

import numpy as np
import pytest

from sjepa_fast.data.pool.fitting import filled_joints, refit_joints, resample
from sjepa_fast.joint_map import map_joints
from sjepa_fast.skeletons import KINECT15, KINECT20, KINECT22, NTU25


def numbered(joints: int) -> np.ndarray:
    """A clip (2, 3, joints, 3) whose numbers say where they come from."""
    return np.arange(2 * 3 * joints * 3, dtype=np.float32).reshape(2, 3, joints, 3)


def test_joints_that_both_layouts_have_are_taken_as_they_are() -> None:
    clip = numbered(25)
    found = refit_joints(clip, map_joints(NTU25, KINECT20))
    order = [0, 1, 20, 3, *range(4, 20)]
    assert found.dtype == np.float32 and (found == clip[:, :, order]).all()
    assert filled_joints(NTU25, KINECT20, map_joints(NTU25, KINECT20)) == []


def test_a_missing_joint_is_its_nearest_part_or_the_middle_of_two() -> None:
    rows = map_joints(KINECT15, KINECT20)
    clip = numbered(15)
    found = refit_joints(clip, rows)

    def own(joint: str) -> np.ndarray:
        return clip[:, :, KINECT15.joints.index(joint)]

    def pooled(joint: str) -> np.ndarray:
        return found[:, :, KINECT20.joints.index(joint)]

    np.testing.assert_array_equal(
        pooled("hip_center"), (own("hip_left") + own("hip_right")) / np.float32(2)
    )
    assert (pooled("spine") == own("torso")).all()
    assert (pooled("wrist_left") == own("hand_left")).all()
    assert (pooled("ankle_right") == own("foot_right")).all()
    assert filled_joints(KINECT15, KINECT20, rows) == [
        "hip_center = hip_left + hip_right",
        "shoulder_center = neck",
        "wrist_left = hand_left",
        "wrist_right = hand_right",
        "ankle_left = foot_left",
        "ankle_right = foot_right",
    ]
    rig = filled_joints(KINECT22, KINECT20, map_joints(KINECT22, KINECT20))
    assert rig == ["hand_left = wrist_left", "hand_right = wrist_right"]


def test_absent_bodies_stay_absent() -> None:
    clip = numbered(15)
    clip[1] = 0
    assert not refit_joints(clip, map_joints(KINECT15, KINECT20))[1].any()


def line(frames: int) -> np.ndarray:
    return np.arange(1, frames + 1, dtype=np.float32)[None, :, None, None] * np.ones((1, 1, 2, 3))


@pytest.mark.parametrize(
    ("fps", "wanted", "expected"),
    [
        (30, 15, [1, 3, 5]),
        (15, 30, [1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 6]),
        (30, 20, [1, 2.5, 4, 5.5]),
        (30, 30, [1, 2, 3, 4, 5, 6]),
        (30, 1, [1]),
    ],
)
def test_rates_change_at_equal_times(fps: float, wanted: float, expected: list[float]) -> None:
    found = resample(line(6).astype(np.float32), fps, wanted)
    assert found.dtype == np.float32 and found.shape == (1, len(expected), 2, 3)
    np.testing.assert_allclose(found[0, :, 1, 2], expected, rtol=1e-6)


def test_no_frame_lies_between_a_body_and_its_absence() -> None:
    clip = np.concatenate([line(6), line(6)]).astype(np.float32)
    clip[1, 3:] = 0
    found = resample(clip, 15, 30)
    assert found[1, :, 0, 0].tolist() == [1, 1.5, 2, 2.5, 3, 0, 0, 0, 0, 0, 0, 0]
    assert found[0, 5, 0, 0] == 3.5
