"""Run many commands of the package in processes that live long, until all are done or time is up.

Importing torch, and the first use of a GPU, take longer than most of these commands. A process runs
one after another, each as its module's `main` with a log of its own. On a GPU all processes share
the device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

# Seconds between lines of progress, and how long a process may take to end when it is told to.
REPORT_S, END_S = 10.0, 10.0
# What every process has imported before its first command.
IMPORTED = ["sjepa_fast.train", "sjepa_fast.evaluate", "sjepa_fast.prepare"]


@dataclass(frozen=True)
class Job:
    """A command, and the file that is there when it has been done."""

    name: str
    """Of its log, and in the `needs` of others."""
    module: str
    words: tuple[str, ...]
    """Arguments of the module's `main`."""
    file: Path
    needs: tuple[str, ...] = ()
    """Jobs that must have been done before."""


@dataclass(frozen=True)
class Ended:
    """What became of a job."""

    name: str
    state: Literal["done", "failed", "left"]
    """left: it was not begun, or stopped, because time was up or what it needs is not there."""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    line: str = ""
    """The last that it printed before it failed."""


def run_jobs(
    jobs: list[Job],
    folder: Path,
    workers: int,
    *,
    minutes: float | None = None,
    grace: float = 30.0,
) -> list[Ended]:
    """Run the jobs whose file is not there, the first ones first, and return what became of them.

    `folder` gets a log for each job, and in `jobs.jsonl` its words and what became of it. A failing
    job stops none but those that need it. After `minutes` none is begun; what runs has `grace`
    seconds to end and is then stopped, training as by SIGTERM: it saves what it has.
    """
    begin = reported = time.monotonic()
    close = begin + 60 * minutes if minutes is not None else float("inf")
    waiting = [job for job in jobs if not job.file.exists()]
    # What is to be there before others begin; a job that is not among these is not waited for.
    missing = {job.name for job in waiting}
    ended: list[Ended] = []
    words = {job.name: job.words for job in jobs}
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    with (folder / "jobs.jsonl").open("a") as record, _Crew(folder, workers) as crew:
        while True:
            if time.monotonic() < close:
                ready = [job for job in waiting if missing.isdisjoint(job.needs)]
                for job in ready[: crew.free()]:
                    waiting.remove(job)
                    crew.give(job)
            if not crew.busy():
                break
            now = time.monotonic()
            found = crew.wait(min(REPORT_S, max(0.0, close + grace - now)))
            if time.monotonic() >= close + grace:
                found += crew.stop()
            for outcome in found:
                ended.append(outcome)
                line = dataclasses.asdict(outcome) | {"words": words[outcome.name]}
                record.write(json.dumps(line) + "\n")
                record.flush()
                if outcome.state == "done":
                    missing.remove(outcome.name)
                else:
                    print(f"{outcome.name}: {outcome.state}: {outcome.line}", flush=True)
            if now >= reported + REPORT_S:
                reported = now
                total = len(ended) + len(waiting) + len(crew.busy())
                print(f"{len(ended)} of {total} jobs, {now - begin:.0f} s", flush=True)
    for job in waiting:
        needs = [need for need in job.needs if need in missing]
        why = f"needs {needs[0]}" if needs else "time was up"
        ended.append(Ended(job.name, "left", line=why))
    counts = Counter(outcome.state for outcome in ended)
    said = ", ".join(f"{counts[state]} {state}" for state in ("done", "failed", "left"))
    print(f"{said}, in {time.monotonic() - begin:.0f} s", flush=True)
    return ended


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    job: Job | None = None
    began: float = 0.0


class _Crew:
    """Processes that are started as they are needed, and one in place of each that dies."""

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most
        self.workers: list[_Worker] = []
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(IMPORTED)

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *raised: object) -> None:
        """End all processes; what still runs is stopped."""
        for worker in self.workers:
            if worker.job is None:
                with contextlib.suppress(OSError):
                    worker.pipe.send(None)
            else:
                worker.process.terminate()
        end = time.monotonic() + END_S
        for worker in self.workers:
            worker.process.join(max(0.0, end - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()

    def busy(self) -> list[_Worker]:
        return [worker for worker in self.workers if worker.job is not None]

    def free(self) -> int:
        return self.most - len(self.busy())

    def give(self, job: Job) -> None:
        """Give a job to an idle process, or to a new one."""
        worker = next((worker for worker in self.workers if worker.job is None), None)
        if worker is None:
            ours, theirs = self.context.Pipe()
            process = self.context.Process(target=_work, args=(theirs, self.folder), daemon=True)
            # One thread each: as many processes as cores do more than one with as many threads.
            with _environment(OMP_NUM_THREADS="1"):
                process.start()
            theirs.close()
            self.workers.append(worker := _Worker(process, ours))
        worker.job, worker.began = job, time.monotonic()
        worker.pipe.send(job)

    def wait(self, seconds: float) -> list[Ended]:
        """Wait until a job ends, at most so long; return what has become of those that ended."""
        things = [thing for w in self.busy() for thing in (w.pipe, w.process.sentinel)]
        signalled = wait(things, seconds)
        found = []
        for worker in self.busy():
            if worker.pipe in signalled or worker.process.sentinel in signalled:
                found.append(self._outcome(worker))
        return found

    def _outcome(self, worker: _Worker) -> Ended:
        job, worker.job = worker.job, None
        assert job is not None
        try:
            if worker.pipe.poll():
                outcome: Ended = worker.pipe.recv()
                return outcome
        except (EOFError, OSError):
            pass
        worker.process.join()
        worker.pipe.close()
        self.workers.remove(worker)
        how = f"its process ended with {worker.process.exitcode}"
        return Ended(job.name, "failed", time.monotonic() - worker.began, line=how)

    def stop(self) -> list[Ended]:
        """Stop what runs; training saves its checkpoint. Return what became of it."""
        for worker in self.busy():
            worker.process.terminate()
        end, found = time.monotonic() + END_S, []
        while self.busy() and time.monotonic() < end:
            found += self.wait(end - time.monotonic())
        for worker in self.busy():
            assert worker.job is not None
            worker.process.kill()
            found.append(self._outcome(worker))
        return [
            outcome if outcome.state == "done" else replace(outcome, state="left", line="stopped")
            for outcome in found
        ]


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set variables for what is started in the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(pipe: Connection, folder: Path) -> None:
    """Run the jobs that come through a pipe, until None comes."""
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        if job is None:
            return
        began, cpu = time.perf_counter(), time.process_time()
        log = folder / "logs" / f"{job.name}.log"
        code = _call(job, log)
        state: Literal["done", "failed"] = "failed"
        line = ""
        if code == 0 and job.file.exists():
            state = "done"
        else:
            lines = log.read_text(errors="replace").split("\n")
            last = next((text for text in reversed(lines) if text.strip()), "it printed nothing")
            line = last if code else f"it did not write {job.file}"
        times = (time.perf_counter() - began, time.process_time() - cpu)
        pipe.send(Ended(job.name, state, *times, line=line))


def _call(job: Job, log: Path) -> int:
    """Run a job as its module's command would, with what it prints in a log; return its code."""
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        importlib.import_module(job.module).main(list(job.words))
        return 0
    except SystemExit as stop:
        if isinstance(stop.code, int) or stop.code is None:
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        _forget()


def _forget() -> None:
    """Give back what a job has left in memory, so that the next one finds a fresh process."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
