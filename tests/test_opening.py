"""Small files are regular, bounded and what they say they are, or are refused at once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sjepa_fast.errors import InputError
from sjepa_fast.opening import read_json, read_regular, read_text
from tests.fuzz.mutate import ODD, put_odd


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", [kind for kind in ODD if kind != "empty"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file.json"
    put_odd(kind, path)
    with pytest.raises(InputError, match=r"^result: .*file\.json"):
        read_json("result", path)


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        os.truncate(file.fileno(), 2**40)
    with pytest.raises(InputError, match="has 1099511627776 bytes; expected at most 100"):
        read_regular("list", path, 100)
    path.write_bytes(b"x" * 101)
    with pytest.raises(InputError, match="has 101 bytes"):
        read_regular("list", path, 100)
    path.write_bytes(b"x" * 100)
    assert read_regular("list", path, 100) == b"x" * 100


def test_a_file_without_a_size_is_bounded_too() -> None:
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("no /proc")
    assert status.stat().st_size == 0
    with pytest.raises(InputError, match="expected at most 10;"):
        read_regular("list", status, 10)


def test_a_zero_byte_in_a_path_is_refused() -> None:
    with pytest.raises(InputError, match="null byte"):
        read_regular("list", Path("a\0b"), 10)


def test_text_is_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_bytes("é\n".encode())
    assert read_text("list", path) == "é\n"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="list is not UTF-8"):
        read_text("list", path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[1]", "not a mapping"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ('{"a": 1, "a": 2}', "the key 'a' twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "not JSON"),
    ],
)
def test_what_is_no_json_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(InputError, match=reason) as caught:
        read_json("result", path)
    assert len(str(caught.value)) < 500


def test_json_is_read(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    value = {"a": [1, 2.5, None, "é"], "b": {"c": True}}
    path.write_text(json.dumps(value))
    assert read_json("result", path) == value
