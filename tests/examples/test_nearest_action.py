"""The example with MediaPipe's landmarks finds other performances of an action."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from examples.nearest_action import landmarks, main
from sjepa_fast.data.synthetic import ACTIONS, synthetic_clip
from sjepa_fast.joint_map import map_joints
from sjepa_fast.skeletons import LAYOUTS, NTU25

(MEDIAPIPE,) = (layout for layout in LAYOUTS if layout.name == "mediapipe33")


def write_landmarks(file: Path, action: str, subject: int) -> np.ndarray:
    """Write a synthetic clip as the estimator would, and return it, y up."""
    clip = synthetic_clip(ACTIONS.index(action), subject, 1, 0)[0]
    pose = np.stack([clip[:, list(rows)].mean(axis=1) for rows in map_joints(NTU25, MEDIAPIPE)], 1)
    frames = [
        {"pose_world_landmarks": [[dict(zip("xyz", p, strict=True)) for p in points]]}
        for points in (pose * [-1, -1, 1]).tolist()
    ]
    # A frame in which nobody was found.
    frames.insert(1, {"pose_world_landmarks": []})
    file.write_text(json.dumps(frames))
    return pose


def test_the_nearest_clip_is_of_the_same_action(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    actions, query, right = ("kick", "clap", "bow"), tmp_path / "query.json", 0
    for action in actions:
        (tmp_path / "labelled" / action).mkdir(parents=True)
        for subject in range(6):
            write_landmarks(tmp_path / "labelled" / action / f"{subject}.json", action, subject)
    asked = [(action, subject) for action in actions for subject in (7, 8, 9)]
    for action, subject in asked:
        pose = write_landmarks(query, action, subject)
        np.testing.assert_allclose(landmarks(query), pose, atol=1e-6)
        main(str(tmp_path / "labelled"), str(query))
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        similar = [float(line[0]) for line in lines]
        assert len(lines) == 5 and similar == sorted(similar, reverse=True)
        right += lines[0][1] == action
    assert right >= 6, "of nine; chance is three"
