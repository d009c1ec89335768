"""Training processes that are really killed (SIGKILL), where and when a plan says.

A victim is a fork of this process, which has imported everything and never starts a thread, so it
trains at once and not after seconds of imports. It calls `sjepa_fast.train.train`, as the command.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from matplotlib.figure import Figure

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.train import train

# What Python tells of a process' own changes of files, besides opening them for writing.
CHANGES = {f"os.{name}" for name in ("chmod", "mkdir", "remove", "rename", "rmdir", "truncate")}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# A victim that lives longer hangs. A process that has lost the other one gets less.
HANG_S, GRACE_S = 120.0, 0.5

PLACES = ("any time", "before a file operation", "inside a write")


class Plan(NamedTuple):
    """Where one attempt is killed: one of `PLACES`, or nowhere."""

    place: str = ""
    wait_s: float = 0.0  # any time: after the start; inside a write: after its file operation
    operation: int = 0  # the number of the file operation
    rank: int = 0  # of the process that is killed
    both: bool = False  # whether the other process is killed at once, as by a lost machine


class Ending(NamedTuple):
    """How the processes of an attempt ended."""

    codes: list[int]  # exit codes; a signal is negative
    kills: int  # processes that the plan's SIGKILL ended
    hung: bool
    operations: int  # changes of files by process 0, if nobody was to be killed


class _Victim(NamedTuple):
    pid: int
    handle: int  # readable once the process has ended
    pipe: int  # what it tells

    def ends(self, within_s: float, *, or_tells: bool = False) -> bool:
        """Wait until the process has ended, or tells something; False if neither in that time."""
        watched = [self.handle, self.pipe] if or_tells else [self.handle]
        return bool(select.select(watched, [], [], max(within_s, 0.0))[0])

    def killed(self) -> bool:
        """Whether a SIGKILL has ended the process; it stays to be waited for."""
        if not self.ends(0):
            return False
        end = os.waitid(os.P_PIDFD, self.handle, os.WEXITED | os.WNOWAIT)
        return end is not None and (end.si_code, end.si_status) == (os.CLD_KILLED, signal.SIGKILL)


def attempt(config: TrainConfig, processes: int, plan: Plan, output: Path) -> Ending:
    """Train in forked processes, killed by the plan; what they print is appended to `output`."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    victims = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), **address}
        planned = plan if rank == plan.rank else Plan()
        victims.append(_fork(config, own if processes > 1 else {}, planned, output))
    if plan.place:
        _strike(plan, victims)
    kills = sum(victim.killed() for victim in victims)
    until = time.monotonic() + (GRACE_S if kills else HANG_S)
    late = [victim for victim in victims if not victim.ends(until - time.monotonic())]
    for victim in late:
        # As a launcher does that has lost one of its processes.
        os.kill(victim.pid, signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(victim.pid, 0)[1]) for victim in victims]
    told = [os.read(victim.pipe, 64) for victim in victims]
    for victim in victims:
        os.close(victim.pipe)
        os.close(victim.handle)
    operations = 0 if plan.place or any(codes) else int(told[0])
    return Ending(codes, kills, bool(late) and not kills, operations)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _strike(plan: Plan, victims: list[_Victim]) -> None:
    """Wait for the planned moment, then kill; a process that has ended before is left as it is."""
    aimed = victims[plan.rank]
    if plan.place == "any time":
        aimed.ends(plan.wait_s)
    else:
        aimed.ends(HANG_S, or_tells=True)
        # Before its operation it kills itself.
        aimed.ends(plan.wait_s if plan.place == "inside a write" else HANG_S)
    struck = victims if plan.both else [aimed]
    for victim in struck:
        os.kill(victim.pid, signal.SIGKILL)
    for victim in struck:
        victim.ends(HANG_S)


def _fork(config: TrainConfig, environment: dict[str, str], plan: Plan, output: Path) -> _Victim:
    tell_from, tell_to = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(tell_from)
        _live(config, environment, plan, tell_to, output)
    os.close(tell_to)
    return _Victim(pid, os.pidfd_open(pid), tell_from)


def _live(
    config: TrainConfig, environment: dict[str, str], plan: Plan, pipe: int, output: Path
) -> NoReturn:
    code = 1
    try:
        os.environ.update(environment)
        printed = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        # Drawing takes most of a tiny run's time; the pictures' files are written all the same.
        Figure.savefig = lambda _, out, **options: Path(out).write_bytes(b"picture")

        def act(number: int) -> None:
            if number == plan.operation:
                os.write(pipe, b"now")
                if plan.place == "before a file operation":
                    os.kill(os.getpid(), signal.SIGKILL)

        operations = _watch_files(act)
        code = train(config)
        if not plan.place:
            os.write(pipe, str(len(operations)).encode())
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _watch_files(act: Callable[[int], None]) -> list[str]:
    """Call `act` with 1, 2, ... before each change of a file; returns the growing list of them."""
    seen: list[str] = []

    def operation(name: str) -> None:
        seen.append(name)
        act(len(seen))

    def hook(event: str, values: tuple[Any, ...]) -> None:
        if event in CHANGES or (
            event == "open" and isinstance(values[2], int) and values[2] & WRITING
        ):
            operation(event)

    def fsync(handle: int, flush: Callable[[int], None] = os.fsync) -> None:
        operation("os.fsync")
        flush(handle)

    sys.addaudithook(hook)
    os.fsync = fsync
    return seen
