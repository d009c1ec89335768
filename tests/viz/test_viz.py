"""Pictures: written whole, of the size asked for, and showing what they should."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.image import imread

from sjepa_fast.data.synthetic import synthetic_clip
from sjepa_fast.skeletons import NTU25
from sjepa_fast.viz.confusion import plot_confusion
from sjepa_fast.viz.curves import plot_curves
from sjepa_fast.viz.skeleton import MASKED, VISIBLE, plot_clip_mask


def color_share(path: Path, color: str) -> float:
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return float((np.abs(imread(path)[..., :3] - rgb).max(axis=-1) < 0.02).mean())


def test_mask_picture_shows_as_many_visible_cells_as_the_mask_has(tmp_path: Path) -> None:
    clip = synthetic_clip(13, 0, 1, 1)[:, :32]
    shares = []
    for seen in (0.1, 0.5):
        masked = np.random.default_rng(0).random((len(clip), 8, 25)) >= seen
        plot_clip_mask(clip, NTU25, masked, tmp_path / "m.png", "clip", 4)
        visible = color_share(tmp_path / "m.png", VISIBLE)
        shares.append(visible / (visible + color_share(tmp_path / "m.png", MASKED)))
    assert 0.05 < shares[0] < 0.25 and 0.4 < shares[1] < 0.65
    assert [p.name for p in tmp_path.iterdir()] == ["m.png"]


def test_confusion_picture_is_darkest_on_a_diagonal_matrix(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(14)]
    dark = []
    for matrix in (torch.eye(14) * 9, torch.ones(14, 14)):
        plot_confusion(matrix.long(), names, tmp_path / "c.png", "title")
        dark.append(color_share(tmp_path / "c.png", "#08306b"))
    assert dark[0] > dark[1] + 0.01


def test_confusion_picture_with_an_absent_class_and_many_classes(tmp_path: Path) -> None:
    matrix = torch.diag(torch.arange(60))
    plot_confusion(matrix, [f"A{i:03d}" for i in range(60)], tmp_path / "c.png", "title")
    assert min(imread(tmp_path / "c.png").shape[:2]) > 1500


def test_rows_without_a_clip_are_grey(tmp_path: Path) -> None:
    shares = []
    for first in (1, 0):
        matrix = torch.diag(torch.tensor([first, 3, 3, 3]))
        plot_confusion(matrix, list("abcd"), tmp_path / "c.png", "title")
        shares.append(color_share(tmp_path / "c.png", "#d9d9d9"))
    assert shares[1] > shares[0] + 0.05


def test_curves_have_one_panel_a_metric(tmp_path: Path) -> None:
    rows = [{"step": s, "loss": 1 / s} for s in range(1, 20)]
    plot_curves(rows, tmp_path / "one.png")
    plot_curves([{**r, "lr": 1e-3, "effective_rank": 5.0} for r in rows], tmp_path / "three.png")
    assert imread(tmp_path / "three.png").shape[1] > 2.5 * imread(tmp_path / "one.png").shape[1]
