"""Fixtures of the kernel tests."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from zlib import crc32

import pytest

from sjepa_kernels._triton import HAVE_TRITON, INTERPRETED
from sjepa_kernels.native import LIBRARY
from tests.kernels.cases import ALL_CASES, Place, places
from tests.kernels.interpreted import Run, start

RUNS = pytest.StashKey[list[Run]]()
FILES = pytest.StashKey[list[str]]()
# As many cases of a test are all interpreted; of more, about one in so many.
FEW, ONE_IN = 4, 4


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test where its op has code: in C++ too if the test's module says HAS_CPP = True."""
    if "place" in metafunc.fixturenames:
        found = places(getattr(metafunc.module, "HAS_CPP", False))
        metafunc.parametrize("place", found, ids=str, indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a share of the tests ("0/2": every second one), for processes that share the work.

    Interpreted, a test of many cases has a part of them, unless `make test-all` asks for all: the
    interpreter takes seconds for what a GPU or C++ does in none.
    """
    if INTERPRETED and not ALL_CASES:
        items[:] = thinned(items)
    share, of = map(int, os.environ.get("SJEPA_TEST_SHARE", "0/1").split("/"))
    items[:] = items[share::of]


def thinned(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return a part of the cases of each test that has more than `FEW`, and all of others.

    Which ones, a checksum of their names says: every fourth would always be of the same dtypes.
    """
    counts = Counter(item.nodeid.partition("[")[0] for item in items)
    return [
        item
        for item in items
        if counts[item.nodeid.partition("[")[0]] <= FEW or crc32(item.nodeid.encode()) % ONE_IN == 0
    ]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start what runs in the interpreter, on the core that the other tests leave idle.

    Of several workers only the one that waits for it does, when it gets there.
    """
    parameters = [getattr(item, "callspec", None) for item in session.items]
    files = [str(p.params["interpreted"]) for p in parameters if p and "interpreted" in p.params]
    session.stash[FILES] = files
    shared = hasattr(session.config, "workerinput") or session.config.option.collectonly
    if files and HAVE_TRITON and not INTERPRETED and not shared:
        alone = len(files) == len(session.items)
        session.stash[RUNS] = start(files, processes=2 if alone else 1)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the processes of a session that did not wait for them."""
    for run in session.stash.get(RUNS, []):
        run.process.kill()
        run.process.wait()
        run.output.close()


@pytest.fixture
def interpreter(request: pytest.FixtureRequest) -> list[Run]:
    """The processes that run the tests of the selected files on interpreted kernels."""
    stash = request.session.stash
    if RUNS not in stash:
        stash[RUNS] = start(stash[FILES], processes=1)
    return stash[RUNS]


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Place:
    """One device and implementation that may run here."""
    chosen: Place = request.param
    if chosen.missing:
        pytest.skip(chosen.missing)
    return chosen


@pytest.fixture(params=[16, 8, 1])
def lanes(request: pytest.FixtureRequest) -> Iterator[int]:
    """How many numbers the C++ takes at once, where the processor can."""
    if LIBRARY is None:
        pytest.skip("the C++ library is not built")
    try:
        if LIBRARY.sjepa_limit_lanes(request.param) != request.param:
            pytest.skip(f"this processor has no vectors of {request.param} floats")
        yield request.param
    finally:
        LIBRARY.sjepa_limit_lanes(16)
