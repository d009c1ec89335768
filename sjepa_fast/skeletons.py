"""The known joint sets. One of your own takes ten lines, see `SkeletonLayout`.

Kinect data are metric and have a joint at or near the pelvis. The image-based sets (coco17,
openpose18, mediapipe33) have none, so their centre is the left hip and the head of their body axis
the left shoulder: the line between them runs parallel to the spine (our choice).
"""

from __future__ import annotations

from sjepa_fast.config.schema import nearest
from sjepa_fast.errors import InputError
from sjepa_fast.layout import SkeletonLayout

__all__ = [
    "COCO17",
    "H36M17",
    "KINECT15",
    "KINECT20",
    "LAYOUTS",
    "MEDIAPIPE33",
    "NTU25",
    "OPENPOSE18",
    "SkeletonLayout",
    "layout_named",
]

# Kinect v2 (NTU RGB+D, PKU-MMD): joints and feeder bones of method.md 1.1, root at the shoulders.
NTU25 = SkeletonLayout(
    name="ntu25",
    joints=(
        *("spine_base", "spine_mid", "neck", "head"),
        *("shoulder_left", "elbow_left", "wrist_left", "hand_left"),
        *("shoulder_right", "elbow_right", "wrist_right", "hand_right"),
        *("hip_left", "knee_left", "ankle_left", "foot_left"),
        *("hip_right", "knee_right", "ankle_right", "foot_right"),
        *("spine_shoulder", "hand_tip_left", "thumb_left", "hand_tip_right", "thumb_right"),
    ),
    parents=(
        *(1, 20, 20, 2),
        *(20, 4, 5, 6),
        *(20, 8, 9, 10),
        *(0, 12, 13, 14),
        *(0, 16, 17, 18),
        *(20, 22, 7, 24, 11),
    ),
    swaps=(
        *((4, 8), (5, 9), (6, 10), (7, 11)),
        *((12, 16), (13, 17), (14, 18), (15, 19)),
        *((21, 23), (22, 24)),
    ),
    center=0,
    spine_top=20,
    shoulders=(4, 8),
    hips=(12, 16),
)

# Kinect v1 (N-UCLA, UTKinect-Action3D, MSR Action3D after reordering).
KINECT20 = SkeletonLayout(
    name="kinect20",
    joints=(
        *("hip_center", "spine", "shoulder_center", "head"),
        *("shoulder_left", "elbow_left", "wrist_left", "hand_left"),
        *("shoulder_right", "elbow_right", "wrist_right", "hand_right"),
        *("hip_left", "knee_left", "ankle_left", "foot_left"),
        *("hip_right", "knee_right", "ankle_right", "foot_right"),
    ),
    parents=(0, 0, 1, 2, 2, 4, 5, 6, 2, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18),
    swaps=((4, 8), (5, 9), (6, 10), (7, 11), (12, 16), (13, 17), (14, 18), (15, 19)),
    center=0,
    spine_top=2,
    shoulders=(4, 8),
    hips=(12, 16),
)

# OpenNI / NiTE (SBU Interaction, Florence 3D): there is no pelvis, so the torso is the centre.
KINECT15 = SkeletonLayout(
    name="kinect15",
    joints=(
        *("head", "neck", "torso"),
        *("shoulder_left", "elbow_left", "hand_left"),
        *("shoulder_right", "elbow_right", "hand_right"),
        *("hip_left", "knee_left", "foot_left"),
        *("hip_right", "knee_right", "foot_right"),
    ),
    parents=(1, 2, 2, 1, 3, 4, 1, 6, 7, 2, 9, 10, 2, 12, 13),
    swaps=((3, 6), (4, 7), (5, 8), (9, 12), (10, 13), (11, 14)),
    center=2,
    spine_top=1,
    shoulders=(3, 6),
    hips=(9, 12),
)

