"""What continuous integration installs is locked by hashes, and the lock says what the pins say."""

from __future__ import annotations

import re

import pytest

from tests.test_house import ROOT, normal, pins

LOCKS = (".ci/requirements.txt", ".ci/requirements-lint.txt", ".ci/requirements-docs.txt")


def locked(name: str) -> dict[str, tuple[str, list[str]]]:
    """Version and hashes of each package of a lock file."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line and line[0] not in "# "]
    found = {}
    for first, *rest in lines:
        package, _, version = first.partition("==")
        found[normal(package)] = version, [word for word in rest if word.startswith("--hash")]
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_the_pinned_version_and_hashes(name: str) -> None:
    found = locked(name)
    for package, (version, hashes) in found.items():
        assert version == pins()[package], package
        assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for h in hashes)


def test_the_locks_name_every_pinned_package_but_torch() -> None:
    """Every index serves its own builds of torch, with other hashes."""
    assert set().union(*map(locked, LOCKS)) == set(pins()) - {"torch"}


def test_continuous_integration_installs_from_the_locks_before_anything_else() -> None:
    script = (ROOT / ".ci/run").read_text()
    assert "pip install --quiet --require-hashes --no-deps -r" in script
    places = [re.search(rf"^locked \S+ {re.escape(name)}$", script, re.M) for name in LOCKS]
    ends = [place.end() if place else len(script) for place in places]
    assert max(ends) <= script.index("\nmake env")
