"""Everything that is claimed about speed, measured by one command on one machine, in nine minutes.

python benchmarks/gpu_report.py [--minutes 9] [--out FOLDER] [--bundle TGZ] [--only SECTION ...]

It needs torch, NumPy and pytest-benchmark, on a GPU also Triton, and plots where Matplotlib is.
Into `benchmarks/results/DEVICE/` it writes `report.json`, `report.md` and pictures; with `--bundle`
into one archive alone, which is made anew after every row. On a machine without a GPU the
shapes are scaled down: such a report shows that the command works, and its figures are no claim.

Sections run in a worker process. One that fails, hangs, or loses the device ends only its worker:
its rows so far are in the file, and a new worker continues with the next section.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT / "kernels", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from benchmarks.report import fit, sections  # noqa: E402
from benchmarks.report.book import DONE, FAILED, LATE, RUNNING, Book, DeviceLostError, read_report  # noqa: E402
from benchmarks.report.bundle import write_bundle  # noqa: E402
from benchmarks.report.devices import TABLE  # noqa: E402
from benchmarks.report.page import page  # noqa: E402
from benchmarks.report.plots import draw  # noqa: E402
from sjepa_fast.runtime.files import write_json, write_text  # noqa: E402
from sjepa_kernels.attention.backends import take_over  # noqa: E402

LOST = 3


def work(path: Path, names: list[str], small: bool, end: float) -> int:
    """Run sections one after another in this process; the worker's part.

    Returns:
        0, or `LOST` when the device no longer answers.
    """
    device = "cpu" if small else "cuda"
    table = path.with_name(TABLE)
    if table.exists():
        # Measured by a worker before this one.
        take_over(json.loads(table.read_text())["entries"])
    places = {section.name: section.place for section in sections.SECTIONS}
    for i, name in enumerate(names):
        start = time.time()
        budget = sections.budget(names[i:], small, end - start)
        book = Book(path, name, device, small, start + budget)
        book.write(status=RUNNING, began=start, budget_s=budget)
        try:
            module, function = places[name].split(":")
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


def supervise(
    path: Path, names: list[str], small: bool, end: float, show: Callable[[], None]
) -> None:
    """Start workers until every section has been tried; `show` what is new in the report."""
    waiting = list(names)
    while waiting and time.time() < end - 5:
        command = [sys.executable, __file__, "--work", str(path), "--until", str(end)]
        command += [*(["--small"] if small else []), "--only", *waiting]
        # A session of its own, so that the processes that a worker started end with it.
        worker = subprocess.Popen(command, start_new_session=True)
        seen = 0.0
        try:
            while worker.poll() is None:
                time.sleep(0.2)
                name, entry = current(path)
                late = entry.get("began", end) + entry.get("budget_s", 0) + sections.GRACE
                if time.time() > late:
                    stop(worker)
                    if name is not None:
                        Book(path, name, "", small, 0).write(status=LATE)
                changed = path.stat().st_mtime
                if changed != seen:
                    seen = changed
                    show()
        finally:
            stop(worker)
        name, _ = current(path)
        if name is not None:
            words = f"its process ended with code {worker.returncode}"
            Book(path, name, "", small, 0).write(status=FAILED, error=words)
        done = finished(path)
        before_this, waiting = waiting, [name for name in waiting if name not in done]
        if waiting == before_this and time.time() < end:
            raise RuntimeError(f"the worker ended with code {worker.returncode} before it began")
    for name in waiting:
        Book(path, name, "", small, 0).write(status=LATE)


def stop(worker: subprocess.Popen[bytes]) -> None:
    """End a worker, if it still runs, with all that it started."""
    if worker.poll() is None:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def finished(path: Path) -> list[str]:
    """Return the sections that have ended, well or not."""
    entries = read_report(path)["sections"].items()
    return [name for name, entry in entries if entry.get("status") not in (None, RUNNING)]


def current(path: Path) -> tuple[str | None, dict[str, Any]]:
    """Return name and entry of the section that is running, if any."""
    for name, entry in read_report(path)["sections"].items():
        if entry.get("status") == RUNNING:
            return name, entry
    return None, {}


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


def complete(report: dict[str, Any], out: Path) -> None:
    """Add to a report what is made of its rows: predictions, the fitted model, the pictures.

    The predictions are of the constants that were committed before: once those are fitted to this
    report, they would say nothing.
    """
    for row in report["sections"].get("steps", {}).get("rows", []):
        if "ms" in row and (model := fit.predicted(report["device"], row)) is not None:
            row["predicted_ms"] = model
    try:
        report["model"] = fit.fitted(report)
    except Exception as error:
        report["model"] = f"No fit: {error!r}"
    try:
        report["plots"] = draw(report, out)
    except Exception as error:
        report["plots"] = f"No pictures: {error}"


def main(argv: list[str] | None = None) -> int:
    """Measure, or run as a worker."""
    start = time.time()
    known = [section.name for section in sections.SECTIONS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=sections.MINUTES, help="for everything")
    parser.add_argument("--out", type=Path, help="folder; benchmarks/results/DEVICE")
    parser.add_argument("--bundle", type=Path, help="archive, .tgz; without --out nothing else")
    parser.add_argument("--only", nargs="+", choices=known, default=known, metavar="SECTION")
    parser.add_argument("--small", action="store_true", help="on the CPU, scaled down")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    chosen = [name for name in known if name in asked.only]
    if asked.work is not None:
        return work(asked.work, chosen, asked.small, asked.until)

    import torch

    small = asked.small or not torch.cuda.is_available()
    found = facts(small)
    with contextlib.ExitStack() as stack:
        name = re.sub(r"[^a-z0-9]+", "-", found["device"].lower()).strip("-")
        out: Path = ROOT / "benchmarks" / "results" / (f"{'small' if small else 'gpu'}-{name}")
        if asked.out is not None:
            out = asked.out
        elif asked.bundle is not None:
            out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpu-report-")))
        out.mkdir(parents=True, exist_ok=True)
        path = out / "report.json"

        def show() -> None:
            write_text(out / "report.md", page(read_report(path)))
            if asked.bundle is not None:
                write_bundle(out, asked.bundle)

        # In the order of the page; rows of an earlier report would not belong to this one's date.
        write_json(path, {**found, "sections": {section: {"rows": []} for section in chosen}})
        # A time limit from outside: what is measured so far is still packed.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            supervise(path, chosen, small, sections.last_end(start, asked.minutes), show)
        finally:
            show()
            report = read_report(path)
            complete(report, out)
            report["minutes"] = round((time.time() - start) / 60, 2)
            write_json(path, report)
            show()
    print(asked.bundle or out / "report.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
