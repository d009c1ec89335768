"""Files and folders appear whole, and a failure names the file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sjepa_fast.runtime.files import new_folder, remove_leftovers, write_text


def test_a_full_disk_names_the_file_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as here, pytest.raises(OSError, match=r"No space.*file\.txt"):
        here.setattr(os, "fsync", full)
        write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file.txt", "")
        with new_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


def test_leftovers_are_told_from_files_of_others(tmp_path: Path) -> None:
    left = [".a.json.abc_1234", ".b.json.dropped"]
    kept = ["a.json", ".a.json", ".a.json.ABCDEFGH", ".a.json.abc_12345", ".a.yaml.abc_1234"]
    for name in (*left, *kept):
        (tmp_path / name).write_text("")
    (tmp_path / ".c.json.00000000").symlink_to(tmp_path)
    remove_leftovers(tmp_path, "*.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    with pytest.raises(KeyError), new_folder(tmp_path / "folder"):
        raise KeyError
    remove_leftovers(tmp_path / "none", "*")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
