"""Names stay in their folder and do not reach the terminal raw."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from sjepa_fast.errors import InputError
from sjepa_fast.names import file_name, printable

HOSTILE = (
    "/../../../OWNED",
    "..",
    ".",
    "",
    " ",
    ".hidden",
    "a/b",
    "a\\b",
    "a\0b",
    "\x1b[2J\x1b]0;x\x07",
    "\x9b31m",
    "a\nb",
    "a\rb",
    "\u202egnp.exe",
    "\u2066x\u2069",
    "\u2028",
    "\ufeff",
    "\U000e0041",
    "\ud800",
    "~",
    "x" * 300,
    "é" * 200,
    "*?[a]$(id)`id`;|&<>'\"",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_name_is_one_visible_part_of_a_path(tmp_path: Path, name: str) -> None:
    made = file_name(name)
    path = tmp_path / f".{made}.scores.npz.12345678"
    path.write_text("x")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert (tmp_path / made).resolve().parent == tmp_path.resolve()
    assert made.isprintable() and not set(made) & set("/\\*?[]$`;|&<>'\"")


def test_ordinary_names_are_their_own_file_names() -> None:
    for name in ("ntu60", "N-UCLA", "pku_1", "a b", "mask.ratio-0.9-seed1", "1e-3", "体操", "é"):
        assert file_name(name) == name


def test_different_names_have_different_file_names() -> None:
    assert len({file_name(name) for name in HOSTILE}) == len(HOSTILE)
    assert file_name("a/b") != file_name("a_b")
    assert file_name("x" * 300) != file_name("x" * 301)


@pytest.mark.parametrize("name", HOSTILE)
def test_printable_text_has_nothing_that_a_terminal_obeys(name: str) -> None:
    shown = printable(name)
    hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert not {unicodedata.category(char) for char in shown} & hidden
    shown.encode("utf-8")
    assert shown == name or "\\" in shown


def test_printable_says_what_was_there() -> None:
    assert printable("\x1b[1m\n\u202e\ud800é") == "\\x1b[1m\\x0a\\u202e\\ud800é"
    assert printable("\U000e0041") == "\\U000e0041"
    assert printable("abcdef", longest=3) == "abc... (6 characters)"
    assert printable(Path("a b")) == "a b"


def test_errors_are_one_printable_line_of_bounded_length() -> None:
    error = InputError("a\x1bb", "v\u202e\n" * 5000, "f" * 5000)
    assert str(error).isprintable()
    assert len(str(error)) < 2000
    assert str(error).startswith("a\\x1bb: v\\u202e v\\u202e ")
    assert "(15000 characters)" in str(error) and "(5000 characters)" in str(error)
    assert str(InputError("data.root", "x", "y")) == "data.root: x; y"
