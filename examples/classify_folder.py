# SPDX-License-Identifier: Apache-2.0
"""Your own `.npy` clips: features of a pre-trained encoder, then any classifier of scikit-learn.

    pip install scikit-learn
    python examples/classify_folder.py FOLDER LAYOUT [MODEL]

FOLDER has a folder for each class, with clips of the shape (T, V, 3) in metres, y up. LAYOUT says
which joints they are (`docs/data.md` lists the names). Scores are means over five parts of the
clips, each of which is scored by a classifier that has not seen it. MODEL is what `sjepa_fast.load`
takes. The tiny one that comes with the package need not beat the coordinates; that is why they
stand beside it. A run of your own, pre-trained on more clips than have labels, is the use of this.
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import sjepa_fast


def resampled(clip: np.ndarray, frames: int = 32) -> np.ndarray:
    """Return a clip's coordinates about its first frame's center, as one row of numbers."""
    flat = (clip - clip[0].mean(axis=0)).reshape(len(clip), -1)
    at = np.linspace(0, len(flat) - 1, frames)
    return np.stack([np.interp(at, np.arange(len(flat)), line) for line in flat.T]).ravel()


def main(folder: str, layout: str, model: str = "tiny") -> None:
    """Print the accuracy of features beside that of the plain coordinates."""
    files = sorted(Path(folder).glob("*/*.npy"))
    labels = [file.parent.name for file in files]
    clips = [np.load(file) for file in files]
    table = {
        "coordinates": np.stack([resampled(clip) for clip in clips]),
        "features": sjepa_fast.load(model).embed(clips, pool="joint", layout=layout),
    }
    parts = StratifiedKFold(5, shuffle=True, random_state=0)
    print(f"{len(clips)} clips of {len(set(labels))} classes")
    for name, rows in table.items():
        classifier = make_pipeline(
            StandardScaler(), PCA(0.99, random_state=0), LogisticRegression(C=0.1, max_iter=1000)
        )
        scores = 100 * cross_val_score(classifier, rows, labels, cv=parts)
        print(f"{name:<12} {scores.mean():5.1f} % ({rows.shape[1]} numbers for a clip)")


if __name__ == "__main__":
    main(*sys.argv[1:])
