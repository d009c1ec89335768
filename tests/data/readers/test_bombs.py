"""Small files that would be large in memory, and how much of it refusing them takes."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.data.readers.test_mocap import JOINTS, bvh_text
from tests.data.test_safe_arrays import npy
from tests.tiny import run_python

RNG = np.random.default_rng(0)
ROW = np.zeros((1, 300, 150), np.float32)
ONE_HOT = np.eye(60)[:1]


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as opened:
        for name, data in members.items():
            opened.writestr(f"{name}.npy", data)
    return path


def ctrgcn(path: Path, **change: bytes) -> Path:
    x, y = npy(ROW), npy(ONE_HOT)
    parts = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
    return archive(path, **(parts | change))


def dense_rows(count: int) -> np.ndarray:
    """Rows of which deflate leaves about one byte in 150: zeros with some NaN of any payload."""
    rows = np.zeros((count, *ROW.shape[1:]), np.float32)
    odd = 0x7FC00000 | RNG.integers(1, 2**22, (count, 300), dtype=np.uint32)
    rows[:, :, 0] = odd.view(np.float32)
    return rows


def table(folder: Path, text: str = "name,label\na,0\n") -> Path:
    folder.mkdir()
    (folder / "labels.csv").write_text(text)
    return folder


def clip(folder: Path, name: str, data: bytes) -> Path:
    (table(folder) / name).write_bytes(data)
    return folder


def folder_of(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return folder


def motion(folder: Path, lines: int, row: str, end: str = "\n", offset: str = "0 0 0") -> Path:
    """A folder with one BVH file of so many rows."""
    text = bvh_text(np.zeros((1, 3)), np.zeros((1, len(JOINTS), 3)), 1.0).partition("MOTION")[0]
    head = text.replace("0.000000 0.000000 0.000000", offset, 1)
    head = f"{head}MOTION\nFrames: {lines}\nFrame Time: 0.03\n".replace("\n", end)
    return clip(folder, "a.bvh", (head + (row + end) * lines).encode())


def recording(folder: Path, data: bytes) -> Path:
    folder_of(folder, "skeleton/0002-L.txt", data)
    (folder / "label").mkdir()
    (folder / "label" / "0002-L.txt").write_text("1,0,9,2\n")
    return folder


NTU = "S001C001P001R001A001.skeleton"
PERSON = '{"image_id": 1, "keypoints": [' + "1," * 50 + "1]}"
# A reader with its layout, and what is written for it.
BOMBS: dict[str, tuple[str, str, Callable[[Path], Path]]] = {
    "a header of terabytes": (
        "ctrgcn", "", lambda path: ctrgcn(path, x_train=npy(ROW, shape=(2**40, 300, 150)))
    ),
    "frames of gigabytes": (
        "ctrgcn", "", lambda path: ctrgcn(path, x_train=npy(ROW, shape=(1, 2**32, 150)))
    ),
    "a deflated gigabyte": (
        "ctrgcn", "", lambda path: ctrgcn(
            path, x_train=npy(ROW, shape=(1, 2**18, 150)) + bytes(2**18 * 600 - 180_000)
        )
    ),
    "a set that is dense, but no more than real ones": (
        "ctrgcn", "", lambda path: ctrgcn(
            path, x_train=npy(dense_rows(3500)), y_train=npy(ONE_HOT.repeat(3500, axis=0))
        )
    ),
    "labels without end": (
        "ctrgcn", "", lambda path: ctrgcn(path, y_train=npy(np.zeros((2**26, 1), bool)))
    ),
    "a ragged header": ("nucla", "", lambda path: archive(
        path, **{name: npy(ROW, descr="<U99999999") for name in (
            *("joints", "offsets", "label", "name", "class_names", "joint_names"),
            *("subject", "camera", "trial", "leaked_test"),
        )}
    )),
    "a header of a clip": (
        "generic", "ntu25", lambda path: clip(path, "a.npy", npy(ROW, shape=(2**40, 25, 3)))
    ),
    "the largest clip of images": (
        "generic", "coco17",
        lambda path: clip(path, "a.npy", npy(RNG.integers(1, 99, (2**22 // 34, 17, 2), np.int8))),
    ),
    "the largest clip": (
        "generic", "ntu25", lambda path: clip(path, "a.npy", npy(np.ones((2**22 // 75, 25, 3)))),
    ),
    "objects in JSON": (
        "generic", "coco17", lambda path: clip(path, "a.json", b"[" + b'{"a":0},' * 2**20 + b"0]")
    ),
    "lists in JSON": (
        "generic", "coco17", lambda path: clip(path, "a.json", b"[" + b"[]," * 11_000_000 + b"0]")
    ),
    "text in JSON": (
        "generic", "coco17",
        lambda path: clip(path, "a.json", b'["' + "\U0001f480".encode() * (2**23 - 2) + b'"]'),
    ),
    "people in JSON": (
        "generic", "coco17",
        lambda path: clip(path, "a.json", f"[{','.join([PERSON] * 50_000)}]".encode()),
    ),
    "a wide table": (
        "generic", "ntu25",
        lambda path: table(path, "name,label" + ",c" * 50_000 + "\n" + "a\n" * 50_000),
    ),
    "a long table": (
        "generic", "ntu25", lambda path: table(path, "name,label\n" + "a,0\n" * (2**20 + 1))
    ),
    "a claim in text": ("pku1", "", lambda path: folder_of(
        path, "F002V001C007L001.skeleton", b"999999999\n1\nh\n25\n"
    )),
    "frames without bodies": (
        "ntu60", "", lambda path: folder_of(path, NTU, b"9" * 12 + b"\n" + b"0\n" * 2_000_000)
    ),
    "bodies without width": ("ntu60", "", lambda path: folder_of(
        path, NTU, b"1\n99999\n" + (b"1\n25\n" + b"1 1 1\n" * 25) * 90_000
    )),
    "short lines": ("pku1", "", lambda path: recording(path, b"1\n" * 2**24)),
    "one long line": ("pku1", "", lambda path: recording(path, b"1 " * 2**24)),
    "sets in a pickle": ("pyskl", "", lambda path: (
        path.write_bytes(b"\x80\x04(" + b"\x8f" * 2**19 + b"l."), path
    )[1]),
    "a BVH file with the ends of lines of old": (
        "generic", "ntu25", lambda path: motion(path, 480_000, "0 " * 65 + "0", end="\r")
    ),
    "a long line of a BVH file": ("generic", "ntu25", lambda path: motion(path, 1, "1 " * 2**24)),
    "a long line of a BVH hierarchy": (
        "generic", "ntu25", lambda path: motion(path, 1, "0 0 0", offset="1 " * 2**24)
    ),
    "a wide BVH file": (
        "generic", "ntu25", lambda path: motion(path, 470, " ".join(["0.123456"] * 8000))
    ),
    "the most motion of a BVH file": (
        "generic", "ntu25", lambda path: motion(path, 2**22 // 66 - 9, "0.123456 " * 65 + "0")
    ),
    "a memo in a pickle": ("pyskl", "", lambda path: (
        path.write_bytes(b"\x80\x04Nr\xff\xff\xff\x7f."), path
    )[1]),
}  # fmt: skip
# A limit that is met shows as a refusal too, so it is far above what is allowed.
CHILD = """
import json, re, resource, sys, time
from pathlib import Path
from sjepa_fast.errors import InputError
from sjepa_fast.prepare import PrepareConfig, prepare
jobs, out = json.loads(sys.argv[1]), Path(sys.argv[2])
status = Path("/proc/self/status")
of = lambda name: int(re.search(name + r":\\s+(\\d+) kB", status.read_text())[1]) / 1024
resource.setrlimit(resource.RLIMIT_AS, (int(of("VmSize") + 16 * 1024) * 2**20,) * 2)
for kind, name, raw, layout in jobs:
    Path("/proc/self/clear_refs").write_text("5")
    taken, began = of("VmRSS"), time.process_time()
    try:
        prepare(PrepareConfig(name, Path(raw), out / "out", layout=layout, overwrite=True))
        what = "prepared"
    except InputError as error:
        what = f"refused: {error}"
    row = [kind, what, time.process_time() - began, of("VmHWM") - taken]
    print(json.dumps(row), file=sys.stderr, flush=True)
"""
MIB = 512


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.slow
def test_a_bomb_takes_neither_memory_nor_time(tmp_path: Path) -> None:
    jobs = []
    for kind, (name, layout, make) in BOMBS.items():
        jobs.append((kind, name, str(make(tmp_path / kind)), layout))
    done = run_python("-c", CHILD, json.dumps(jobs), str(tmp_path), timeout=300)
    ended = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[")]
    assert done.returncode == 0, done.stderr[-3000:]
    assert [kind for kind, *_ in ended] == list(BOMBS)
    for kind, what, seconds, megabytes in ended:
        assert seconds < 10, (kind, seconds)
        assert megabytes < MIB, (kind, megabytes)
        assert (what == "prepared") == kind.startswith("the largest"), (kind, what)
