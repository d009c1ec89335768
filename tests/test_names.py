"""Names stay in their folder and do not reach the terminal raw."""

from __future__ import annotations

import ast
import re
import unicodedata
from pathlib import Path
from unittest.mock import Mock

import pytest

from sjepa_fast.errors import InputError, nearest
from sjepa_fast.names import file_name, printable
from sjepa_fast.runtime.progress import Display

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


def test_an_error_that_names_all_that_is_known_stays_below_2000_characters() -> None:
    """All keys of a run were named behind a long value; the fuzzer allows 2,000."""
    names = [f"section.name_{number}" for number in range(500)]
    phrase = nearest("?" * 3000, names)
    assert phrase.startswith("known: section.name_0, section.name_1, ")
    shown = phrase.removeprefix("known: ").partition(" and ")[0].split(", ")
    assert phrase.endswith(f" and {500 - len(shown)} more")
    assert shown == names[: len(shown)] and len(shown) > 20
    assert len(str(InputError("a" * 500, "?" * 3000, "f" * 3000))) < 2000
    assert nearest("?", ["one", "two"]) == "known: one, two"


PACKAGE = Path(__file__).resolve().parents[1] / "sjepa_fast"
SOURCES = sorted(PACKAGE.rglob("*.py"))
# Calls whose arguments become parts of paths.
PATHS = ("with_name", "with_stem", "joinpath", "glob", "rglob", "mkdtemp", "mkstemp")
# The same of functions, by their text.
OPENING = ("Path", "open", "os.open", "os.path.join")
# What holds a stranger's name, as a variable, an attribute or a key.
NAMES = (
    "name",
    "names",
    "class_names",
    "split",
    "label",
    "labels",
    "clip",
    "clip_id",
    "class_name",
)
# Functions that make a safe part of a path, and values that are no name of a stranger's.
SAFE = ("file_name", "folder_name", "glob.escape")
KNOWN = {
    # A folder or file that the user named, and others beside it.
    "run.name": "the user's own run folder, numbered",
    "out.name": "the user's own store, and what lies beside it",
    "self.folder.name": "the same",
    "path.name": "a file that we write, under a temporary name",
    "fitting[0].name": "a file that was found in a run's folder of results",
    "checkpoint.path.name": "a checkpoint's folder, which is called by its step",
    "folder.name": "the same",
    "evaluate.py: result.name": "made by `file_name`",
    "config/presets.py: name": "a preset's",
    "config/presets_small.py: name": "one of the sets that have a preset",
    "data/readers/ragged_npz.py: SETS[name]": "a set that we know, with the name of its file",
    "pictures/drawing.py: name": "one of the kinds of pictures",
    "pictures/confusion.py: name": "read, never written: a result that the user names",
    "reporting/page.py: name": "a file of our own package",
    "evaluation/saved.py: name": "the same",
    "runtime/manifest.py: name": "one of a checkpoint's two files",
    "runtime/files.py: name": "our own temporary files, of which a killed process left some",
    "data/store.py: name": "a file of a store, of which the schema knows the names",
    "data/readers/generic.py: name": "read, never written: a clip's file below the raw folder",
    "data/readers/own_clip.py: name": "read, never written: a clip's file below the raw folder",
    "data/readers/pose_json.py: name": "the same",
    "data/readers/ragged_npz.py: name": "the same",
}


def _parts(tree: ast.AST) -> list[ast.expr]:
    """Return the expressions of a module that become parts of paths."""
    found: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            found.append(node.right)
        elif isinstance(node, ast.Call) and (
            getattr(node.func, "attr", "") in PATHS or ast.unparse(node.func) in OPENING
        ):
            found += [*node.args, *(keyword.value for keyword in node.keywords)]
    return found


def _is_text(function: ast.expr) -> bool:
    """Whether a function returns text made of its arguments or of what it belongs to."""
    if isinstance(function, ast.Attribute):
        return function.attr in ("format", "join", "replace", "removesuffix", "removeprefix")
    return ast.unparse(function) == "str"


