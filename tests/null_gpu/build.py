"""Builds the null driver with g++ and pip's headers, and says in which environment to use it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).resolve().parent / "driver"
# Where libraries, and what Triton and Inductor compile, are kept between processes.
CACHE = Path(os.environ.get("NULLGPU_CACHE", ROOT / "build" / "null_gpu"))
# The names under which programs look for the driver.
LIBRARY = "libcuda.so.1"
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Wshadow", "-Wconversion")


class Unavailable(Exception):
    """There is no null GPU here; the message says what is missing."""


def header_options(site: Path) -> list[str]:
    """Compiler options that find the headers of CUDA 13 in the site-packages folder `site`.

    Triton brings those that the wheel of the runtime leaves out; they must come last.
    """
    first = [site / "nvidia" / "cu13" / "include", site / "nvidia" / "cudnn" / "include"]
    last = site / "triton" / "backends" / "nvidia" / "include"
    for folder in (*first, last):
        if not folder.is_dir():
            raise Unavailable(f"no CUDA build of torch here: {folder} is missing")
    return [word for folder in first for word in ("-isystem", str(folder))] + [
        "-idirafter",
        str(last),
    ]


def build(site: Path | None = None) -> Path:
    """Build the driver unless it was built from the same sources, and return its folder."""
    options = header_options(site or Path(sysconfig.get_paths()["purelib"]))
    compiler = shutil.which("g++")
    if compiler is None:
        raise Unavailable("no C++ compiler here: g++ is missing")
    files = sorted(SOURCES.glob("*.cpp"))
    known = hashlib.sha256(" ".join([*FLAGS, *options]).encode())
    for path in [*files, *sorted(SOURCES.glob("*.h"))]:
        known.update(path.name.encode() + path.read_bytes())
    folder = CACHE / known.hexdigest()[:16]
    if not (folder / LIBRARY).exists():
        folder.mkdir(parents=True, exist_ok=True)
        # Under a name of this process first: another one may build the same.
        fresh = folder / f"{LIBRARY}.{os.getpid()}"
        words = [compiler, *FLAGS, *options, *map(str, files), "-o", str(fresh), "-ldl"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode or done.stderr:
            raise RuntimeError(f"the null driver does not compile cleanly:\n{done.stderr}")
        fresh.rename(folder / LIBRARY)
    return folder


def environment(folder: Path, *, gib: float | None = None, zeros: bool = False) -> dict[str, str]:
    """Return the environment of a process on the null GPU, whose driver lies in `folder`.

    `gib` is the memory of its card, by default that of an H100; with `zeros` the host reads zeros
    of it.
    """
    # A pytest that runs there is no worker of this one.
    found = {name: x for name, x in os.environ.items() if not name.startswith("PYTEST_XDIST")}

    def first(*paths: Path, name: str) -> str:
        return os.pathsep.join(filter(None, [*map(str, paths), found.get(name)]))

    found |= {
        "LD_PRELOAD": str(folder / LIBRARY),
        "LD_LIBRARY_PATH": os.pathsep.join(
            filter(None, [str(folder), found.get("LD_LIBRARY_PATH")])
        ),
        "TRITON_LIBCUDA_PATH": str(folder),
        "PYTHONPATH": first(ROOT, ROOT / "kernels", name="PYTHONPATH"),
        "TRITON_CACHE_DIR": found.get("TRITON_CACHE_DIR", str(CACHE / "triton")),
        "TORCHINDUCTOR_CACHE_DIR": found.get("TORCHINDUCTOR_CACHE_DIR", str(CACHE / "inductor")),
        # Compilers that are processes of their own cost more than they save on few cores.
        "TORCHINDUCTOR_COMPILE_THREADS": found.get("TORCHINDUCTOR_COMPILE_THREADS", "1"),
    }
    if zeros:
        found["NULLGPU_ZEROS"] = "1"
    if gib is not None:
        found["NULLGPU_GIB"] = str(gib)
    return found
