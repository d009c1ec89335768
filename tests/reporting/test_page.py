"""The page as a file: whole, small, proof against names; and the command that writes it."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import time
from pathlib import Path

import pytest

from sjepa_fast import report
from sjepa_fast.data.store import open_store
from sjepa_fast.reporting import page as pages
from sjepa_fast.reporting import write
from sjepa_fast.reporting.page import LARGEST, SCRIPTS, as_json, page
from sjepa_fast.train import main as train
from tests.reporting.runs import HOSTILE, SHORT, data_of, hostile_store
from tests.tiny import ROOT, call, trained, words_of_run

FOLDER = ROOT / "sjepa_fast" / "reporting" / "page"


def test_the_page_is_made_of_the_files_beside_it() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {*SCRIPTS, "page.html", "style.css"}


def test_three_js_has_its_licence_and_is_small() -> None:
    text = (FOLDER / "three.bundle.js").read_text()
    version = re.search(r"^THREE := (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert version is not None
    head, _, _ = text.partition("*/")
    assert head.startswith(f"/* three.js {version[1]}, bundled by make three.")
    assert "The MIT License" in head and "three.js authors" in head
    assert "THE SOFTWARE IS PROVIDED" in head
    assert f"three.js {version[1]}" in (ROOT / "docs" / "licences.md").read_text()
    assert len(gzip.compress(text.encode(), 9)) <= 150_000
    entry = (FOLDER.parent / "three.entry.js").read_text()
    used = "".join((FOLDER / name).read_text() for name in SCRIPTS if name != "three.bundle.js")
    asked = set(re.findall(r"THREE\.(\w+)", used))
    assert asked == set(re.findall(r"\b([A-Z]\w+)\b(?=,\n| \})", entry)), "no more, no less"


def test_a_page_names_no_address_but_a_namespace(sjepa_run: Path) -> None:
    text = (sjepa_run / "report.html").read_text()
    addresses = set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}[^\"'`\s]*", text))
    assert addresses == {"http://www.w3.org/1999/xhtml", "http://www.w3.org/2000/svg"}
    assert not re.search(r"<(?:link|img|iframe|base)\b|@import|url\(|\bsrc=", text)
    assert "default-src 'none'" in text and "unsafe" not in text.partition("</head>")[0]


def test_a_page_is_small(sjepa_run: Path, mamp_run: Path) -> None:
    for run in (sjepa_run, mamp_run):
        assert (run / "report.html").stat().st_size <= LARGEST


def test_json_has_no_markup() -> None:
    text = as_json({"a": "</script><!--&\u2028", "b": 1.5})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script><!--&\u2028", "b": 1.5}


def test_names_of_strangers_stay_text(store: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    hostile_store(open_store(store), root)
    run = trained(root, tmp_path / "<b>run", *SHORT, "--data.split=random")
    text = (run / "report.html").read_text()
    # Scripts, data, style: as many as a page without names has.
    assert text.lower().count("<script") == len(SCRIPTS) + 1
    assert "window.hacked = 1</script>" not in text and "<img" not in text and "<b>" not in text
    (group,) = data_of(run / "report.html")["groups"]
    assert set(group["scene"]["classes"].values()) <= set(HOSTILE)
    assert group["confusion"]["classes"] == list(HOSTILE)
    assert group["name"] == "<b>run"


def test_a_run_without_labels_has_a_page(store: Path, tmp_path: Path) -> None:
    hostile_store(open_store(store), tmp_path / "store", ())
    run = trained(tmp_path / "store", tmp_path / "run", *SHORT, "--data.split=random")
    (group,) = data_of(run / "report.html")["groups"]
    assert group["knn"] is None and group["confusion"] is None
    assert {entry["label"] for entry in group["scene"]["clips"]} == {-1}


def test_a_page_that_fails_does_not_fail_the_run(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no page today")

    monkeypatch.setattr(write, "scene", broken)
    done = call(train, *words_of_run(store, tmp_path / "run", *SHORT))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "no report.html: RuntimeError: no page today"
    assert not [path.name for path in (tmp_path / "run").iterdir() if "report" in path.name]


def test_the_command_writes_the_page_of_a_run_again(sjepa_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run-a"
    shutil.copytree(sjepa_run, copy)
    first = data_of(copy / "report.html")
    (copy / "report.html").unlink()
    began = time.process_time()
    done = call(report.main, copy)
    assert done.returncode == 0, done.stderr
    assert time.process_time() - began < 10
    assert done.stdout.startswith(f"report: {copy}/report.html (")
    second = data_of(copy / "report.html")
    for data in (first, second):
        del data["groups"][0]["scene"]
    assert first == second


def test_several_runs_share_a_page(
    sjepa_run: Path, mamp_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(report.main, sjepa_run, mamp_run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("report: report.html (")
    data = data_of(tmp_path / "report.html")
    assert [group["objective"] for group in data["groups"]] == ["sjepa", "mamp"]
    assert "objective.kind" in data["differing"]
    assert all(group["scene"]["clips"] for group in data["groups"])
    assert (tmp_path / "report.html").stat().st_size <= LARGEST


def test_without_its_store_a_page_has_no_clips_and_says_so(sjepa_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(sjepa_run, copy)
    config = (copy / "config.yaml").read_text()
    gone = re.sub(r"\n  root: .*", "\n  root: /nowhere/store", config)
    (copy / "config.yaml").write_text(gone)
    done = call(report.main, copy, "--out", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    note, said = done.stdout.splitlines()
    assert note.startswith(f"note: no clips of {copy}: data.root: /nowhere/store has no store")
    assert said.startswith(f"report: {tmp_path}/page.html")
    data = data_of(tmp_path / "page.html")
    assert data["groups"][0]["scene"] is None and data["notes"] == [note[6:]]


def test_bad_input_is_one_line_and_writes_nothing(sjepa_run: Path, tmp_path: Path) -> None:
    for words, said in (
        ((), "run: not given; name one or more run folders"),
        ((tmp_path,), f"run: {tmp_path} is not a run folder; name a folder with a run"),
        ((sjepa_run, sjepa_run), "run: a folder is named twice; name each run once"),
        ((sjepa_run, "--out", tmp_path / "a" / "b.html"), f"out: {tmp_path}/a is no folder"),
    ):
        done = call(report.main, *words)
        assert done.returncode == 2
        assert done.stderr.startswith(said) and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_page_that_would_be_too_large_leaves_matrices_out(
    sjepa_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = pages.empty_bytes()
    monkeypatch.setattr(write, "LARGEST", empty + 100_500)
    runs = [write.read_run_records(sjepa_run)]
    notes = write.write_page(runs, tmp_path / "p.html", lambda *_: None)
    assert [note.split(" of ")[0] for note in notes] == ["no confusion matrix", "no clips"]
    assert data_of(tmp_path / "p.html")["groups"][0]["confusion"] is None


def test_an_empty_page_is_whole() -> None:
    text = page({"groups": []})
    assert text.startswith("<!doctype html>") and text.rstrip().endswith("</html>")
    assert "$" + "{" in text, "what looks like a place to fill in a script is left alone"
