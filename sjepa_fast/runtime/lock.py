# SPDX-License-Identifier: Apache-2.0
"""One owner of a run folder: a lock that lives exactly as long as the process that holds it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from sjepa_fast.errors import InputError
from sjepa_fast.names import say

_OWNER_BYTES = 1000


@contextlib.contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Hold `run/lock` for as long as the block lasts.

    The system releases it when the process ends, however that happens; the file stays and says who
    was last. A file system without locks is named on stderr and not locked. Raises InputError with
    process and host if another process holds it.
    """
    path = run / "lock"
    try:
        handle = _lock(path)
    except BlockingIOError as error:
        owner = path.read_bytes()[:_OWNER_BYTES].decode(errors="replace").strip()
        value = f"{run} is in use by {owner or 'another process'}"
        raise InputError("run", value, "wait for it, stop it, or choose another --run") from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            fix = "choose a writable folder"
            raise InputError("run", f"{path}: {error.strerror}", fix) from error
        say(f"note: {path} cannot be locked ({error.strerror})", to_stderr=True)
        yield
        return
    # Data workers are forked and may outlive us by seconds: the lock is not theirs.
    _held.add(handle)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        _held.discard(handle)
        os.close(handle)


def _lock(path: Path) -> int:
    """Open and lock a file; again if it was deleted or replaced meanwhile."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(handle)
            if not stat.S_ISREG(held.st_mode):
                raise OSError(errno.EINVAL, "is no regular file")
            if path.exists() and os.path.samestat(held, path.stat()):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


_held: set[int] = set()


def _let_go() -> None:
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)
