"""The package with what it requires and nothing else: all but the extras works, and those say how.

The environment of the tests has the extras too, so another one is made, of links to the packages
that the metadata ask for.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib.metadata import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

from sjepa_fast import extras
from sjepa_fast.errors import InputError
from sjepa_fast.extras import DRAWING, EXTRAS, how_to_install, require
from tests.test_house import asked_of_others, normal
from tests.test_licences import closure
from tests.tiny import ROOT

DRIVER = """
import contextlib, importlib, io, json, sys
ended = []
for module, *words in json.loads(sys.stdin.read()):
    said, wrong = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(wrong):
        try:
            importlib.import_module(module).main(words)
            code = 0
        except SystemExit as end:
            code = end.code or 0
    ended.append([code, said.getvalue(), wrong.getvalue()])
print(json.dumps(ended))
"""
SHORT = ("--optim.length=4", "--optim.warmup=1", "--optim.unit=steps")
INSTALL = "run: pip install {0} (or: pip install 'sjepa-fast[{1}]')\n"
# Commands, and where one needs more than the package: what it needs, and in which extra that is.
COMMANDS = (
    (("sjepa_fast.train", "--data.synthetic", "--run", "run", *SHORT), None),
    (("sjepa_fast.evaluate", "knn", "run"), None),
    (("sjepa_fast.embed", "run", "clip.npy", "--out", "features.npz"), None),
    (("sjepa_fast.results", "run"), None),
    (("sjepa_fast.doctor", "run"), None),
    (("sjepa_fast.report", "run", "--out", "page.html"), None),
    (("sjepa_fast.completion", "bash"), None),
    (("sjepa_fast.plot", "curves", "run"), ("matplotlib pillow", "viz")),
    (
        ("sjepa_fast.train", "--data.synthetic", "--run", "b", "--log.to", "wandb"),
        ("wandb", "log"),
    ),
    (
        ("sjepa_fast.export", "tiny", "--format", "onnx", "--out", "x.onnx"),
        ("onnx onnxscript onnxruntime", "export"),
    ),
    (
        ("sjepa_fast.prepare", "generic", "--raw", "bvh", "--out", "s"),
        ("pybvh", "mocap"),
    ),
    (("sjepa_fast.embed", "a/b", "clip.npy", "--out", "y.npz"), ("huggingface_hub", "hub")),
)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A python that sees the sources, and links to what both distributions require."""
    folder = tmp_path_factory.mktemp("bare")
    made = (sys.executable, "-m", "venv", "--without-pip", folder / "env")
    subprocess.run(made, check=True)
    site = next((folder / "env" / "lib").glob("python*")) / "site-packages"
    running = Path(pytest.__file__).parents[1]
    for name in closure(asked_of_others()):
        for top in {file.parts[0] for file in files(name) or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(running / top)
    site.joinpath("sources.pth").write_text(f"{ROOT}\n{ROOT / 'kernels'}\n")
    return folder / "env" / "bin" / "python"


@pytest.mark.slow
def test_all_but_the_extras_works_without_them(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "bvh").mkdir()
    (tmp_path / "bvh" / "walk.bvh").write_text("HIERARCHY\n")
    np.save(tmp_path / "clip.npy", np.random.default_rng(0).normal(size=(60, 25, 3)))
    done = subprocess.run(
        [str(bare), "-c", DRIVER],
        input=json.dumps([words for words, _ in COMMANDS]),
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    for (words, needs), (code, _, wrong) in zip(COMMANDS, json.loads(done.stdout), strict=True):
        if needs is None:
            assert code == 0, (words, wrong)
        else:
            assert code == 2 and wrong.endswith(INSTALL.format(*needs)), (words, wrong)
            assert wrong.count("\n") == 1, "one line"
    assert (tmp_path / "run" / "report.html").stat().st_size > 100_000
    assert not list((tmp_path / "run").rglob("*.png")), "there is nothing that draws"
    trained = json.loads(done.stdout)[0][1]
    assert (
        "no pictures: pip install matplotlib pillow (or: pip install 'sjepa-fast[viz]')" in trained
    )
    assert not (tmp_path / "b").exists() and not (tmp_path / "s").exists()


def test_the_table_of_extras_is_that_of_the_metadata() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        declared = tomllib.load(file)["project"]["optional-dependencies"]
    for extra in {extra for _, extra in EXTRAS.values()}:
        named = {normal(Requirement(line).name) for line in declared[extra]}
        assert named == {normal(name) for name, of in EXTRAS.values() if of == extra}, extra
    makefile = (ROOT / "Makefile").read_text()
    assert f"DOCS_TOOLS := {' '.join(declared['docs'])}\n" in makefile
    page = (ROOT / "docs" / "quickstart.md").read_text()
    for extra in set(declared) - {"dev", "dali-cu12", "dali-cu13"}:
        assert f"`{extra}`" in page, extra


def test_what_is_missing_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert how_to_install("matplotlib") == "", "it is here"
    require("plot", "a picture", *DRAWING)
    monkeypatch.setattr(
        extras, "find_spec", lambda name: find_spec(name) if name == "PIL" else None
    )
    assert how_to_install(*DRAWING) == "pip install matplotlib (or: pip install 'sjepa-fast[viz]')"
    both = how_to_install("umap", "onnx")
    assert both == "pip install umap-learn onnx (or: pip install 'sjepa-fast[viz,export]')"
    with pytest.raises(InputError) as refused:
        require("format", "onnx", "onnx")
    assert str(refused.value) == (
        "format: onnx needs onnx, not installed here; "
        "run: pip install onnx (or: pip install 'sjepa-fast[export]')"
    )