def _strangers(part: ast.expr, own: dict[str, ast.expr]) -> list[str]:
    """Return what in a part of a path is a name that nothing has made safe."""
    if isinstance(part, ast.Call) and ast.unparse(part.func) in SAFE:
        return []
    if isinstance(part, ast.Call) and not _is_text(part.func):
        return []
    if isinstance(part, ast.Name) and part.id in own:
        return _strangers(own[part.id], {k: v for k, v in own.items() if k != part.id})
    text = ast.unparse(part)
    if text in KNOWN:
        return []
    if isinstance(part, ast.Attribute) and part.attr in (*NAMES, "store"):
        return [text]
    if isinstance(part, ast.Name) and part.id in (*NAMES, "text", "title"):
        return [text]
    if isinstance(part, ast.Subscript) and ast.unparse(part.slice).strip("'") in NAMES:
        return [text]
    return [name for inner in ast.iter_child_nodes(part) for name in _strangers(inner, own)]  # type: ignore[arg-type]


def _functions(tree: ast.Module) -> list[ast.AST]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def _assigned(node: ast.AST) -> list[tuple[str, ast.expr]]:
    if not isinstance(node, ast.Assign):
        return []
    target, value = node.targets[0], node.value
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        pairs = zip(target.elts, value.elts, strict=False)
        return [(name.id, part) for name, part in pairs if isinstance(name, ast.Name)]
    return [(target.id, value)] if isinstance(target, ast.Name) else []


def unsafe_paths(source: str) -> list[str]:
    """Return the names of strangers that a module makes paths of, without `file_name`."""
    found = []
    for function in _functions(ast.parse(source)):
        own = dict(pair for node in ast.walk(function) for pair in _assigned(node))
        found += [name for part in _parts(function) for name in _strangers(part, own)]
    return found


def test_only_one_function_makes_a_file_name_of_a_name() -> None:
    """Fails where a path is made of a store's, a split's, a class's or a clip's name."""
    assert unsafe_paths("def f(run, store):\n    return run / store.name") == ["store.name"]
    assert unsafe_paths("def f(run, store):\n    a = f'{store.name}-x'\n    return run / a")
    assert unsafe_paths("def f(run, split):\n    return run.with_name(f'{split}.json')")
    for made in (
        "run / clip_id",
        "run / f'{label}.png'",
        "run / f'{result.store}.json'",
        "run / d['name']",
        "Path(f'{run}/{store.name}.json')",
        "os.path.join(run, store.name)",
        "open(str(run) + '/' + store.name, 'w')",
    ):
        assert unsafe_paths(f"def f(run, store, d):\n    return {made}"), made
    assert not unsafe_paths("def f(run, store):\n    return run / file_name(store.name)")
    found = [
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in SOURCES
        for name in unsafe_paths(path.read_text())
    ]
    assert set(found) - set(KNOWN) == set()
    assert len(found) > 5


def printing(source: str) -> list[int]:
    """Return the lines of a module that print otherwise than by `say`."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and (
            ast.unparse(node.func).rpartition(".")[2] == "print"
            or re.fullmatch(r"sys\.std(out|err)(\.buffer)?\.write", ast.unparse(node.func))
        )
    ]


def test_nothing_is_printed_raw() -> None:
    """Only `say` prints, and the line of a display, whose texts are made printable first."""
    assert printing("print(1)\nsys.stderr.write('x')\nsay(2)\na.console.print(3)") == [1, 2, 4]
    found = {path.name: printing(path.read_text()) for path in SOURCES}
    assert found.pop("names.py")
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_a_display_shows_what_a_terminal_would_obey(capsys: pytest.CaptureFixture[str]) -> None:
    with Display() as display:
        display.note("store \x1b[2J")
        display.phase("step \u202e")
        display.count("clips of \x1b[2J", 3)
        assert display.texts(100)[0] == "clips of \\x1b[2J 0/3"
        display.line = Mock()
        display.note("store \x1b[2J")
        assert display.line.console.print.call_args.args[0].plain == "store \\x1b[2J"
    assert capsys.readouterr().out == "store \\x1b[2J\nstep \\u202e\n"
