"""Everything that is claimed about speed, measured by one command on one machine, in nine minutes.

python benchmarks/gpu_report.py [--minutes 9] [--out FOLDER] [--only SECTION ...]

It needs torch, NumPy and pytest-benchmark, on a GPU also Triton, and plots where Matplotlib is.
Into `benchmarks/results/DEVICE/` it writes `report.json`, `report.md` and pictures. On a machine
without a GPU the shapes are scaled down: such a report shows that the command works, and its
figures are no claim.

Sections run in a worker process. One that fails, hangs, or loses the device ends only its worker:
its rows so far are in the file, and a new worker continues with the next section.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT / "kernels", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from benchmarks.report.book import DONE, FAILED, LATE, RUNNING, Book, DeviceLostError, read_report  # noqa: E402
from benchmarks.report.page import page  # noqa: E402
from benchmarks.report.plots import draw  # noqa: E402
from sjepa_fast.runtime.files import write_json, write_text  # noqa: E402

# Name, function, seconds on a GPU, seconds of the small version. The most wanted come first.
SECTIONS: tuple[tuple[str, str, float, float], ...] = (
    ("ceilings", "benchmarks.report.devices:ceilings", 15, 10),
    ("steps", "benchmarks.report.steps:rungs", 170, 30),
    ("breakdown", "benchmarks.report.steps:breakdown", 30, 15),
    ("attention", "benchmarks.report.devices:attention_section", 60, 15),
    ("bodies and masks", "benchmarks.report.steps:bodies", 25, 15),
    ("long run", "benchmarks.report.steps:long_run", 85, 15),
    ("growth", "benchmarks.report.steps:growth", 45, 15),
    ("hours", "benchmarks.report.steps:projections", 25, 15),
    ("operations", "benchmarks.report.ops:ops", 150, 30),
)
# A section that does not end by itself is ended this many seconds after its time.
GRACE = 20.0
LOST = 3


def work(path: Path, names: list[str], small: bool, deadline: float) -> int:
    """Run sections one after another in this process; the worker's part.

    Returns:
        0, or `LOST` when the device no longer answers.
    """
    device = "cpu" if small else "cuda"
    for name, place, on_gpu, on_cpu in SECTIONS:
        if name not in names:
            continue
        start = time.time()
        budget = min(on_cpu if small else on_gpu, deadline - start)
        book = Book(path, name, device, small, start + budget)
        book.write(status=RUNNING, began=start, budget_s=budget)
        try:
            module, function = place.split(":")
            getattr(importlib.import_module(module), function)(book)
            book.write(status=DONE)
        except DeviceLostError as error:
            book.write(status=FAILED, error=f"the device answers no more: {error}"[:300])
            return LOST
        except Exception as error:
            last = traceback.format_exc().strip().splitlines()[-3:]
            book.write(status=FAILED, error=f"{type(error).__name__}: {error}"[:300], trace=last)
        finally:
            book.write(seconds=time.time() - start)
    return 0


def supervise(out: Path, names: list[str], small: bool, deadline: float) -> None:
    """Start workers until every section has been tried; keep the page up to date."""
    path = out / "report.json"
    waiting = list(names)
    while waiting and time.time() < deadline - 5:
        command = [sys.executable, __file__, "--work", str(path), "--until", str(deadline)]
        command += [*(["--small"] if small else []), "--only", *waiting]
        # A session of its own, so that the processes that a worker started end with it.
        worker = subprocess.Popen(command, start_new_session=True)
        seen = 0.0
        while worker.poll() is None:
            time.sleep(0.2)
            running = current(path)
            if running is not None:
                name, entry = running
                if time.time() > entry["began"] + entry["budget_s"] + GRACE:
                    os.killpg(worker.pid, signal.SIGKILL)
                    worker.wait()
                    Book(path, name, "", small, 0).write(status=LATE)
            changed = path.stat().st_mtime
            if changed != seen:
                seen = changed
                write_text(out / "report.md", page(read_report(path)))
        running = current(path)
        if running is not None:
            words = f"its process ended with code {worker.returncode}"
            Book(path, running[0], "", small, 0).write(status=FAILED, error=words)
        sections = read_report(path)["sections"]
        before, waiting = waiting, [name for name in waiting if "status" not in sections[name]]
        if waiting == before:
            raise RuntimeError(f"the worker ended with code {worker.returncode} before it began")
    for name in waiting:
        Book(path, name, "", small, 0).write(status=LATE)


def current(path: Path) -> tuple[str, dict[str, Any]] | None:
    """Return the section that is running, if any."""
    for name, entry in read_report(path)["sections"].items():
        if entry.get("status") == RUNNING:
            return name, entry
    return None


def facts(small: bool) -> dict[str, Any]:
    """Describe machine and versions, as a worker would find them."""
    import torch

    from benchmarks.conftest import cpu_name

    found: dict[str, Any] = {
        "command": "python benchmarks/gpu_report.py",
        "date": time.strftime("%Y-%m-%d"),
        "device": cpu_name() if small else torch.cuda.get_device_name(),
        "small": small,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if not small:
        found["cuda"], found["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
        found["memory_gib"] = torch.cuda.get_device_properties(0).total_memory / 2**30
        query = "clocks.sm,clocks.max.sm,temperature.gpu,power.limit,driver_version"
        try:
            found["nvidia_smi"] = subprocess.run(
                ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            ).stdout.strip()
        except OSError:
            found["nvidia_smi"] = "not found"
    return found


def main(argv: list[str] | None = None) -> int:
    """Measure, or run as a worker."""
    known = [name for name, *_ in SECTIONS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything")
    parser.add_argument("--out", type=Path, help="folder; benchmarks/results/DEVICE")
    parser.add_argument("--only", nargs="+", choices=known, default=known, metavar="SECTION")
    parser.add_argument("--small", action="store_true", help="on the CPU, scaled down")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if asked.work is not None:
        return work(asked.work, asked.only, asked.small, asked.until)

    deadline = time.time() + 60 * asked.minutes
    import torch

    small = asked.small or not torch.cuda.is_available()
    found = facts(small)
    name = re.sub(r"[^a-z0-9]+", "-", found["device"].lower()).strip("-")
    default = ROOT / "benchmarks" / "results" / (f"small-{name}" if small else f"gpu-{name}")
    out: Path = asked.out or default
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.json"
    # In the order of the page; rows of an earlier report would not belong to this one's date.
    write_json(path, {**found, "sections": {section: {"rows": []} for section in asked.only}})
    try:
        # The pictures need some seconds at the end.
        supervise(out, asked.only, small, deadline - (5 if small else 15))
    finally:
        report = read_report(path)
        report["minutes"] = round((time.time() - deadline) / 60 + asked.minutes, 2)
        try:
            report["plots"] = draw(report, out)
        except Exception as error:
            report["plots"] = f"No pictures: {error}"
        write_json(path, report)
        write_text(out / "report.md", page(report))
    print(out / "report.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
