"""Limits of a worker: memory, an alarm, and an audit hook that sees what ought not to happen."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MEMORY = 512 * 2**20
# Hostile inputs that try to run code carry this word in what they would run.
CANARY = "sjepa-canary"

_RUNS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.fork")
_RUNS += ("pty.spawn", "socket.connect", "socket.bind", "ctypes.dlopen", "os.kill")
_CODE = ("exec", "compile")
# Events whose first arguments are paths that are changed.
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink")
_CHANGES += ("os.truncate", "os.chmod", "os.chown", "shutil.rmtree", "shutil.move")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Executed(BaseException):
    """An input made the program run something or write where it must not."""


class Sandbox:
    """A folder for one input at a time, and the watch over what happens outside of it."""

    def __init__(self, folder: Path) -> None:
        self.inside = Path(os.path.realpath(folder)) / "input"
        self.events: list[str] = []
        self._armed = False
        self._prefix = f"{self.inside}{os.sep}"
        self.fresh()
        sys.addaudithook(self._audit)

    def fresh(self) -> Path:
        """Empty the folder of the input and return it."""
        if os.path.lexists(self.inside):
            shutil.rmtree(self.inside)
        self.inside.mkdir()
        return self.inside

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        """Watch, and limit the memory that is taken from now on."""
        self.events = []
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY, hard))
        self._armed = True
        try:
            yield
        finally:
            self._armed = False
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._armed:
            return
        if event == "open":
            path, _, flags = args
            bad = isinstance(flags, int) and bool(flags & _WRITES) and not self._may_change(path)
        elif event in _CHANGES:
            paths = [arg for arg in args[:2] if isinstance(arg, str | bytes | os.PathLike)]
            # The target of a link is text; where the link lies is what is written.
            paths = paths[1:] if event in ("os.symlink", "os.link") else paths
            # `shutil.rmtree` removes names in an open folder.
            if event in ("os.remove", "os.rmdir") and args[1] >= 0:
                paths = [os.path.realpath(f"/proc/self/fd/{args[1]}") + f"/{args[0]}"]
            bad = not all(self._may_change(path) for path in paths)
        elif event in _CODE:
            # `ast.literal_eval` compiles too, under this name, and runs nothing.
            bad = CANARY in str(args[0])[:10_000] and "<unknown>" not in args[1:]
        else:
            bad = event in _RUNS
        if bad:
            self.events.append(f"{event} {args!r:.300}")
            raise Executed(self.events[-1])

    def _may_change(self, path: Any) -> bool:
        if isinstance(path, int) or path in ("/dev/null", b"/dev/null"):
            return True
        # Where the name is, not where a link at it leads: links are made by inputs, and whoever
        # replaces a file by renaming replaces the link.
        folder, name = os.path.split(os.fsdecode(path))
        real = os.path.normpath(f"{os.path.realpath(folder or '.')}/{name}")
        return real == str(self.inside) or real.startswith(self._prefix)


def _address_space() -> int:
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123
        return int(file.read().split()[0]) * resource.getpagesize()
