"""The pictures of README and site are those that `make pictures` would draw now."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import pictures
from sjepa_fast.config.presets import preset
from tests.test_house import ROOT

RESULTS = {"speed.png": pictures.speed_results, "small-sets.png": pictures.accuracy_results}


@pytest.mark.parametrize("name", RESULTS)
def test_a_picture_shows_the_committed_results(name: str) -> None:
    with Image.open(pictures.PICTURES / name) as image:
        shown = json.loads(image.info["Description"])
    assert shown == json.loads(json.dumps(RESULTS[name]())), "run: make pictures"
    assert all(len(values) >= 5 for values in shown.values())


def test_results_are_drawn_with_their_numbers(tmp_path: Path) -> None:
    pictures.draw_speed(tmp_path / "speed.png")
    with Image.open(tmp_path / "speed.png") as image:
        assert json.loads(image.info["Description"]) == pictures.speed_results()
        assert np.asarray(image.convert("L")).std() > 10, "there are bars"


def test_the_drawn_mask_hides_what_the_preset_hides() -> None:
    clip_TVC, masked_SV = pictures.masked_clip()
    assert len(clip_TVC) == preset("sjepa-ntu60-xsub").data.frames
    assert masked_SV.shape == (30, 25) and (~masked_SV).sum() == 75
    tokens = clip_TVC.reshape(30, 4, 25, 3)
    motion_SV = np.abs(np.diff(tokens, axis=0, prepend=tokens[:1])).mean(axis=(1, 3))
    assert motion_SV[~masked_SV].mean() < motion_SV[masked_SV].mean(), "what moves is hidden more"


def test_the_animation_moves_and_is_small() -> None:
    path = pictures.PICTURES / "mask.gif"
    assert path.stat().st_size < 2**20
    with Image.open(path) as image:
        assert image.n_frames == preset("sjepa-ntu60-xsub").data.frames // pictures.EVERY
        first = np.asarray(image.convert("L"), dtype=int)
        image.seek(image.n_frames // 2)
        assert np.abs(np.asarray(image.convert("L"), dtype=int) - first).mean() > 0.5


def test_documents_show_every_picture_and_nothing_else_is_there() -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    shown = {
        Path(name).name
        for path in documents
        for name in re.findall(r"\]\((?:docs/)?(pictures/\S+)\)", path.read_text())
    }
    assert shown == {path.name for path in pictures.PICTURES.iterdir()} == set(pictures.DRAWN)
