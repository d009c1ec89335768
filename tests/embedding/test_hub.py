"""The Hub, played by a module that keeps repositories in a folder; the real one needs a network."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import sjepa_fast
from sjepa_fast.errors import InputError

CLIP = np.random.default_rng(0).normal(size=(30, 22, 3), scale=0.4)
PLAYED = """
import shutil
from pathlib import Path

HUB = Path(__file__).parent / "repositories"


def snapshot_download(repo_id, *, revision=None, allow_patterns=None):
    if not (HUB / repo_id).exists() or revision not in (None, "main"):
        raise RuntimeError(f"404 for {repo_id}\\nand a second line")
    out = HUB.parent / "cache" / repo_id
    out.mkdir(parents=True, exist_ok=True)
    for name in allow_patterns:
        shutil.copy(HUB / repo_id / name, out)
    return str(out)


class HfApi:
    def __init__(self, token=None):
        self.token = token

    def create_repo(self, repo_id, *, private, exist_ok):
        if self.token == "wrong":
            raise OSError("401 Unauthorized")
        (HUB / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        return f"https://hub/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, HUB / repo_id, dirs_exist_ok=True)
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "huggingface_hub.py").write_text(PLAYED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "huggingface_hub", raising=False)
    yield tmp_path / "repositories"
    sys.modules.pop("huggingface_hub", None)


def test_a_model_goes_to_the_hub_and_comes_back(hub: Path) -> None:
    model = sjepa_fast.load("tiny", device="cpu")
    assert model.push_to_hub("someone/tiny") == "https://hub/someone/tiny"
    found = {file.name for file in (hub / "someone/tiny").iterdir()}
    assert found == {"README.md", "config.json", "model.safetensors"}
    again = sjepa_fast.load("someone/tiny", revision="main", device="cpu")
    np.testing.assert_array_equal(again.embed(CLIP), model.embed(CLIP))
    assert "someone/tiny" in repr(again)


def test_what_the_hub_refuses_is_said_in_one_line(hub: Path) -> None:
    with pytest.raises(InputError, match="someone/else: the Hub says 404 for someone/else; check"):
        sjepa_fast.load("someone/else")
    model = sjepa_fast.load("tiny", device="cpu")
    with pytest.raises(InputError, match="401 Unauthorized"):
        model.push_to_hub("someone/tiny", token="wrong")
    with pytest.raises(InputError, match="repo_id: tiny; give owner/name"):
        model.push_to_hub("tiny")


def test_a_missing_folder_beside_others_is_not_asked_of_the_hub(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(InputError, match="runs/nucla does not exist"):
        sjepa_fast.load("runs/nucla")


@pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is not None, reason="huggingface_hub is installed"
)
def test_without_the_extra_the_error_says_what_to_install() -> None:
    install = "run: pip install huggingface_hub"
    with pytest.raises(InputError, match=f"someone/tiny is no folder here; .*{install}"):
        sjepa_fast.load("someone/tiny")
    with pytest.raises(InputError, match=install):
        sjepa_fast.load("tiny", device="cpu").push_to_hub("someone/tiny")
