# SPDX-License-Identifier: Apache-2.0
"""Maps the joints of one skeleton to those of another, by the body part in their names.

An encoder has one row of its spatial position table per joint. To read another skeleton it needs a
row for each of that skeleton's joints: the row of the same body part, or of the nearest part that
it was trained on. A middle part may be the mean of a left and a right joint, such as the pelvis of
the hips. A pool of stores takes coordinates by the same map (`data/pool`).
"""

from __future__ import annotations

import re

from sjepa_fast.errors import InputError
from sjepa_fast.skeletons import SkeletonLayout

# Names that the formats use for one body part, without the side.
PARTS = {
    "pelvis": ("pelvis", "hip_center", "spine_base", "mid_hip", "hips", "root"),
    "spine": ("spine", "spine_mid", "torso", "spine_navel", "belly"),
    "chest": (
        "chest",
        "spine_shoulder",
        "shoulder_center",
        "thorax",
        "spine_chest",
        "mid_shoulder",
    ),
    "neck": ("neck", "neck_base"),
    "head": ("head", "nose", "head_top", "face"),
    "eye": ("eye", "eye_inner", "eye_outer"),
    "ear": ("ear", "mouth"),
    "collar": ("collar", "clavicle"),
    "shoulder": ("shoulder", "upper_arm", "up_arm", "arm", "shldr"),
    "elbow": ("elbow", "lower_arm", "low_arm", "forearm", "fore_arm"),
    "wrist": ("wrist",),
    "hand": ("hand", "palm"),
    "hand_tip": ("hand_tip", "index", "pinky", "fingers"),
    "thumb": ("thumb",),
    "hip": ("hip", "upper_leg", "up_leg", "thigh", "hip_joint"),
    "knee": ("knee", "lower_leg", "low_leg", "shin", "leg"),
    "ankle": ("ankle", "heel"),
    "foot": ("foot", "foot_index", "toe", "toes", "toe_base", "big_toe", "small_toe"),
}
# Parts to use in turn if the other skeleton lacks one; each list ends at a part that all have.
INSTEAD = {
    "pelvis": ("hip", "spine"),  # between the hips, also where there is a spine
    "spine": ("pelvis", "chest", "hip"),
    "chest": ("neck", "spine", "shoulder"),
    "neck": ("chest", "shoulder", "head"),
    "head": ("neck", "chest"),
    "eye": ("head", "neck"),
    "ear": ("head", "neck"),
    "collar": ("shoulder", "chest"),
    "shoulder": ("collar",),
    "elbow": ("wrist", "shoulder"),
    "wrist": ("hand", "elbow"),
    "hand": ("wrist", "hand_tip", "elbow"),
    "hand_tip": ("hand", "wrist", "elbow"),
    "thumb": ("hand", "wrist", "elbow"),
    "hip": ("pelvis", "knee"),
    "knee": ("ankle", "hip"),
    "ankle": ("foot", "knee"),
    "foot": ("ankle", "knee"),
}
_PART_OF = {name: part for part, names in PARTS.items() for name in names}


def words_and_side(joint: str) -> tuple[list[str], str]:
    """Split a joint's name into its words in lower case without the side, and left, right or "".

    It may be hand_tip_left, left_wrist, LeftUpLeg, rShldr or rig:UpperArm_L.
    """
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", joint)
    plain = re.split(r"[^a-z0-9]+", parted.rpartition(":")[2].lower())
    words = [{"l": "left", "r": "right"}.get(word, word) for word in plain]
    side = next((word for word in words if word in ("left", "right")), "")
    return [word for word in words if word not in ("", side)], side


def spoken(joint: str) -> str:
    """Return a joint's name as one would say it: left hand tip for hand_tip_left."""
    words, side = words_and_side(joint)
    return " ".join([side, *words] if side else words) or joint


def body_part(joint: str) -> tuple[str, str]:
    """Tell body part and side by a joint's name (`words_and_side`); numbers behind it do not count.

    The part is empty when it is not known; the side is left, right or empty.
    """
    words, side = words_and_side(joint)
    name = "_".join(words)
    return _PART_OF.get(name) or _PART_OF.get(name.rstrip("0123456789_"), ""), side


def map_joints(trained: SkeletonLayout, other: SkeletonLayout) -> tuple[tuple[int, ...], ...]:
    """Return, for each joint of the data (`other`), the joints of the encoder (`trained`) it uses.

    That is one index into `trained`, or a left and a right one to be averaged; the identity for
    equal joints. Raises InputError if a joint's part is not known or has no counterpart.
    """
    if trained.joints == other.joints:
        return tuple((joint,) for joint in range(other.num_joints))
    known: dict[tuple[str, str], int] = {}
    for index, joint in enumerate(trained.joints):
        known.setdefault(body_part(joint), index)
    found: list[tuple[int, ...]] = []
    for joint in other.joints:
        part, side = body_part(joint)
        # A middle part, such as the pelvis for a missing hip, has no side.
        sides = ((side,), ("",)) if side else (("",), ("left", "right"))
        wanted = [[(p, s) for s in both] for p in (part, *INSTEAD.get(part, ())) for both in sides]
        keys = next((keys for keys in wanted if part and all(k in known for k in keys)), None)
        if keys is None:
            fix = f"name it after a body part of {trained.name}, as sjepa_fast/joint_map.py lists"
            raise InputError("layout", f"{joint} of {other.name} has no counterpart", fix)
        found.append(tuple(known[key] for key in keys))
    return tuple(found)
