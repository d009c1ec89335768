"""`python -m tests.data.full_size NAME FOLDER`: peak memory of `prepare` at the size of NTU-120.

Writes generated text (a few distinct files, hard-linked under all 114,480 names) or an `.npz` of
113,945 padded rows, prepares it in a process of its own, and prints that process's peak memory.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import resource
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np

from sjepa_fast.data.readers.ntu_splits import NTU120_TRAIN_SUBJECTS
from sjepa_fast.runtime.files import write_json

FILES, DISTINCT = 114_480, 24
ROWS = {"train": 63_026, "test": 50_919}
LIMIT = 4 * 2**30


def skeleton_text(rng: np.random.Generator, bodies: int, frames: int) -> str:
    """A file as the camera writes it: twelve columns for each joint."""
    joints = rng.normal(size=(frames, bodies, 25, 3)) * [0.1, 0.6, 0.1] + [0, 0, 3]
    rest = "277.4190 191.8218 1036.2330 519.1677 -0.2059419 0.05349901 0.9692109 -0.1239193 2"
    parts = [f"{frames}\n"]
    for frame in joints:
        parts.append(f"{bodies}\n")
        for body, rows in enumerate(frame):
            parts.append(f"7205759403793{body} 0 1 1 1 1 0 -0.1057 0.2114 2\n25\n")
            parts += [f"{x:.7f} {y:.7f} {z:.7f} {rest}\n" for x, y, z in rows]
    return "".join(parts)


def write_ntu(folder: Path) -> Path:
    """Write the names of the whole set, over a few files of 40 to 160 frames."""
    rng = np.random.default_rng(0)
    raw = folder / "nturgb+d_skeletons"
    raw.mkdir(parents=True)
    texts = folder / "texts"
    texts.mkdir()
    for i in range(DISTINCT):
        frames = int(rng.integers(40, 160))
        (texts / str(i)).write_text(skeleton_text(rng, 1 + (i % 4 == 0), frames))
    for n in range(FILES):
        action, rest = n % 120 + 1, n // 120
        subject, setup = rest % 106 + 1, rest // 106 % 32 + 1
        name = f"S{setup:03d}C{n % 3 + 1:03d}P{subject:03d}R{n // 60 % 2 + 1:03d}A{action:03d}"
        os.link(texts / str(n % DISTINCT), raw / f"{name}.skeleton")
    assert len(NTU120_TRAIN_SUBJECTS) == 53
    return raw


def write_ctrgcn(folder: Path) -> Path:
    """Write the padded rows of the whole set, deflated, one after another."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    rows = []
    for i in range(DISTINCT):
        row, frames = np.zeros((300, 150), np.float32), int(rng.integers(40, 160))
        row[:frames, : 75 * (1 + (i % 4 == 0))] = rng.normal(size=(frames, 75 * (1 + (i % 4 == 0))))
        rows.append(row.tobytes())
    path = folder / "NTU120_CSub.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for part, count in ROWS.items():
            for name, dtype, shape in (
                (f"x_{part}", "<f4", (count, 300, 150)),
                (f"y_{part}", "<f8", (count, 120)),
            ):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    header = {"descr": dtype, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)
                    for i in range(count):
                        one_hot = np.eye(1, 120, i % 120).tobytes()
                        file.write(rows[i % DISTINCT] if name[0] == "x" else one_hot)
    return path


def main() -> None:
    """Write, prepare, print one JSON line; end with 1 if the limit was passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.data.full_size", description=__doc__)
    parser.add_argument("name", choices=("ntu120", "ctrgcn"))
    parser.add_argument("folder", type=Path, help="new folder; it needs 6 GB")
    parser.add_argument("--out", type=Path, help="JSON file that gets the figures, beside others")
    args = parser.parse_args()
    raw = {"ntu120": write_ntu, "ctrgcn": write_ctrgcn}[args.name](args.folder)
    began = time.monotonic()
    command = ["sjepa_fast.prepare", args.name, "--raw", raw, "--out", args.folder / "store"]
    words = [sys.executable, "-m", *map(str, command)]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(done.stdout[-1500:], done.stderr[-300:])
    seconds = round(time.monotonic() - began)
    clips = re.search(r": (\d+) clips", done.stdout)
    row = {
        "command": f"python -m tests.data.full_size {args.name} FOLDER",
        "date": datetime.date.today().isoformat(),
        "clips": int(clips[1]) if clips else 0,
        "peak_mib": peak // 2**20,
        "seconds": seconds,
    }
    print(json.dumps(row))
    if args.out is not None:
        rows = {"command": "python -m tests.data.full_size NAME FOLDER --out FILE"}
        if args.out.exists():
            rows |= json.loads(args.out.read_text())
        write_json(args.out, {**rows, args.name: row})
    sys.exit(done.returncode or int(peak > LIMIT))


if __name__ == "__main__":
    main()
