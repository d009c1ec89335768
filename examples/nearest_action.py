# SPDX-License-Identifier: Apache-2.0
"""From a pose estimator's output to the most similar labelled action, without any training.

    python examples/nearest_action.py LABELLED QUERY.json [MODEL]

LABELLED has a folder for each action with MediaPipe's `pose_world_landmarks` in it, a `.json` for
each clip: a list of frames, each a list of persons, each 33 points {"x", "y", "z"} in metres.
MODEL is what `sjepa_fast.load` takes; a run of your own, trained on clips like yours, is better
than the tiny one that comes with the package.
"""

import json
import sys
from pathlib import Path

import numpy as np

import sjepa_fast


def landmarks(file: Path) -> np.ndarray:
    """Return the first person of each frame, (T, 33, 3), y up; frames without one are left out."""
    frames = [frame["pose_world_landmarks"] for frame in json.loads(file.read_text())]
    points = [[[p["x"], p["y"], p["z"]] for p in persons[0]] for persons in frames if persons]
    # MediaPipe has x to the right and y down; a half turn about z keeps left and right apart.
    return np.array(points) * [-1.0, -1.0, 1.0]


def main(labelled: str, query: str, model: str = "tiny") -> None:
    """Print the labelled clips in the order of their similarity to the query."""
    files = sorted(Path(labelled).glob("*/*.json"))
    clips = [landmarks(file) for file in [Path(query), *files]]
    features = sjepa_fast.load(model).embed(clips, pool="joint", layout="mediapipe33")
    # What all clips share says nothing about any of them, and no number should decide alone.
    features = (features - features[1:].mean(axis=0)) / (features[1:].std(axis=0) + 1e-6)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    similar = features[1:] @ features[0]
    for place in similar.argsort()[::-1][:5]:
        print(f"{similar[place]:+.2f}  {files[place].parent.name}  {files[place].name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
