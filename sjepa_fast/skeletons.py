# SPDX-License-Identifier: Apache-2.0
"""The class of skeleton layouts, and the known layouts.

Kinect data are metric and have a joint at or near the pelvis. The image-based sets (coco17,
openpose18, mediapipe33) have none, so their center is the left hip and the head of their body axis
the left shoulder: the line between them runs parallel to the spine (our choice).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sjepa_fast.errors import InputError, nearest

# Whole bodies with hands and face have some 550.
MAX_JOINTS = 1024


@dataclass(frozen=True)
class SkeletonLayout:
    """The joints of one skeleton format, 0-based, in the order of the data's joint axis.

    Coordinates that go with a layout are metres in a right-handed frame with y up, so the left
    side of a person who faces the sensor is at smaller x.

    A layout of your own (here a toy one) takes ten lines:

    >>> stick = SkeletonLayout(
    ...     name="stick",
    ...     joints=("pelvis", "neck", "l_shoulder", "r_shoulder", "l_hip", "r_hip"),
    ...     parents=(0, 0, 1, 1, 0, 0),
    ...     swaps=((2, 3), (4, 5)),
    ...     center=0,
    ...     spine_top=1,
    ...     shoulders=(2, 3),
    ...     hips=(4, 5),
    ... )
    >>> stick.num_joints, stick.flip_permutation()
    (6, (0, 1, 3, 2, 5, 4))

    Attributes:
        name: Short name; a store keeps the whole layout, so any name may be used.
        joints: Joint names.
        parents: Parent of each joint; the root is its own parent.
        swaps: (left, right) pairs that trade places in a mirror image.
        center: Pelvis or root joint, the origin of a centered clip.
        spine_top: Mid-shoulder joint; the body's vertical axis is spine_top - center.
        shoulders: (left, right).
        hips: (left, right).

    Raises:
        InputError: If the values contradict each other.
    """

    name: str
    joints: tuple[str, ...]
    parents: tuple[int, ...]
    swaps: tuple[tuple[int, int], ...]
    center: int
    spine_top: int
    shoulders: tuple[int, int]
    hips: tuple[int, int]

    def __post_init__(self) -> None:
        count = len(self.joints)
        if not self.name or count == 0 or len(set(self.joints)) != count:
            raise InputError("layout.joints", self.joints, "name every joint once")
        if count > MAX_JOINTS:
            raise InputError("layout.joints", f"{count} joints", f"use at most {MAX_JOINTS}")
        if len(self.parents) != count:
            fix = f"give one parent for each of the {count} joints"
            raise InputError("layout.parents", f"{len(self.parents)} values", fix)
        for field, used in (
            ("parents", self.parents),
            ("swaps", tuple(joint for pair in self.swaps for joint in pair)),
            ("center, spine_top", (self.center, self.spine_top)),
            ("shoulders, hips", (*self.shoulders, *self.hips)),
        ):
            if any(not 0 <= joint < count for joint in used):
                raise InputError(f"layout.{field}", used, f"use joints 0..{count - 1}")
        self._check_tree()
        swapped = [joint for pair in self.swaps for joint in pair]
        if len(set(swapped)) != len(swapped):
            raise InputError("layout.swaps", self.swaps, "use each joint in one pair at most")
        if self.center == self.spine_top:
            raise InputError("layout.spine_top", self.spine_top, "name another joint than center")
        for field, pair in (("shoulders", self.shoulders), ("hips", self.hips)):
            if pair[0] == pair[1]:
                raise InputError(f"layout.{field}", pair, "name a left and a right joint")

    def _check_tree(self) -> None:
        roots = [joint for joint, parent in enumerate(self.parents) if joint == parent]
        if len(roots) != 1:
            raise InputError("layout.parents", f"roots {roots}", "make one joint its own parent")
        for joint in range(self.num_joints):
            ancestor = joint
            for _ in range(self.num_joints):
                ancestor = self.parents[ancestor]
            if ancestor != roots[0]:
                fix = f"lead every joint to the root {roots[0]}"
                raise InputError("layout.parents", f"joint {joint} is in a loop", fix)

    @property
    def num_joints(self) -> int:
        """V."""
        return len(self.joints)

    @property
    def bones(self) -> tuple[tuple[int, int], ...]:
        """The (child, parent) pairs, without the root's own."""
        return tuple(
            (child, parent) for child, parent in enumerate(self.parents) if child != parent
        )

    def flip_permutation(self) -> tuple[int, ...]:
        """Return the joint order of a mirror image: output joint j shows input joint p[j]."""
        order = list(range(self.num_joints))
        for left, right in self.swaps:
            order[left], order[right] = right, left
        return tuple(order)

    def to_dict(self) -> dict[str, Any]:
        """Return the layout as plain values that JSON can hold."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> SkeletonLayout:
        """Build a layout from what `to_dict` returned, also after a pass through JSON.

        Raises InputError if entries are missing, unknown, of another type, or contradict each
        other.
        """
        try:
            return SkeletonLayout(
                **{
                    **values,
                    "name": _text(values["name"]),
                    "joints": tuple(_text(joint) for joint in values["joints"]),
                    "parents": tuple(_joint(parent) for parent in values["parents"]),
                    "swaps": tuple(_pair(swap) for swap in values["swaps"]),
                    "center": _joint(values["center"]),
                    "spine_top": _joint(values["spine_top"]),
                    "shoulders": _pair(values["shoulders"]),
                    "hips": _pair(values["hips"]),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            reason = f"{type(error).__name__} {error}"
            raise InputError("layout", reason, "give every field of SkeletonLayout") from error


def _pair(values: Any) -> tuple[int, int]:
    left, right = values
    return _joint(left), _joint(right)


def _joint(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r:.80} is no number of a joint")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 255:
        raise TypeError(f"{value!r:.80} is no name")
    return value


def _known(
    name: str, joints: str, parents: tuple[int, ...], center: str, spine_top: str
) -> SkeletonLayout:
    """Build a layout whose joints' names say what is left and what is right."""
    names = tuple(joints.split())

    def pair(part: str) -> tuple[int, int]:
        return names.index(f"{part}_left"), names.index(f"{part}_right")

    parts = [joint.removesuffix("_left") for joint in names if joint.endswith("_left")]
    return SkeletonLayout(
        name=name,
        joints=names,
        parents=parents,
        swaps=tuple(sorted((pair(part) for part in parts), key=min)),
        center=names.index(center),
        spine_top=names.index(spine_top),
        shoulders=pair("shoulder"),
        hips=pair("hip"),
    )


