"""Settings shared by all tests: one thread, GPU tests skipped without a GPU, where data is."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

# Before torch is imported anywhere: one thread makes sums repeatable, and subprocesses inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needing_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not needing_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needing_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """Look through thousands of tests and modules for garbage once, and not all the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Draw the same in every order of the tests."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def project_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of real skeleton archives; the test is skipped where there is none."""
    root = Path(os.environ.get("SJEPA_DATA", ROOT.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no real data in {root}; point the environment variable SJEPA_DATA at it")
    return root


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small synthetic store, to be read only."""
    from sjepa_fast.data.synthetic import write_synthetic_store

    path = tmp_path_factory.mktemp("data") / "synthetic"
    write_synthetic_store(path, subjects=4, repetitions=1)
    return path


@pytest.fixture(scope="session")
def sets(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of stores of several layouts, to be read only."""
    from tests.pools import write_sets

    return write_sets(store, tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="session")
def pool(sets: Path) -> Path:
    """A pool of these stores, to be read only."""
    from tests.pools import pooled

    return pooled(sets)


@pytest.fixture(scope="session")
def nucla(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder where the quickstart's first N-UCLA command made stores/nucla.

    Tests may add runs of their own names.
    """
    from tests.tiny import nucla_lines, run_documented

    if not (data_root / "nucla").is_dir():
        pytest.skip(f"no N-UCLA in {data_root}")
    folder = tmp_path_factory.mktemp("nucla")
    with pytest.MonkeyPatch.context() as here:
        here.chdir(folder)
        run_documented(nucla_lines("docs/quickstart.md", data_root)[0])
    return folder


@pytest.fixture(scope="session")
def nucla_run(nucla: Path, data_root: Path) -> Path:
    """Folder of the run of the quickstart's second command, shortened; results may be added."""
    from tests.tiny import nucla_lines, run_python

    words = nucla_lines("docs/quickstart.md", data_root)[1]
    short = ["--optim.length=3", "--optim.warmup=1", "--optim.batch-size=16", "--log.knn-every=0"]
    done = run_python(*words[1:], *short, "--compile=off", cwd=nucla)
    assert done.returncode == 0, done.stderr
    return nucla / "runs" / "nucla"
