"""`.npy` and `.npz` of strangers: what a header claims is checked before it is allocated."""

import io
import os
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sjepa_fast.data.safe_arrays import Npz, load_npy, map_npy, npy_shape, texts_of
from sjepa_fast.opening import Unreadable

ARRAY = np.arange(24, dtype=np.float32).reshape(2, 4, 3)


def npy(array: np.ndarray, **claims: object) -> bytes:
    """The bytes of a `.npy` whose header claims something else."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape} | claims
    text = repr(header).encode().ljust(118 + len(repr(header)) // 118 * 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + file.getvalue()[128:]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i2", "<U3"])
def test_sound_arrays_are_what_numpy_reads(tmp_path: Path, order: str, dtype: str) -> None:
    array = np.asarray(ARRAY.astype(dtype), order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "a.npy", array)
    found = load_npy(tmp_path / "a.npy", 24)
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype and npy_shape(tmp_path / "a.npy") == array.shape
    np.savez(tmp_path / "b.npz", a=array)
    np.savez_compressed(tmp_path / "c.npz", a=array)
    for name in ("b.npz", "c.npz"):
        with Npz(tmp_path / name) as archive:
            np.testing.assert_array_equal(archive.load("a", 1000), array)
    if order == "C":
        np.testing.assert_array_equal(map_npy(tmp_path / "a.npy"), array)


HEADERS = {
    "claims terabytes": (npy(ARRAY, shape=(2**40, 4, 3)), "ends early"),
    "negative": (npy(ARRAY, shape=(-2, 4, 3)), "readable"),
    "wide text": (npy(ARRAY, descr="<U2147483647"), "ends early|type <U"),
    "objects": (npy(np.array([{}], dtype=object)), "objects"),
    "structured": (npy(ARRAY, descr=[("a", "<f4")]), "readable"),
    "no width": (npy(ARRAY, descr="|V0", shape=(10**12,)), "type"),
    "times": (npy(ARRAY, descr="<M8[s]"), "type"),
    "no header": (b"\x93NUMPY\x01\x00\x10\x00abc", "readable"),
    "long header": (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{", "header of 2147483648"),
    "version 9": (b"\x93NUMPY\x09\x00" + b" " * 200, "version"),
    "deep": (b"\x93NUMPY\x01\x00\xf0\x0f" + b"(" * 4080, "readable"),
    "code": (
        b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': __import__('os'), }".ljust(118),
        "none of plain values",
    ),
    "digits": (npy(ARRAY, shape=(10**30,)), "none of plain values"),
    "twice": (
        b"\x93NUMPY\x01\x00\x76\x00" + b"{'shape': (1,), 'shape': (2,), }".ljust(118),
        "none of plain values",
    ),
    "not numpy": (b"PK\x03\x04", "version"),
    "empty": (b"", "version"),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_that_claim_too_much_are_refused(tmp_path: Path, kind: str) -> None:
    data, words = HEADERS[kind]
    (tmp_path / "a.npy").write_bytes(data)
    for read in (lambda path: load_npy(path, 100), map_npy):
        with pytest.raises(Unreadable, match=words):
            read(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", data)
    with (
        Npz(tmp_path / "a.npz") as found,
        pytest.raises(Unreadable, match=rf"^a .*({words}|bytes)"),
    ):
        found.load("a", 1000)


def test_more_values_than_wanted_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ARRAY)
    np.savez(tmp_path / "a.npz", a=ARRAY)
    with pytest.raises(Unreadable, match="more than 23 values"):
        load_npy(tmp_path / "a.npy", 23)
    with Npz(tmp_path / "a.npz") as archive, pytest.raises(Unreadable, match="at most 95"):
        archive.load("a", 95)


def test_a_mapped_file_has_the_length_of_its_header(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(npy(ARRAY) + b"x")
    with pytest.raises(Unreadable, match="longer"):
        map_npy(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.asfortranarray(ARRAY))
    with pytest.raises(Unreadable, match="Fortran"):
        map_npy(tmp_path / "a.npy")


def test_headers_of_python_2_and_of_other_writers(tmp_path: Path) -> None:
    for text in (
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 4L, 3L), }",
        b"{'shape':(2,4,3),'fortran_order':False,'descr':'<f4'}",
    ):
        head = b"\x93NUMPY\x01\x00\x76\x00" + text.ljust(117) + b"\n"
        (tmp_path / "a.npy").write_bytes(head + ARRAY.tobytes())
        np.testing.assert_array_equal(load_npy(tmp_path / "a.npy", 24), ARRAY)


def archive_of(path: Path, *members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as archive:
        warnings.simplefilter("ignore")  # a name twice
        for name, data in members:
            archive.writestr(name, data)


def test_archives_that_lie_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    good = npy(ARRAY)
    archive_of(path, ("a.npy", good), ("a.npy", good))
    with Npz(path) as archive, pytest.raises(Unreadable, match="a 2 times"):
        archive.load("a", 1000)
    archive_of(path, ("b/a.npy", good))
    with Npz(path) as archive, pytest.raises(Unreadable, match="a 0 times"):
        archive.load("a", 1000)
    archive_of(path, ("a.npy", good), method=zipfile.ZIP_LZMA)
    with Npz(path) as archive, pytest.raises(Unreadable, match="14"):
        archive.load("a", 1000)
    archive_of(path, ("a.npy", good + b"more"))
    with Npz(path) as archive, pytest.raises(Unreadable, match="bytes for float32"):
        archive.load("a", 1000)
    archive_of(path, ("a.npy", good))
    data = bytearray(path.read_bytes())
    for at, value in ((data.index(b"PK\x01\x02") + 8, b"\x01"), (6, b"\x01")):  # encrypted
        data[at : at + 1] = value
    path.write_bytes(data)
    with Npz(path) as archive, pytest.raises(Unreadable, match="damaged"):
        archive.load("a", 1000)


def test_a_directory_that_claims_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    archive_of(path, ("a.npy", npy(ARRAY)))
    end = path.read_bytes()[-22:]
    with path.open("wb") as file:
        file.truncate(3 * 2**30)
        file.seek(0, os.SEEK_END)
        file.write(end[:12] + struct.pack("<II", 2**31, 0) + end[20:])
    with pytest.raises(Unreadable, match="at once"):
        Npz(path)


def test_bombs_are_refused_by_their_ratio(tmp_path: Path) -> None:
    zeros = np.zeros((70, 2**20), dtype=np.int8)
    np.savez_compressed(tmp_path / "a.npz", a=zeros, b=zeros[:1])
    with Npz(tmp_path / "a.npz") as archive:
        archive.check_ratio("b")
        with pytest.raises(Unreadable, match="at most 200 times"):
            archive.check_ratio("a")


def test_blocks_are_the_rows_in_order_and_large_ones_are_passed_over(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(3000, 100))
    np.savez_compressed(tmp_path / "a.npz", a=rows)
    counts = [1, 0, 2000, 998, 1]
    with Npz(tmp_path / "a.npz") as archive:
        blocks = list(archive.blocks("a", counts, 100 * 1000))
    assert blocks[2] is None
    first = np.cumsum([0, *counts])
    for at, count, block in zip(first, counts, blocks, strict=False):
        if block is not None:
            np.testing.assert_array_equal(block, rows[at : at + count])


def test_damage_is_found_at_the_end_of_a_member(tmp_path: Path) -> None:
    rows = np.ones((30, 1000))
    np.savez(tmp_path / "a.npz", a=rows)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[5000] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with Npz(tmp_path / "a.npz") as archive, pytest.raises(Unreadable, match="a is damaged"):
        list(archive.blocks("a", [30], 10**6))


def test_text_is_unicode() -> None:
    words = np.array(["one", "\u00e9\U0001f480"])
    assert texts_of(words) == words.tolist() == texts_of(words.astype(">U3"))
    for code in (0xD800, 0x110000, 2**31):
        bad = words.copy()
        bad.view(np.uint32)[1] = code
        with pytest.raises(Unreadable, match="no Unicode"):
            texts_of(bad)
    with pytest.raises(Unreadable, match="for text"):
        texts_of(np.zeros(3))
