"""House rules that a machine can check: sizes, layout, imports, pins, documented commands."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import sjepa_kernels
from sjepa_fast import __version__

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("sjepa_fast", "kernels", "csrc", "tests", "benchmarks", "examples")
# Sub-packages of sjepa_fast and the ones that they must not import, directly or lazily.
UPPER = {"models", "objectives", "evaluation", "train", "evaluate", "training", "build"}
MAY_NOT_IMPORT = {
    "data": UPPER | {"viz", "prepare"},
    "config": UPPER | {"data", "runtime", "viz", "prepare"},
    "viz": UPPER | {"prepare", "pictures"},
    "pictures": {"train", "evaluate", "training", "prepare"},
    "runtime": UPPER | {"viz", "prepare"},
    "models": UPPER - {"models"} | {"viz"},
    "objectives": {"train", "evaluate", "training", "build", "evaluation", "viz"},
    "evaluation": {"train", "evaluate", "training", "objectives", "viz"},
}
KNOWN_PROGRAMS = {
    "make",
    "python",
    "pip",
    "pytest",
    "git",
    "cd",
    "source",
    "torchrun",
    "sbatch",
    "export",
}


def source_files(*suffixes: str) -> list[Path]:
    tops = [path for folder in SOURCES for path in (ROOT / folder).rglob("*")]
    return [path for path in [*tops, *ROOT.glob("*.py")] if path.suffix in suffixes]


def imported_modules(path: Path) -> set[str]:
    """Every module that a file names in an import, at any depth of its code."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def test_no_file_is_longer_than_500_lines() -> None:
    files = source_files(".py", ".cpp", ".h")
    assert len(files) > 20
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in files}
    assert {path: length for path, length in lengths.items() if length > 500} == {}
    for setup in (ROOT / "setup.py", ROOT / "kernels" / "setup.py"):
        assert len(setup.read_text().splitlines()) <= 80


def long_prose(text: str) -> list[int]:
    """Numbers of the lines over 120 columns that are no table, no code and no address alone."""
    long, code = [], False
    for number, line in enumerate(text.splitlines(), 1):
        code ^= line.lstrip().startswith("```")
        address = re.fullmatch(r"[ *-]*\S*https?://\S+", line)
        if len(line) > 120 and not (code or line.startswith("|") or address):
            long.append(number)
    return long


def test_prose_of_documents_has_at_most_120_columns() -> None:
    folders = [ROOT, ROOT / "docs", *(ROOT / folder for folder in SOURCES)]
    documents = [path for folder in folders for path in folder.glob("*.md")]
    documents += (ROOT / "benchmarks" / "results").rglob("*.md")
    assert len(documents) > 10
    found = {str(path.relative_to(ROOT)): long_prose(path.read_text()) for path in documents}
    assert {name: lines for name, lines in found.items() if lines} == {}
    wide = "x " * 61
    assert long_prose(f"{wide}\n| {wide}\n```\n{wide}\n```\n* https://{'x' * 120}\n{wide}") == [
        1,
        7,
    ]


@pytest.mark.parametrize("folder", ["kernels", "tests", "csrc", "examples"])
def test_plain_folders_are_not_packages(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


def test_benchmarks_are_a_package() -> None:
    """A folder without `__init__.py` loses its name to any installed package called benchmarks."""
    for folder in ("benchmarks", "benchmarks/report", "benchmarks/reference"):
        assert (ROOT / folder / "__init__.py").exists()


def test_every_folder_of_a_package_is_a_package() -> None:
    for package in (ROOT / "sjepa_fast", ROOT / "kernels" / "sjepa_kernels"):
        assert (package / "py.typed").exists()
        for path in package.rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), f"{path.parent} would not be installed"


def test_kernels_depend_on_torch_and_triton_alone() -> None:
    allowed = {"torch", "triton", "sjepa_kernels", *sys.stdlib_module_names}
    for path in (ROOT / "kernels" / "sjepa_kernels").rglob("*.py"):
        tops = {name.split(".")[0] for name in imported_modules(path)}
        assert tops <= allowed, f"{path}: {tops - allowed}"
    asked = {normal(Requirement(line).name) for line in project("kernels")["dependencies"]}
    assert asked == {"torch", "triton"}