# COCO key points (HRNet, RTMPose, YOLO-pose, pyskl's 2-D files), the nose as root of the tree.
COCO17 = SkeletonLayout(
    name="coco17",
    joints=(
        *("nose", "eye_left", "eye_right", "ear_left", "ear_right"),
        *("shoulder_left", "shoulder_right", "elbow_left", "elbow_right"),
        *("wrist_left", "wrist_right", "hip_left", "hip_right"),
        *("knee_left", "knee_right", "ankle_left", "ankle_right"),
    ),
    parents=(0, 0, 0, 1, 2, 0, 0, 5, 6, 7, 8, 5, 6, 11, 12, 13, 14),
    swaps=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    center=11,
    spine_top=5,
    shoulders=(5, 6),
    hips=(11, 12),
)

# OpenPose's COCO model (Kinetics-Skeleton): right before left, and a neck.
OPENPOSE18 = SkeletonLayout(
    name="openpose18",
    joints=(
        *("nose", "neck"),
        *("shoulder_right", "elbow_right", "wrist_right"),
        *("shoulder_left", "elbow_left", "wrist_left"),
        *("hip_right", "knee_right", "ankle_right"),
        *("hip_left", "knee_left", "ankle_left"),
        *("eye_right", "eye_left", "ear_right", "ear_left"),
    ),
    parents=(1, 1, 1, 2, 3, 1, 5, 6, 2, 8, 9, 5, 11, 12, 0, 0, 14, 15),
    swaps=((5, 2), (6, 3), (7, 4), (11, 8), (12, 9), (13, 10), (15, 14), (17, 16)),
    center=11,
    spine_top=5,
    shoulders=(5, 2),
    hips=(11, 8),
)

# MediaPipe's pose landmarks (BlazePose).
MEDIAPIPE33 = SkeletonLayout(
    name="mediapipe33",
    joints=(
        *("nose", "eye_inner_left", "eye_left", "eye_outer_left"),
        *("eye_inner_right", "eye_right", "eye_outer_right"),
        *("ear_left", "ear_right", "mouth_left", "mouth_right"),
        *("shoulder_left", "shoulder_right", "elbow_left", "elbow_right"),
        *("wrist_left", "wrist_right", "pinky_left", "pinky_right"),
        *("index_left", "index_right", "thumb_left", "thumb_right"),
        *("hip_left", "hip_right", "knee_left", "knee_right"),
        *("ankle_left", "ankle_right", "heel_left", "heel_right"),
        *("foot_index_left", "foot_index_right"),
    ),
    parents=(
        *(0, 0, 1, 2, 0, 4, 5, 3, 6, 0, 0),
        *(0, 0, 11, 12, 13, 14, 15, 16, 15, 16, 15, 16),
        *(11, 12, 23, 24, 25, 26, 27, 28, 27, 28),
    ),
    swaps=(
        *((1, 4), (2, 5), (3, 6), (7, 8), (9, 10)),
        *((left, left + 1) for left in range(11, 33, 2)),
    ),
    center=23,
    spine_top=11,
    shoulders=(11, 12),
    hips=(23, 24),
)

# Human3.6M as pose lifters use it; root at the pelvis.
H36M17 = SkeletonLayout(
    name="h36m17",
    joints=(
        *("pelvis", "hip_right", "knee_right", "ankle_right"),
        *("hip_left", "knee_left", "ankle_left"),
        *("spine", "thorax", "neck", "head"),
        *("shoulder_left", "elbow_left", "wrist_left"),
        *("shoulder_right", "elbow_right", "wrist_right"),
    ),
    parents=(0, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15),
    swaps=((4, 1), (5, 2), (6, 3), (11, 14), (12, 15), (13, 16)),
    center=0,
    spine_top=8,
    shoulders=(11, 14),
    hips=(4, 1),
)

LAYOUTS = (NTU25, KINECT20, KINECT15, COCO17, OPENPOSE18, MEDIAPIPE33, H36M17)


def layout_named(name: str) -> SkeletonLayout:
    """Return the layout with that name.

    Args:
        name: One of `LAYOUTS`, such as ntu25 or coco17.

    Returns:
        The layout.

    Raises:
        InputError: With the nearest names.
    """
    for layout in LAYOUTS:
        if layout.name == name:
            return layout
    raise InputError("layout", name, nearest(name, [layout.name for layout in LAYOUTS]))
