"""Pictures: written whole, of the size asked for, and showing what they should."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image

from sjepa_fast.data.synthetic import synthetic_clip
from sjepa_fast.skeletons import LAYOUTS, NTU25, SkeletonLayout
from sjepa_fast.viz.ablation import ablation_figure
from sjepa_fast.viz.clips import Track, clip_movie, clip_strips
from sjepa_fast.viz.confusion import confusion_figure
from sjepa_fast.viz.curves import RunCurves, curves_figure
from sjepa_fast.viz.figure import Movie, save_figure
from sjepa_fast.viz.pose import SIDES, Stage, side_colors, turned
from sjepa_fast.viz.projection import MOST_CLASSES, projection_figure
from sjepa_fast.viz.tokens import MASKED, VISIBLE, TokenMap, masked_tokens, token_figure

CLIP = synthetic_clip(13, 0, 1, 1)[:, :32]


def color_share(picture: Figure, color: str, path: Path) -> float:
    save_figure(picture, path)
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return float((np.abs(imread(path)[..., :3] - rgb).max(axis=-1) < 0.02).mean())


def texts(picture: Figure) -> str:
    """All that is written in a figure, from its SVG without outlines."""
    return "\n".join(text.get_text() for text in picture.findobj(lambda x: hasattr(x, "get_text")))


def test_mask_picture_shows_as_many_visible_cells_as_the_mask_has(tmp_path: Path) -> None:
    shares = []
    for seen in (0.1, 0.5):
        masked = np.random.default_rng(0).random((len(CLIP), 8, 25)) >= seen
        picture = token_figure(masked_tokens(CLIP, masked, NTU25, "clip"))
        visible = color_share(picture, VISIBLE, tmp_path / "m.png")
        shares.append(visible / (visible + color_share(picture, MASKED, tmp_path / "m.png")))
    assert 0.05 < shares[0] < 0.25 and 0.4 < shares[1] < 0.65
    assert [p.name for p in tmp_path.iterdir()] == ["m.png"]


def test_the_largest_number_of_a_token_is_the_brightest_cell_and_joint() -> None:
    values = np.zeros((1, 8, 25), np.float32)
    values[0, 0, 3] = 5.0
    values[0, 0, 7] = np.nan
    picture = token_figure(TokenMap(CLIP[:1], values, NTU25, "t", "loss", "seen"))
    first = picture.axes[0]
    [dots] = [x for x in first.collections if isinstance(x, PathCollection)]
    faces = dots.get_facecolor()
    brightest = faces[:, :3].sum(axis=1)
    assert to_hex(faces[7]) == "#ffffff" and int(np.delete(brightest, 7).argmax()) == 3
    assert {"left hand tip", "seen", "loss"} <= set(texts(picture).split("\n"))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_left_and_right_have_colours_of_their_own(layout: SkeletonLayout) -> None:
    found = dict(zip(layout.joints, side_colors(layout), strict=True))
    for joint, color in found.items():
        side = joint.rpartition("_")[2]
        assert color == SIDES.get(side, SIDES["middle"]), joint


def test_half_a_turn_shows_the_other_side_and_keeps_the_height() -> None:
    back = turned(CLIP, 180)
    np.testing.assert_allclose(back[..., 1], CLIP[..., 1], atol=1e-6)
    np.testing.assert_allclose(back[..., 0], -CLIP[..., 0], atol=1e-6)
    np.testing.assert_allclose(turned(turned(CLIP, 30), -30), CLIP, atol=1e-6)


def test_a_stage_holds_the_whole_clip_and_half_more_of_another() -> None:
    stage = Stage(CLIP)
    for frame in range(CLIP.shape[1]):
        offset = np.abs(CLIP[:, frame, :, :2] - stage.middle_T2[frame])
        assert (offset <= stage.reach_2).all()
    wild = Stage(CLIP, 100 * CLIP)
    np.testing.assert_allclose(wild.reach_2, 1.5 * stage.reach_2)
    np.testing.assert_allclose(Stage(CLIP, CLIP * 0.0).reach_2, stage.reach_2)


def test_strips_have_a_row_for_each_track_with_its_own_frames() -> None:
    picture = clip_strips([Track("long", CLIP), Track("short", CLIP[:, :3])], NTU25, "clips")
    shown = re.findall(r"frame (\d+)", texts(picture))
    assert shown[:8][0] == "1" and shown[:8][-1] == "32" and shown[8:] == ["1", "2", "3"]
    assert "the person's left" in texts(picture)


def test_a_movie_moves_and_has_every_frame_of_the_longest_clip(tmp_path: Path) -> None:
    movie = clip_movie([Track("a", CLIP[:, :6]), Track("b", CLIP[:, :3])], NTU25, "t", rate=10)
    assert movie.frames == 6
    save_figure(movie, tmp_path / "m.gif")
    with Image.open(tmp_path / "m.gif") as gif:
        assert gif.n_frames == 6 and gif.info["duration"] == 100 and gif.info["loop"] == 0
    save_figure(movie, tmp_path / "m.html")
    page = (tmp_path / "m.html").read_text()
    frames = re.findall(r'"(iVBORw0[^"]*)"', page)
    assert len(frames) == len(set(frames)) == 6
    assert "://" not in page and "src=" not in page.split("<script>")[0], "nothing is fetched"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gif", "m.html"]


def test_equal_figures_are_equal_files_whose_letters_stay_letters(tmp_path: Path) -> None:
    for ending in ("png", "svg", "pdf", "html", "gif"):
        for name in ("a", "b"):
            picture: Figure | Movie = confusion_figure(torch.eye(3).long(), list("xyz"), "title")
            if ending in ("html", "gif"):
                picture = clip_movie([Track("a", CLIP[:, :2])], NTU25, "t")
            save_figure(picture, tmp_path / f"{name}.{ending}")
        first, second = ((tmp_path / f"{name}.{ending}").read_bytes() for name in ("a", "b"))
        assert first == second, ending
    assert b"/FontFile2" in (tmp_path / "a.pdf").read_bytes(), "TrueType"


def test_confusion_picture_is_darkest_on_a_diagonal_matrix(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(14)]
    dark = [
        color_share(confusion_figure(matrix.long(), names, "title"), "#08306b", tmp_path / "c.png")
        for matrix in (torch.eye(14) * 9, torch.ones(14, 14))
    ]
    assert dark[0] > dark[1] + 0.01


def test_confusion_picture_with_an_absent_class_and_many_classes(tmp_path: Path) -> None:
    names = [f"A{i:03d}" for i in range(60)]
    picture = confusion_figure(torch.diag(torch.arange(60)), names, "title")
    save_figure(picture, tmp_path / "c.png")
    assert min(imread(tmp_path / "c.png").shape[:2]) > 1500


def test_rows_without_a_clip_are_grey(tmp_path: Path) -> None:
    shares = []
    for first in (1, 0):
        matrix = torch.diag(torch.tensor([first, 3, 3, 3]))
        picture = confusion_figure(matrix, list("abcd"), "title")
        shares.append(color_share(picture, "#d9d9d9", tmp_path / "c.png"))
    assert shares[1] > shares[0] + 0.05


def panels(picture: Figure) -> list[str]:
    return [axes.get_title() for axes in picture.axes if axes.lines]


ROWS = [{"step": s, "loss": 1 / s, "knn": 50.0 + s} for s in range(1, 20)]


def test_curves_have_a_panel_for_each_metric_with_two_values() -> None:
    rows = [*ROWS, {"step": 20, "effective_rank": 5.0, "lr": None}]
    picture = curves_figure([RunCurves("my-run", rows, {})])
    assert panels(picture) == ["Training loss", "Nearest-neighbour accuracy (%)"]
    assert "my-run" in texts(picture)
    empty = curves_figure([RunCurves("short", rows[-1:], {})])
    assert panels(empty) == [] and "no metric has two values yet" in texts(empty)


def test_curves_have_lines_for_what_training_is_compared_with() -> None:
    beside = {"random encoder": 41.5, "raw coordinates": 60.25}
    other = RunCurves("b", [{**row, "lr": 1e-3} for row in ROWS], {"raw coordinates": 60.25})
    picture = curves_figure([RunCurves("a", ROWS, beside), other])
    knn = picture.axes[1]
    assert [tuple(line.get_ydata()) for line in knn.lines[2:]] == [(41.5, 41.5), (60.25, 60.25)]
    written = texts(picture)
    assert "random encoder 41.5" in written and "raw coordinates 60.2" in written
    assert [len(axes.lines) for axes in picture.axes] == [2, 4, 1]
    [legend] = picture.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]


def test_no_mark_of_an_ablation_is_cut_by_the_frame() -> None:
    run = {"knn_before": 0.0, "knn_after": 100.0, "ms_per_step": 3.0}
    picture = ablation_figure("mask.ratio", {"0.5": [run], "0.9": [run, run]})
    for axes in picture.axes:
        drawn = [*axes.lines, *axes.collections]
        assert len(drawn) >= 2 and not any(artist.get_clip_on() for artist in drawn)
    assert panels(picture) == ["Nearest-neighbour accuracy (%)", "Time per step (ms)"]


def test_every_class_of_a_projection_has_a_mark_of_its_own_up_to_sixty() -> None:
    labels = np.repeat(np.arange(-1, MOST_CLASSES + 5), 2)
    points = np.random.default_rng(0).normal(size=(len(labels), 2)).astype(np.float32)
    names = [f"class {i}" for i in range(MOST_CLASSES + 5)]
    picture = projection_figure(points, labels, names, "t", ("x", "y"))
    marks = {
        (to_hex(dots.get_facecolor()[0]), dots.get_paths()[0].vertices.tobytes())
        for dots in picture.axes[0].collections
    }
    assert len(marks) == MOST_CLASSES + 1
    assert sum(len(dots.get_offsets()) for dots in picture.axes[0].collections) == len(labels)
    assert "further classes" in texts(picture) and "class 59" in texts(picture)
