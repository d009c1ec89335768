"""docs/licences.md names the licence of everything that is installed with us.

`python -m tests.test_licences --update` writes its table anew, from the installed packages' own
metadata.
"""

from __future__ import annotations

import sys
from importlib.metadata import metadata, requires, version

import pytest

from tests.test_house import ROOT, asked_of_others, needed_now, pins

DOCUMENT = ROOT / "docs" / "licences.md"
# Of environments of their own, which are not the one that the tests run in; see the Makefile.
ELSEWHERE = {
    "make lint": {"click": "BSD-3-Clause", "docstring-parser-fork": "MIT", "pydoclint": "MIT"},
    "make docs": {
        "accessible-pygments": "BSD License",
        "alabaster": "BSD License",
        "babel": "BSD-3-Clause",
        "beautifulsoup4": "MIT License",
        "certifi": "Mozilla Public License 2.0 (MPL 2.0)",
        "charset-normalizer": "MIT",
        "cloudpickle": "BSD-3-Clause",
        "docutils": "BSD License; GNU General Public License (GPL)",
        "furo": "MIT License",
        "idna": "BSD-3-Clause",
        "imagesize": "MIT",
        "joblib": "BSD-3-Clause",
        "mdit-py-plugins": "MIT License",
        "myst-parser": "MIT License",
        "narwhals": "MIT",
        "requests": "Apache Software License",
        "roman-numerals": "0BSD OR CC0-1.0",
        "scikit-learn": "BSD-3-Clause",
        "scipy": "BSD License",
        "snowballstemmer": "BSD-3-Clause",
        "soupsieve": "MIT",
        "sphinx": "BSD-2-Clause",
        "sphinx-basic-ng": "MIT License",
        "sphinxcontrib-applehelp": "BSD License",
        "sphinxcontrib-devhelp": "BSD License",
        "sphinxcontrib-htmlhelp": "BSD License",
        "sphinxcontrib-jsmath": "BSD License",
        "sphinxcontrib-qthelp": "BSD License",
        "sphinxcontrib-serializinghtml": "BSD License",
        "threadpoolctl": "BSD-3-Clause",
        "urllib3": "MIT",
    },
}


def licence_of(name: str) -> str:
    """Say what a package says: an SPDX expression, else its classifiers, else its first line."""
    said = metadata(name)
    if expression := said.get("License-Expression"):
        return expression
    classifiers = [c.split(" :: ") for c in said.get_all("Classifier") or []]
    named = [parts[-1] for parts in classifiers if parts[0] == "License" and len(parts) > 2]
    text = (said.get("License") or "not stated").strip().splitlines()[0]
    return "; ".join(sorted(set(named))) or text


def closure(lines: list[str]) -> set[str]:
    """Names of all that requirements need on this platform, all the way down."""
    waiting, seen = needed_now(lines), set()
    while waiting:
        name = waiting.pop()
        # A CUDA build of torch brings NVIDIA's libraries.
        if name not in seen and not name.startswith(("nvidia-", "cuda-")):
            seen.add(name)
            waiting += needed_now(requires(name) or [])
    return seen


def table() -> str:
    """Return the table: what the library needs, then what only its development needs."""
    runtime = closure(asked_of_others())
    development = closure(asked_of_others("dev")) - runtime
    rows = [(name, licence_of(name), "the library") for name in sorted(runtime)]
    rows += [(name, licence_of(name), "development") for name in sorted(development)]
    rows += [(n, text, f"`{make}`") for make, all_ in ELSEWHERE.items() for n, text in all_.items()]
    lines = ["| package | licence | needed for |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {name} | {text} | {use} |" for name, text, use in rows)]) + "\n"


def test_every_installed_package_is_listed_with_its_licence() -> None:
    if version("torch").split("+")[0] != pins()["torch"]:
        pytest.skip(f"runs on torch {version('torch')}, not in the pinned environment")
    assert table() in DOCUMENT.read_text(), "run python -m tests.test_licences --update"


def test_every_source_that_is_passed_on_names_its_licence() -> None:
    tops = (ROOT / top for top in ("sjepa_fast", "kernels", "csrc", "examples"))
    found = [
        path for top in tops for path in top.rglob("*") if path.suffix in (".py", ".cpp", ".h")
    ]
    marks = {".py": "# ", ".cpp": "// ", ".h": "// "}
    bare = [
        str(path.relative_to(ROOT))
        for path in found
        if "build" not in path.relative_to(ROOT).parts
        and path.read_text().partition("\n")[0]
        != f"{marks[path.suffix]}SPDX-License-Identifier: Apache-2.0"
    ]
    assert bare == [] and len(found) > 250


def test_both_distributions_have_the_whole_licence() -> None:
    """A build in kernels/ cannot take the file of the folder above."""
    assert (ROOT / "kernels" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_every_pinned_package_is_listed() -> None:
    text = DOCUMENT.read_text()
    assert [name for name in pins() if f"\n| {name} | " not in text] == []


if __name__ == "__main__" and sys.argv[1:] == ["--update"]:
    head, _, _ = DOCUMENT.read_text().partition("\n| package ")
    DOCUMENT.write_text(f"{head}\n{table()}")
