"""The process in which inputs are made and opened: `python -m tests.fuzz.worker FOLDER`.

It reads jobs from stdin, one JSON object in a line, and writes a line for each input, in order, so
that whoever waits knows which input a dead worker was at.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import os
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

from sjepa_fast.errors import InputError
from tests.fuzz.sandbox import Executed, Sandbox
from tests.fuzz.target import Crashed, Target, Unavailable, targets_of

LONGEST = 2000  # characters of a refusal
# What libraries say where an allocation failed, in exceptions that are none of Python's.
_NO_MEMORY = ("bad_alloc", "an't allocate memory", "nable to allocate", "not enough memory")
_ROOT = str(Path(__file__).resolve().parents[2])


def execute(
    target: Target, seed: int, number: int, sandbox: Sandbox, limit: float
) -> tuple[str, str]:
    """Make and open one input, which depends on the name, the seed and its number alone."""
    rng = random.Random(f"{target.name} {seed} {number}")
    folder = sandbox.fresh()
    made = target.make(rng, folder)
    printed = io.StringIO()
    error: BaseException | None = None
    said = "accepted"
    faulthandler.dump_traceback_later(limit, exit=True)
    try:
        with (
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
            sandbox.armed(),
        ):
            said = target.run(made) or "accepted"
    except KeyboardInterrupt:
        raise
    except BaseException as caught:
        error = caught
    finally:
        faulthandler.cancel_dump_traceback_later()
    return outcome_of(said, error, printed.getvalue(), sandbox.events)


def outcome_of(
    said: str, error: BaseException | None, printed: str, events: list[str]
) -> tuple[str, str]:
    """Return the name of what happened, and its detail."""
    if events or isinstance(error, Executed):
        return "EXECUTED", (events or [str(error)])[0]
    if error is not None and _out_of_memory(error):
        return "MEMORY", _where(error)
    if isinstance(error, Crashed):
        return "CRASH", str(error)
    outcome, _, detail = said.partition(": ")
    if isinstance(error, InputError):
        outcome, detail = "refused", str(error)
    elif isinstance(error, SystemExit):
        outcome = {0: "accepted", None: "accepted", 2: "refused"}.get(error.code, "TRACEBACK")  # type: ignore[arg-type]
        detail = printed.strip() if outcome == "refused" else f"exit {error.code}: {printed[-300:]}"
    elif error is not None:
        return "TRACEBACK", _where(error)
    if outcome != "TRACEBACK" and not (is_plain(detail) and is_plain(printed)):
        return "RAW", repr(f"{detail} {printed}")[:LONGEST]
    if outcome == "refused" and (not detail or len(detail) > LONGEST or "\n" in detail):
        return "RAW", f"a refusal of {len(detail)} characters, {detail.count(chr(10)) + 1} lines"
    return outcome, detail


def is_plain(text: str) -> bool:
    """Whether a terminal shows the text as it is: no control character, bidi mark or surrogate."""
    return all(char.isprintable() or char in " \n\t" for char in text)


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in chain:
        chain.append(following)
        following = following.__cause__ or following.__context__
    return chain


def _out_of_memory(error: BaseException) -> bool:
    """Whether it, or what it was made of, came from an allocation that the limit refused."""
    return any(
        isinstance(part, MemoryError) or any(text in str(part) for text in _NO_MEMORY)
        for part in _chain(error)
    )


def _where(error: BaseException) -> str:
    """Return the exception with the innermost places in our own code."""
    frames = traceback.extract_tb(_chain(error)[-1].__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(_ROOT)] or frames
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(ours[-3:]))
    return f"{type(error).__name__} at {places}: {error!s:.200}"


def serve(jobs: TextIO, answers: TextIO, folder: Path) -> None:
    """Answer jobs until there are no more.

    A job is `{"module", "target", "seed", "start", "stop", "seconds", "limit"}`: numbers from
    start to stop, none begun after so many seconds, `limit` seconds for each. The
    answers are an empty string, or the reason for which the target cannot run here; then
    `[number, outcome, detail, seconds]` of each input, and `null`.
    """
    sandbox, setups = Sandbox(folder), 0
    tempfile.tempdir = str(sandbox.inside)
    ready: set[str] = set()

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    for line in jobs:
        job = json.loads(line)
        target = targets_of(job["module"])[job["target"]]
        if target.name not in ready:
            setups += 1
            own = folder / f"setup-{setups}"
            own.mkdir()
            try:
                target.setup(own)
            except Unavailable as reason:
                answer(str(reason))
                continue
            ready.add(target.name)
        answer("")
        until = time.monotonic() + job["seconds"]
        for number in range(job["start"], job["stop"]):
            began = time.monotonic()
            if began > until:
                break
            outcome, detail = execute(target, job["seed"], number, sandbox, job["limit"])
            answer([number, outcome, detail, time.monotonic() - began])
        answer(None)


def main() -> None:
    """Serve on stdin and stdout; what the code under test writes to stdout goes to stderr."""
    sys.dont_write_bytecode = True
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    faulthandler.enable()
    folder = Path(sys.argv[1])
    empty = folder / "empty"
    empty.mkdir()
    os.chdir(empty)
    serve(sys.stdin, answers, folder)


if __name__ == "__main__":
    main()
