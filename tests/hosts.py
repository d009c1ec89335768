"""Two hosts on one machine: network namespaces with a cable between them, or loopback addresses."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.tiny import environment

# Says that its namespaces are made, then holds them.
HOLD = ["sh", "-c", "echo made; exec sleep 600"]


@dataclass(frozen=True)
class Host:
    """A host: how to start a program on it, and what it is called in the network."""

    enter: tuple[str, ...]
    address: str
    interface: str

    def python(self, *words: str | Path, out: IO[str], **variables: str) -> subprocess.Popen[str]:
        """Start `python WORDS` on this host, in an environment, with both outputs in a file."""
        return subprocess.Popen(
            [*self.enter, sys.executable, *map(str, words)],
            env={**environment(), "GLOO_SOCKET_IFNAME": self.interface, **variables},
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
        )


def kill_all(process: subprocess.Popen[str]) -> None:
    """End a process that still runs, and all that it has started, by SIGKILL."""
    if process.poll() is not None:
        return
    family = [process.pid]
    for pid in family:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGSTOP)
            family += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    for pid in family:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _held(command: list[str], stack: contextlib.ExitStack) -> int:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    # Its end closes the pipes, after it was killed.
    stack.enter_context(process)
    stack.callback(process.kill)
    if process.stdout.readline() != "made\n":
        raise OSError(f"no namespace: {process.communicate()[1].strip()}")
    return process.pid


def _namespaces(stack: contextlib.ExitStack) -> tuple[Host, Host]:
    if not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        raise OSError("no namespace: unshare, nsenter or ip is missing")
    one = _held(["unshare", "--user", "--map-root-user", "--net", *HOLD], stack)
    in_one = ("nsenter", f"--target={one}", "--user", "--net", "--preserve-credentials")
    two = _held([*in_one, "unshare", "--net", *HOLD], stack)
    in_two = ("nsenter", f"--target={two}", "--user", "--net", "--preserve-credentials")
    first, second = Host(in_one, "10.77.0.1", "veth1"), Host(in_two, "10.77.0.2", "veth2")
    cable = f"link add veth1 type veth peer name veth2 netns {two}"
    commands = [(first, cable)]
    for host in (first, second):
        commands.append((host, f"address add {host.address}/24 dev {host.interface}"))
        commands += [(host, f"link set {name} up") for name in ("lo", host.interface)]
    for host, words in commands:
        done = subprocess.run(
            [*host.enter, "ip", *words.split()], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise OSError(f"no namespace: ip {words}: {done.stderr.strip()}")
    return first, second


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host, str]]:
    """Yield two hosts, and what they are: namespaces, or why they are only addresses."""
    with contextlib.ExitStack() as stack:
        try:
            hosts, what = _namespaces(stack), "network namespaces"
        except OSError as error:
            hosts = Host((), "127.0.0.2", "lo"), Host((), "127.0.0.3", "lo")
            what = f"addresses of one host ({error})"
        yield (*hosts, what)
