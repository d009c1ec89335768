"""A second start finds what the first one compiled, and no cache is ever a reason to fail."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from sjepa_fast.runtime.compile_cache import cache_file, load_compiled, save_compiled
from tests.tiny import CPU


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_a_file_per_description_and_version(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (cache_file(text, CPU) for text in ("width 256", "width 64"))
    assert one != other and one.is_relative_to(home) and one == cache_file("width 256", CPU)
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert cache_file("width 256", CPU) != one


def test_a_user_without_a_home_has_a_cache_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", none)
    assert cache_file("x", CPU).parent.parent == Path(tempfile.gettempdir())


def test_a_missing_or_damaged_file_is_no_error() -> None:
    file = cache_file("x", CPU)
    assert load_compiled(file) is False
    file.parent.mkdir()
    file.write_bytes(b"no such thing")
    assert load_compiled(file) is False


def test_what_cannot_be_kept_is_no_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"made", None))
    (home / "sjepa_fast").write_text("a file where the folder should be")
    save_compiled(cache_file("x", CPU))
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: None)
    save_compiled(cache_file("x", CPU))


def test_only_the_newest_files_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"made", None))
    files = [cache_file(str(i), CPU) for i in range(11)]
    for age, file in enumerate(files):
        save_compiled(file)
        os.utime(file, (age, age))
    assert [file.exists() for file in files].count(True) == 8
    assert files[-1].read_bytes().endswith(b"made")


SCRIPT = """
import sys, torch
from pathlib import Path
from torch._dynamo.utils import counters
from sjepa_fast.runtime.compile_cache import load_compiled, save_compiled
file = Path(sys.argv[1])
found = load_compiled(file)
assert torch.compile(lambda x: (x * 2).sin())(torch.ones(4)).shape == (4,)
save_compiled(file)
print(found, counters["inductor"]["fxgraph_cache_hit"])
"""


@pytest.mark.slow
def test_a_second_start_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    for name in ("first", "second"):
        # Another machine or job: the compiler's own cache is empty.
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / name))
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / "kept.bin")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        said.append(done.stdout.split())
    assert said == [["False", "0"], ["True", "1"]]