# Kinect v2 (NTU RGB+D, PKU-MMD): joints and feeder bones of method.md 1.1, root at the shoulders.
NTU25 = _known(
    "ntu25",
    "spine_base spine_mid neck head "
    "shoulder_left elbow_left wrist_left hand_left "
    "shoulder_right elbow_right wrist_right hand_right "
    "hip_left knee_left ankle_left foot_left "
    "hip_right knee_right ankle_right foot_right "
    "spine_shoulder hand_tip_left thumb_left hand_tip_right thumb_right",
    (
        *(1, 20, 20, 2),
        *(20, 4, 5, 6),
        *(20, 8, 9, 10),
        *(0, 12, 13, 14),
        *(0, 16, 17, 18),
        *(20, 22, 7, 24, 11),
    ),
    center="spine_base",
    spine_top="spine_shoulder",
)

# Kinect v1 (N-UCLA, UTKinect-Action3D, MSR Action3D after reordering).
KINECT20 = _known(
    "kinect20",
    "hip_center spine shoulder_center head "
    "shoulder_left elbow_left wrist_left hand_left "
    "shoulder_right elbow_right wrist_right hand_right "
    "hip_left knee_left ankle_left foot_left "
    "hip_right knee_right ankle_right foot_right",
    (0, 0, 1, 2, 2, 4, 5, 6, 2, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18),
    center="hip_center",
    spine_top="shoulder_center",
)

# Kinect v2 with an animation rig (UI-PRMD), the waist as its root: arms end at the wrists.
KINECT22 = _known(
    "kinect22",
    "pelvis spine chest neck head head_top "
    "collar_left shoulder_left elbow_left wrist_left "
    "collar_right shoulder_right elbow_right wrist_right "
    "hip_left knee_left ankle_left foot_left "
    "hip_right knee_right ankle_right foot_right",
    (0, 0, 1, 2, 3, 4, 2, 6, 7, 8, 2, 10, 11, 12, 0, 14, 15, 16, 0, 18, 19, 20),
    center="pelvis",
    spine_top="chest",
)