@pytest.mark.parametrize("package", sorted(MAY_NOT_IMPORT))
def test_dependencies_point_one_way(package: str) -> None:
    files = list((ROOT / "sjepa_fast" / package).rglob("*.py"))
    assert files
    for path in files:
        parts = [name.split(".") for name in imported_modules(path)]
        used = {part[1] for part in parts if part[0] == "sjepa_fast" and len(part) > 1}
        assert not used & MAY_NOT_IMPORT[package], f"{path}: {used & MAY_NOT_IMPORT[package]}"


def test_privates_of_the_kernels_stay_inside() -> None:
    """No `sjepa_kernels._x` and no `sjepa_kernels.<family>._x` but in the package and its tests."""
    private = re.compile(r"sjepa_kernels(\.\w+)*\._(?!_)")
    assert private.match("sjepa_kernels._dispatch") and private.match("sjepa_kernels.masks.op._op")
    for path in source_files(".py"):
        if path.is_relative_to(ROOT / "kernels") or path.is_relative_to(ROOT / "tests/kernels"):
            continue
        for name in imported_modules(path) if path.name != "setup.py" else ():
            assert not private.match(name), f"{path}: {name}"


def test_setup_does_not_import_torch() -> None:
    for file in ("setup.py", "kernels/setup.py", "csrc/build_library.py"):
        tops = {name.split(".")[0] for name in imported_modules(ROOT / file)}
        assert tops - {"setuptools", "build_library"} <= set(sys.stdlib_module_names), file


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pair) == 2 for pair in pairs), "constraints.txt pins with == and nothing else"
    return {normal(name): pinned for name, pinned in pairs}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed_now(lines: list[str]) -> list[str]:
    """Names of the requirements that hold on this platform and Python, extras left out."""
    parsed = [Requirement(line) for line in lines]
    return [
        normal(item.name)
        for item in parsed
        if item.marker is None or item.marker.evaluate({"extra": ""})
    ]


def project(folder: str = "") -> dict[str, Any]:
    """The metadata of the distribution at the root, or of the one in `kernels`."""
    with (ROOT / folder / "pyproject.toml").open("rb") as file:
        table: dict[str, Any] = tomllib.load(file)["project"]
    return table


def asked_of_others(extra: str | None = None) -> list[str]:
    """What both distributions require of others, or an extra of the one at the root."""
    if extra:
        return list(project()["optional-dependencies"][extra])
    lines = project("kernels")["dependencies"] + project()["dependencies"]
    return [line for line in lines if not line.startswith("sjepa-kernels==")]


def test_one_version_stands_everywhere() -> None:
    """Both distributions read it from one file; here is what names it besides."""
    (pin,) = (line for line in project()["dependencies"] if line.startswith("sjepa-kernels"))
    assert pin == f"sjepa-kernels=={__version__}"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__ == sjepa_kernels.__version__
    changes = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", changes, re.M)
    assert versions[0] == __version__, "a section of its own in CHANGELOG.md"
    assert "version" in project()["dynamic"] and "version" in project("kernels")["dynamic"]


def test_dependencies_and_tools_are_pinned_once() -> None:
    wanted = asked_of_others() + asked_of_others("dev")
    names = {normal(re.split(r"[<>=;\[ ]", line)[0]) for line in wanted}
    assert names - set(pins()) == set()
    assert "pydoclint" in pins()
    assert not [line for line in wanted if "==" in line.split(";")[0]], (
        "exact versions live in constraints.txt"
    )
    assert pins()["torch"] == "2.13.0"
    assert pins()["triton"] == "3.7.1"


def test_what_is_installed_is_what_is_pinned() -> None:
    """Every installed package that ours need, all the way down, has the version of its pin."""
    if version("torch").split("+")[0] != pins()["torch"]:
        pytest.skip(f"runs on torch {version('torch')}, not in the pinned environment")
    waiting = needed_now(asked_of_others() + asked_of_others("dev"))
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        # The CUDA build of torch brings packages that its own metadata pins.
        if name in seen or name.startswith(("nvidia-", "cuda-")):
            continue
        seen.add(name)
        installed = version(name).split("+")[0]
        assert pins().get(name) == installed, f"{name}: installed {installed}"
        waiting += needed_now(requires(name) or [])
    assert len(seen) > 20


