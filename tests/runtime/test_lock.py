"""A run folder has one owner, for as long as that process lives."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sjepa_fast.errors import InputError
from sjepa_fast.runtime.lock import lock_run

OTHER = f"process {os.getpid()} on "


def forked(run: Path) -> int:
    """Exit code of a child process that locks a run: 0, or 2 if it is refused."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with lock_run(run):
                code = 0
        except InputError as error:
            code = 2 if OTHER in str(error) else 3
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """A process that holds the lock, and a child of it, such as a data worker, that outlives it."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with lock_run(tmp_path):
            worker = os.fork()
            if worker:
                os.write(writer, str(worker).encode())
            signal.pause()
        os._exit(0)
    worker = int(os.read(reader, 20))
    yield pid, worker
    os.kill(worker, signal.SIGKILL)


def test_a_second_owner_is_told_who_the_first_is(tmp_path: Path) -> None:
    with lock_run(tmp_path):
        with pytest.raises(InputError, match=OTHER), lock_run(tmp_path):
            pass
        assert forked(tmp_path) == 2
    assert forked(tmp_path) == 0
    assert OTHER not in (tmp_path / "lock").read_text(), "it says who was last"


def test_the_lock_dies_with_its_process_and_not_with_the_workers(
    tmp_path: Path, killed: tuple[int, int]
) -> None:
    pid, worker = killed
    with pytest.raises(InputError, match=f"process {pid} on "), lock_run(tmp_path):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.kill(worker, 0)
    with lock_run(tmp_path):
        pass


def test_what_cannot_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(InputError, match="Is a directory"), lock_run(tmp_path):
        pass
    with pytest.raises(InputError, match="No such file"), lock_run(tmp_path / "none"):
        pass
    (tmp_path / "lock").rmdir()
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(InputError, match="lock: is no regular file"), lock_run(tmp_path):
        pass