# An animation rig of motion capture (Bandai-Namco): as kinect22, without the top of the head.
RIG21 = _known(
    "rig21",
    "pelvis spine chest neck head "
    "collar_left shoulder_left elbow_left wrist_left "
    "collar_right shoulder_right elbow_right wrist_right "
    "hip_left knee_left ankle_left foot_left "
    "hip_right knee_right ankle_right foot_right",
    (0, 0, 1, 2, 3, 2, 5, 6, 7, 2, 9, 10, 11, 0, 13, 14, 15, 0, 17, 18, 19),
    center="pelvis",
    spine_top="chest",
)

# OpenNI / NiTE (SBU Interaction, Florence 3D): there is no pelvis, so the torso is the center.
KINECT15 = _known(
    "kinect15",
    "head neck torso "
    "shoulder_left elbow_left hand_left "
    "shoulder_right elbow_right hand_right "
    "hip_left knee_left foot_left "
    "hip_right knee_right foot_right",
    (1, 2, 2, 1, 3, 4, 1, 6, 7, 2, 9, 10, 2, 12, 13),
    center="torso",
    spine_top="neck",
)

# COCO key points (HRNet, RTMPose, YOLO-pose, pyskl's 2-D files), the nose as root of the tree.
COCO17 = _known(
    "coco17",
    "nose eye_left eye_right ear_left ear_right "
    "shoulder_left shoulder_right elbow_left elbow_right "
    "wrist_left wrist_right hip_left hip_right "
    "knee_left knee_right ankle_left ankle_right",
    (0, 0, 0, 1, 2, 0, 0, 5, 6, 7, 8, 5, 6, 11, 12, 13, 14),
    center="hip_left",
    spine_top="shoulder_left",
)

# OpenPose's COCO model (Kinetics-Skeleton): right before left, and a neck.
OPENPOSE18 = _known(
    "openpose18",
    "nose neck "
    "shoulder_right elbow_right wrist_right "
    "shoulder_left elbow_left wrist_left "
    "hip_right knee_right ankle_right "
    "hip_left knee_left ankle_left "
    "eye_right eye_left ear_right ear_left",
    (1, 1, 1, 2, 3, 1, 5, 6, 2, 8, 9, 5, 11, 12, 0, 0, 14, 15),
    center="hip_left",
    spine_top="shoulder_left",
)

# MediaPipe's pose landmarks (BlazePose).
MEDIAPIPE33 = _known(
    "mediapipe33",
    "nose eye_inner_left eye_left eye_outer_left "
    "eye_inner_right eye_right eye_outer_right "
    "ear_left ear_right mouth_left mouth_right "
    "shoulder_left shoulder_right elbow_left elbow_right "
    "wrist_left wrist_right pinky_left pinky_right "
    "index_left index_right thumb_left thumb_right "
    "hip_left hip_right knee_left knee_right "
    "ankle_left ankle_right heel_left heel_right "
    "foot_index_left foot_index_right",
    (
        *(0, 0, 1, 2, 0, 4, 5, 3, 6, 0, 0),
        *(0, 0, 11, 12, 13, 14, 15, 16, 15, 16, 15, 16),
        *(11, 12, 23, 24, 25, 26, 27, 28, 27, 28),
    ),
    center="hip_left",
    spine_top="shoulder_left",
)

# Human3.6M as pose lifters use it; root at the pelvis.
H36M17 = _known(
    "h36m17",
    "pelvis hip_right knee_right ankle_right "
    "hip_left knee_left ankle_left "
    "spine thorax neck head "
    "shoulder_left elbow_left wrist_left "
    "shoulder_right elbow_right wrist_right",
    (0, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15),
    center="pelvis",
    spine_top="thorax",
)

LAYOUTS = (NTU25, KINECT22, RIG21, KINECT20, KINECT15, COCO17, OPENPOSE18, MEDIAPIPE33, H36M17)


def layout_named(name: str) -> SkeletonLayout:
    """Return the layout with that name, one of `LAYOUTS`, such as ntu25 or coco17.

    Raises InputError, with the nearest names, if there is none.
    """
    for layout in LAYOUTS:
        if layout.name == name:
            return layout
    raise InputError("layout", name, nearest(name, [layout.name for layout in LAYOUTS]))