def test_hooks_run_the_pinned_tools() -> None:
    """No hook has a version of its own: each runs what `make env` installed."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [(repo["repo"], hook) for repo in config["repos"] for hook in repo["hooks"]]
    for repo, hook in hooks:
        assert repo == "local"
        assert hook["language"] == "system"
        assert "additional_dependencies" not in hook
        assert hook["entry"].startswith((".venv/bin/", "make "))
        if hook["entry"].startswith(".venv/bin/"):
            tool = hook["entry"].split()[0].removeprefix(".venv/bin/")
            assert normal(tool) in pins()
    assert {hook["id"] for _, hook in hooks} >= {"ruff-check", "ruff-format", "mypy", "pydoclint"}


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def documented_commands() -> list[tuple[str, list[str]]]:
    """Commands in the shell blocks of the documents, comments and line breaks taken out.

    Those of ours that stand within a line, too.
    """
    found = []
    for path in [*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("docs/*.md")]:
        if not path.exists():
            continue
        text = path.read_text()
        ours = re.findall(r"`(python -m sjepa_fast\.[a-z][^`]*)`", text)
        inline = [" ".join(command.split()) for command in ours]
        shell = re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", text, re.M | re.S)
        for block in [*inline, *shell]:
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words = words[1:]
                if words:
                    found.append((str(path.relative_to(ROOT)), words))
    return found


def module_file(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


# Prints the help of each module named on the command line, as JSON: one process start for all.
HELP = """
import contextlib, io, json, runpy, sys
found = {}
for module in sys.argv[1:]:
    calls, text = [[]], io.StringIO()
    if module == "sjepa_fast.evaluate":
        from sjepa_fast.evaluation.protocols import PROTOCOLS
        calls += [[name] for name in PROTOCOLS]
    if module == "sjepa_fast.prepare":
        calls += [["merge"]]
    if module == "sjepa_fast.plot":
        from sjepa_fast.pictures import KINDS
        calls += [[name] for name in KINDS]
    for words in calls:
        sys.argv = [module, *words, "--help"]
        with contextlib.redirect_stdout(text):
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            except SystemExit as end:
                assert not end.code, (module, end.code)
    found[module] = text.getvalue()
print(json.dumps(found))
"""


def helps_of(modules: set[str]) -> dict[str, str]:
    environment = {**os.environ, "COLUMNS": "400", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HELP, *sorted(modules)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    helps: dict[str, str] = json.loads(done.stdout)
    return helps


def test_documented_commands_exist() -> None:
    """Make targets, modules, scripts and files named in the documents are there."""
    commands = documented_commands()
    assert len(commands) >= 4
    scripts = project()["scripts"]
    for document, words in commands:
        program = Path(words[0]).name
        where = f"{document}: {shlex.join(words)}"
        assert program in KNOWN_PROGRAMS or program in scripts, where
        if program == "make":
            named = {word for word in words[1:] if "=" not in word and not word.startswith("-")}
            assert named <= make_targets(), where
        if "-m" in words:
            module = words[words.index("-m") + 1]
            if module.split(".")[0] in ("sjepa_fast", "sjepa_kernels", "benchmarks"):
                assert module_file(module).exists(), where
        for word in words[1:]:
            if word.startswith(("tests/", "benchmarks/", "kernels/", "csrc/")):
                assert (ROOT / word.split("::")[0]).exists(), where


def test_documented_flags_are_accepted() -> None:
    """Each long option written after one of our modules is one that the module's help names."""
    used: list[tuple[str, str, list[str]]] = []
    scripts = project()["scripts"]
    for document, words in documented_commands():
        if words[0] in scripts:
            used.append((document, f"sjepa_fast.{words[1]}", words[2:]))
        elif "-m" in words and words[words.index("-m") + 1].startswith("sjepa_fast."):
            start = words.index("-m")
            used.append((document, words[start + 1], words[start + 2 :]))
    helps = helps_of({module for _, module, _ in used})
    checked = 0
    for document, module, options in used:
        for option in options:
            if option.startswith("--"):
                name = option.split("=")[0]
                pattern = rf"(?<![\w-]){re.escape(name)}(?![\w.-])"
                assert re.search(pattern, helps[module]), f"{document}: {module} has no {name}"
                checked += 1
    assert checked > 0
