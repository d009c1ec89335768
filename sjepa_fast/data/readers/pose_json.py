# SPDX-License-Identifier: Apache-2.0
"""JSON of pose estimators: COCO-17, OpenPose-18 and MediaPipe-33, one clip per file or folder.

- coco17: a list of detections `{"image_id", "keypoints": [x, y, score, ...], "track_id"?}`, or an
  object with that list under "annotations" (COCO results, AlphaPose, RTMPose and YOLO exports).
- openpose18: a folder of one file per frame, or a list of such objects, `{"people":
  [{"pose_keypoints_2d": [...]}]}`; or Kinetics-Skeleton, `{"data": [{"skeleton": [{"pose",
  "score"}]}]}`.
- mediapipe33: a list of frames, or an object with it under "frames", each with people under
  "pose_world_landmarks" (Python) or "worldLandmarks" (JavaScript): lists of `{"x", "y", "z"}`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from sjepa_fast.data.readers.image_pose import Person
from sjepa_fast.data.safe_files import (
    JSON_BYTES,
    check_values,
    is_folder,
    names_in,
    parse_json,
    read_bytes,
    read_json,
)
from sjepa_fast.opening import Unreadable

Frames = list[list[Person]]
FORMATS = ("coco17", "openpose18", "mediapipe33")
# Kinetics-Skeleton divides x and y by the size of its videos, 340 x 256.
KINETICS_ASPECT = 340 / 256


def _person(numbers: list[float], joints: int, track: Any = None) -> Person:
    pose = np.array(numbers, dtype=np.float64)
    if pose.shape != (joints * 3,):
        raise ValueError(f"{len(numbers)} numbers per person, not {joints} x (x, y, score)")
    x, y, score = pose.reshape(joints, 3).T
    full = np.stack([x, y, np.zeros(joints), score], axis=1)
    if track is not None and abs(int(track)) >= 2**60:
        raise ValueError("a track_id beyond 2**60")
    return Person(full, None if track is None else int(track))


def _order(image: Any) -> tuple[list[int], str]:
    # By the numbers in a name, so that frame 10 comes after frame 9.
    text = str(image)
    return [int(digits) for digits in re.findall(r"\d{1,4000}", text)], text


def _coco(content: Any, joints: int) -> Frames:
    found = content["annotations"] if isinstance(content, dict) else content
    by_image: dict[Any, list[Person]] = {}
    for one in found:
        person = _person(one["keypoints"], joints, one.get("track_id"))
        image = one["image_id"]
        # Larger numbers can be made to collide as keys, which takes hours.
        if not isinstance(image, str) and abs(image) >= 2**60:
            raise ValueError("an image_id beyond 2**60")
        by_image.setdefault(image, []).append(person)
    return [by_image[image] for image in sorted(by_image, key=_order)]


def _openpose(content: Any, joints: int) -> Frames:
    if isinstance(content, dict) and "data" in content:
        frames: Frames = []
        for frame in content["data"]:
            people = []
            for one in frame["skeleton"]:
                xy = np.array(one["pose"], dtype=np.float64).reshape(-1, 2)
                xy = xy * [KINETICS_ASPECT if xy.max() <= 1 else 1, 1]
                numbers = np.column_stack([xy, one["score"]]).ravel().tolist()
                people.append(_person(numbers, joints))
            frames.append(people)
        return frames
    listed = content if isinstance(content, list) else [content]
    return [
        [_person(one["pose_keypoints_2d"], joints) for one in frame["people"]] for frame in listed
    ]


def _mediapipe(content: Any, joints: int) -> Frames:
    listed = content["frames"] if isinstance(content, dict) else content
    frames: Frames = []
    for frame in listed:
        key = "worldLandmarks" if "worldLandmarks" in frame else "pose_world_landmarks"
        people = []
        for landmarks in frame[key]:
            if len(landmarks) != joints:
                raise ValueError(f"{len(landmarks)} landmarks per person, not {joints}")
            xyz = [[point["x"], point["y"], point["z"], 1.0] for point in landmarks]
            people.append(Person(np.array(xyz, dtype=np.float64)))
        frames.append(people)
    return frames


def read_pose_json(path: Path, layout: str, joints: int) -> tuple[Frames, bool]:
    """Read the people of each frame from a `.json`, or for OpenPose a folder of one per frame.

    Returns the frames, and whether they are in image coordinates (else metres). Raises Unreadable
    if it cannot be read or is not of the layout, one of `FORMATS`.
    """
    content = _folder(path) if is_folder(path) else read_json(path)
    try:
        if layout == "mediapipe33":
            return _mediapipe(content, joints), False
        frames = _coco(content, joints) if layout == "coco17" else _openpose(content, joints)
        return frames, True
    except (KeyError, TypeError, IndexError, AttributeError, OverflowError, ValueError) as error:
        raise Unreadable(f"not the JSON of {layout}: {error!r}") from error


def _folder(path: Path) -> list[Any]:
    """Read one file per frame; all together are bounded as one file is."""
    names = sorted((name for name in names_in(path) if name.endswith(".json")), key=_order)
    left = JSON_BYTES
    parts = []
    for name in names:
        try:
            parts.append(read_bytes(path / name, left))
        except Unreadable as error:
            raise Unreadable(f"{name} {error}") from error
        left -= len(parts[-1])
    check_values(parts)
    content = []
    for name, part in zip(names, parts, strict=True):
        try:
            content.append(parse_json(part))
        except Unreadable as error:
            raise Unreadable(f"{name} {error}") from error
    return content
