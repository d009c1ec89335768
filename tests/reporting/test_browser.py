"""The page in a browser: it works from a file, without a word on the console, on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from sjepa_fast import report
from sjepa_fast.data.store import open_store
from tests.chromium import PROGRAM, Page, chromium
from tests.reporting.runs import HOSTILE, SHORT, hostile_store
from tests.tiny import call, trained

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium"),
]
STAGE = "document.querySelector('.stage').dataset"
PAUSE = "[...document.querySelectorAll('button')].find((b) => b.textContent === 'pause')?.click()"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture
def opened(browser: Page, sjepa_run: Path) -> Iterator[Page]:
    browser.size(1200, 900)
    browser.theme("light")
    browser.open(sjepa_run / "report.html")
    yield browser
    assert browser.complaints() == []
    assert browser.fetched() == [(sjepa_run / "report.html").resolve().as_uri()]


def stage_picture(page: Page, folder: Path) -> np.ndarray[Any, Any]:
    page.center(".stage")
    page.picture(folder / "stage.png", whole=False)
    box = page.run(
        "(({x, y, width, height}) => [x, y, width, height].map(Math.round))"
        "(document.querySelector('.stage').getBoundingClientRect())"
    )
    x, y, width, height = box
    return np.asarray(imread(folder / "stage.png")[y : y + height, x : x + width, :3])


def test_everything_is_there(opened: Page) -> None:
    heads = opened.run("[...document.querySelectorAll('h2')].map((h) => h.textContent)")
    assert heads == [
        "Clips",
        "Curves",
        "Scores",
        "Confusion, 1-NN at the end",
        "Speed",
        "Configuration",
    ]
    count = opened.run("document.querySelectorAll('.map circle').length")
    assert count == opened.run("DATA.groups[0].scene.clips.length") > 20
    assert opened.run("document.querySelectorAll('.grid figure svg path').length") > 12
    assert opened.run("document.querySelector('.matrix').width") > 100
    assert opened.run("document.querySelectorAll('.bar').length") >= 4
    assert "optim:" in opened.run("document.querySelector('pre').textContent")
    assert opened.run("document.querySelector('h1').textContent") == "run-a"


def test_it_opens_soon(opened: Page) -> None:
    # Two seconds where nothing else runs; tests may share a machine.
    assert float(opened.run("document.documentElement.dataset.ready")) < 6000


def test_the_clip_plays_and_can_be_scrubbed(opened: Page) -> None:
    opened.wait(f"{STAGE}.frame > 1")
    opened.run(PAUSE)
    slider = "document.querySelector('input[type=range]')"
    x, y = opened.center("input[type=range]")
    width = opened.run(f"{slider}.getBoundingClientRect().width")
    for share in (0.25, 0.75):
        opened.drag(x + (share - 0.5) * width, y)
        frame = float(opened.run(f"{STAGE}.frame"))
        assert frame == pytest.approx(share * 15, abs=0.6)
        mark = opened.run("document.querySelector('.marker').style.left")
        assert float(mark[:-1]) == pytest.approx(100 / 4 * (frame // 4))
        assert float(opened.run(f"{slider}.value")) == pytest.approx(frame, abs=0.1)


def test_a_point_of_the_map_plays_its_clip(opened: Page) -> None:
    x, y = opened.center('.map circle[data-clip="5"]')
    top = opened.run(f"Number(document.elementFromPoint({x}, {y}).dataset.clip)")
    opened.drag(x, y)
    assert opened.run(f"Number({STAGE}.clip)") == top
    chosen = "document.querySelector('.map .chosen').dataset.clip"
    assert opened.run(f"Number({chosen})") == top
    label = opened.run("document.querySelector('.stage .label').textContent")
    assert label == opened.run(
        f"DATA.groups[0].scene.classes[DATA.groups[0].scene.clips[{top}].label]"
    )
    opened.wait(f"{STAGE}.frame > 2")


def test_the_skeleton_is_drawn_turns_and_takes_colors(opened: Page, tmp_path: Path) -> None:
    opened.run(PAUSE)
    opened.run("document.querySelector('.stage .label').remove()")
    first = stage_picture(opened, tmp_path)
    ground = first[3, 3]
    drawn = np.abs(first - ground).max(axis=-1) > 0.15
    assert 0.003 < drawn.mean() < 0.5
    red = (first[..., 0] > first[..., 1] + 0.25) & (first[..., 0] > first[..., 2] + 0.2)
    assert red.sum() > 20, "visible joints"
    x, y = opened.center(".stage canvas")
    opened.drag(x, y, 160, 30)
    second = stage_picture(opened, tmp_path)
    assert (np.abs(first - second).max(axis=-1) > 0.15).mean() > 0.002, "another side"
    for mode in ("loss by token", "attention received by token", "left and right"):
        opened.run(
            "(() => { const s = document.querySelector('select[aria-label=color]');"
            f"s.value = [...s.options].findIndex((o) => o.textContent === '{mode}');"
            "s.dispatchEvent(new Event('change')); })()"
        )
        third = stage_picture(opened, tmp_path)
        assert (np.abs(third - second).max(axis=-1) > 0.1).sum() > 20, mode
        second = third


def test_pointing_at_curves_tokens_and_matrix_says_what_is_there(opened: Page) -> None:
    for selector, words in (
        (".grid figure svg", "step "),
        (".tokens", "segment "),
        (".matrix", "taken for "),
    ):
        x, y = opened.center(selector)
        opened.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + 30, y=y + 10)
        said = "[...document.querySelectorAll('.readout')].map((r) => r.textContent).join('\\n')"
        assert words in opened.run(said), selector


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_shows_it_without_sideways_scrolling(
    browser: Page, sjepa_run: Path, mamp_run: Path, tmp_path: Path, theme: str
) -> None:
    page = tmp_path / "page.html"
    assert call(report.main, sjepa_run, mamp_run, "--out", page).returncode == 0
    browser.size(390, 844, mobile=True)
    browser.theme(theme)
    browser.open(page)
    browser.wait(f"{STAGE}.frame > 0")
    assert browser.run("document.documentElement.scrollWidth") <= 390
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (theme == "light")
    # The second setting has predictions beside its clips.
    browser.run(
        "(() => { const s = document.querySelector('select[aria-label=setting]');"
        "s.value = 1; s.dispatchEvent(new Event('change')); })()"
    )
    browser.wait(f"{STAGE}.frame > 0")
    legend = browser.run("document.querySelector('.two').textContent")
    assert "what the network predicts" in legend
    assert browser.complaints() == []
    browser.call("Emulation.setTouchEmulationEnabled", enabled=False)


def test_a_change_of_theme_draws_it_anew(opened: Page) -> None:
    opened.theme("dark")
    opened.wait("getComputedStyle(document.body).backgroundColor === 'rgb(18, 21, 26)'")
    opened.wait(f"{STAGE}.frame > 1")
    assert opened.run("document.querySelectorAll('.stage canvas').length") == 1


def test_names_are_shown_and_not_obeyed(browser: Page, store: Path, tmp_path: Path) -> None:
    hostile_store(open_store(store), tmp_path / "store")
    run = trained(tmp_path / "store", tmp_path / "<i>run", *SHORT, "--data.split=random")
    browser.size(1200, 900)
    browser.open(run / "report.html")
    assert browser.run("window.hacked") is None
    text = browser.run("document.body.innerText")
    assert all(" ".join(name.split()) in " ".join(text.split()) for name in HOSTILE)
    assert browser.run("document.querySelector('h1').textContent") == "<i>run"
    assert browser.run("document.querySelectorAll('i:not(.legend i), img').length") == 0
    assert browser.complaints() == []


def test_the_policy_stops_scripts_that_are_not_the_page_s_own(opened: Page) -> None:
    opened.run(
        "(() => { const s = document.createElement('script');"
        "s.textContent = 'window.hacked = 1'; document.body.append(s); })()"
    )
    assert opened.run("window.hacked") is None
    refused = opened.complaints()
    assert len(refused) == 1 and "Content Security Policy" in refused[0]
    opened.events[:] = [e for e in opened.events if e.get("method") != "Log.entryAdded"]
    opened.events[:] = [e for e in opened.events if "Content Security" not in str(e)]
