# SPDX-License-Identifier: Apache-2.0
"""What all commands share: typed flags, one-line errors, exit codes 0, 1, 2 and 130.

A training run that a signal stopped ends with 128 and its number (`runtime/signals.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import tyro

from sjepa_fast.config.schema import Switch
from sjepa_fast.errors import InputError, RunStopped, nearest
from sjepa_fast.names import hush, say

T = TypeVar("T")


def flags(config_type: Any) -> list[str]:
    """Return the flags of a dataclass as they are typed; those of nested ones are dotted."""
    return [*_flags(config_type, "")]


def _flags(config_type: Any, prefix: str) -> Iterator[str]:
    for name, hint in get_type_hints(config_type, include_extras=True).items():
        marks = getattr(hint, "__metadata__", ())
        kind = get_args(hint)[0] if marks else hint
        if dataclasses.is_dataclass(kind):
            yield from _flags(kind, f"{prefix}{name}.")
        elif tyro.conf.Positional not in marks:
            short = any(getattr(mark, "prefix_name", None) is False for mark in marks)
            yield f"--{'' if short else prefix}{name}".replace("_", "-")


def _positionals(config_type: Any) -> Iterator[str]:
    for name, hint in get_type_hints(config_type, include_extras=True).items():
        if tyro.conf.Positional in getattr(hint, "__metadata__", ()):
            yield name


def command(prog: str) -> str:
    """Return what the user has typed to call a module of this package: `sjepa train`."""
    if Path(sys.argv[0]).stem == "sjepa":
        return f"sjepa {prog.removeprefix('sjepa_fast.')}"
    return f"python -m {prog}"


def parse(
    config_type: type[T], argv: list[str] | None, *, default: T | None = None, prog: str
) -> T:
    """Parse command-line flags into a dataclass; nested ones give dotted flags (`--data.root`).

    `default` has the values of the flags that are not given. Raises InputError on an unknown flag
    (with the nearest ones) or a value of the wrong type, and SystemExit with code 0 after `--help`.
    """
    args = _spell_out(arguments(argv))
    start = tyro.MISSING_NONPROP if default is None else default
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            return tyro.cli(config_type, args=args, prog=command(prog), default=start)
    except SystemExit as stop:
        if stop.code == 0:
            raise
    text = _plain(output.getvalue())
    unknown = re.search(r"Unrecognized options?: (--[^\s,]+)", text)
    if unknown:
        known = ["--config", *flags(config_type)]
        raise InputError(unknown[1], "no such flag", nearest(unknown[1], known))
    choice = re.search(r"nvalid choice '(.*?)' for argument '--(\S+)'.*?one of \((.*?)\)\.", text)
    if choice:
        known = re.findall(r"'(.*?)'", choice[3])
        raise InputError(choice[2], choice[1], nearest(choice[1], known))
    wrong = re.search(r"Error parsing (\S+): (.*?)(?: Argument helptext| For full|$)", text)
    if wrong:
        raise InputError(wrong[1], wrong[2], "see --help")
    if "(required)" in text:
        missing = re.findall(r"(?:: |\(required\) )--(\S+) [A-Z]", text)
        named = " and ".join(f"--{name}" for name in missing)
        if re.search(r"Missing from [^:]*: [A-Z]", text):
            missing = [next(_positionals(config_type)), *missing]
            named = f"{missing[0]} first" + (f", and {named}" if named else "")
        raise InputError(", ".join(missing), "not given", f"give {named}; see --help")
    raise InputError("arguments", text.split(" For full")[0] or " ".join(args), "see --help")


def _spell_out(args: list[str]) -> list[str]:
    """Give `--compile` its value where it stands alone, and `--no-compile` its long form."""
    spelled = []
    for arg, after in pairwise([*args, ""]):
        if arg == "--compile" and after not in get_args(Switch):
            spelled += [arg, "on"]
        else:
            spelled += ["--compile", "off"] if arg == "--no-compile" else [arg]
    return spelled


def _plain(text: str) -> str:
    # tyro draws its messages in boxes, several lines high.
    return re.sub(r"(?:[─│╭╮╰╯\s]|-{5,})+", " ", text).strip()


def arguments(argv: list[str] | None) -> list[str]:
    """Return the given arguments, or those of this process."""
    return sys.argv[1:] if argv is None else argv


def run_main(body: Callable[[], int], interrupted: str = "interrupted") -> None:
    """Run a command and exit: its code, 2 for bad input, 130 for Ctrl-C, 1 for a failure.

    `body` returns its exit code. After a Ctrl-C that has no message of its own, `interrupted` is
    said. Always raises SystemExit.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A pipe may have a narrower encoding than the names that are printed.
        sys.stdout.reconfigure(errors="replace")
    try:
        code = body()
        sys.stdout.flush()
    except InputError as error:
        say(error, to_stderr=True)
        code = 2
    except KeyboardInterrupt as interrupt:
        say(str(interrupt) or interrupted, to_stderr=True)
        code = 130
    except BrokenPipeError:
        hush()
        code = 1
    except (OSError, RunStopped) as error:
        say(error, to_stderr=True)
        code = 1
    except RuntimeError as error:
        # Not above: commands that need no PyTorch start without it.
        from sjepa_fast.runtime.dist import lost_process

        line = lost_process(error)
        if line is None:
            raise
        say(line, to_stderr=True)
        code = 1
    sys.exit(code)
