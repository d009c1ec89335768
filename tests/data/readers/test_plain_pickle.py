"""pyskl's pickles: what a hostile one may do, and that arrays are what NumPy pickled."""

import collections
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sjepa_fast.data.readers import plain_pickle
from sjepa_fast.data.readers.plain_pickle import PickledArray, load_plain
from sjepa_fast.opening import Unreadable


def load(tmp_path: Path, data: bytes) -> Any:
    (tmp_path / "x.pkl").write_bytes(data)
    return load_plain(tmp_path / "x.pkl")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", "<i8", "|u1", "|b1", "<U3"])
def test_arrays_are_what_numpy_pickled(tmp_path: Path, dtype: str, protocol: int) -> None:
    array = (np.arange(24).reshape(2, 3, 4) % 5).astype(dtype)
    given = {
        "c": array,
        "f": np.asfortranarray(array),
        "one": array[0, 0, 0],
        "part": array[:, 1],
        # From NumPy 2.3 on, protocol 5 keeps the order of the axes in memory.
        "turned": array.transpose(1, 2, 0),
        # Protocol 2 has no bytes without any.
        **({"empty": np.zeros((0, 3), dtype), "no text": np.str_("")} if protocol > 2 else {}),
    }
    found = load(tmp_path, pickle.dumps(given, protocol))
    for key, wanted in given.items():
        values = found[key].values(24)
        # NumPy makes text of no width one character wide.
        assert values.dtype == (wanted.dtype if wanted.dtype.itemsize else np.dtype("U1"))
        assert values.shape == wanted.shape
        np.testing.assert_array_equal(values, wanted)
    with pytest.raises(Unreadable, match="more than 23 values"):
        found["c"].values(23)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_containers_come_as_they_are(tmp_path: Path, protocol: int) -> None:
    shared = ["a", "b"]
    plain: dict[str, Any] = {
        "split": collections.OrderedDict(xsub_train=shared, xsub_val=shared),
        "annotations": [{"label": 3, "img_shape": (1080, 1920), "none": None, "yes": True}] * 2,
        "numbers": [0, 255, -1, 2**31, -(2**70), 1.5],
        # Before protocol 4 a set is a call of a class.
        **({"set": {"x", "y"}} if protocol > 3 else {}),
        "bytes": b"\x00\xff" * 300,
        "text": "\u00e9" * 300,
    }
    assert load(tmp_path, pickle.dumps(plain, protocol)) == plain


def test_arrays_whose_parts_do_not_fit(tmp_path: Path) -> None:
    array = load(tmp_path, pickle.dumps(np.zeros((2, 3), np.float32), 4))
    version, shape, dtype, order, data = array.state
    for state, words in (
        (None, "no whole array"),
        ((version, (2, 4), dtype, order, data), "not the 32 bytes"),
        ((version, (10**12,), dtype, order, data), "more than"),
        ((version, (-2, -3), dtype, order, data), "no shape"),
        ((version, (True, 6), dtype, order, data), "no shape"),
        ((version, "ab", dtype, order, data), "no shape"),
        ((version, (2, 3), "f4", order, data), "unknown type"),
        ((version, shape, dtype, order, list(data)), "bytes of its shape"),
        ((version, (1,) * 40 + shape, dtype, order, data), "more than"),
        ((version, (10**30, 0), dtype, order, b""), "more than"),
    ):
        array.state = state
        with pytest.raises(Unreadable, match=words):
            array.values(1000)
    for values in (np.zeros(2, object), np.zeros(2, "M8[s]"), np.zeros(2, [("a", "f4")])):
        with pytest.raises(Unreadable, match=r"is of (an unknown )?type"):
            load(tmp_path, pickle.dumps(values)).values(10)


def test_axes_that_are_no_permutation() -> None:
    for axes in (None, 3, "10", (0,), (0, 0), (0, 2), (False, True), (0, "1"), (0, 1, 2)):
        dtype = plain_pickle._DType("f4")
        array = plain_pickle._from_buffer(b"\0" * 24, dtype, (2, 3), "K", axes)
        with pytest.raises(Unreadable, match=r"axes|no shape"):
            array.values(6)


def text(word: str) -> bytes:
    return b"\x8c" + bytes([len(word)]) + word.encode()


HEAD, END = b"\x80\x04", b"."
ENCODE = b"\x93".join([text("_codecs") + text("encode"), b""])
BOMBS = {
    "a memo far away": HEAD + b"Nr\xff\xff\xff\xff" + END,
    "bytes of 8 EiB": HEAD + b"\x8e" + struct.pack("<Q", 2**63 - 1) + b"a" + END,
    "bytes of 4 GiB": HEAD + b"\x8e" + struct.pack("<Q", 2**32) + b"a" + END,
    "text of 4 GiB": HEAD + b"X" + struct.pack("<I", 2**32 - 1) + b"a" + END,
    "a bytearray of 4 GiB": HEAD + b"\x96" + struct.pack("<Q", 2**32) + b"a" + END,
    "a frame of 4 GiB": HEAD + b"\x95" + struct.pack("<Q", 2**32) + b"a" + END,
    "a number of 2 GiB": HEAD + b"\x8b" + struct.pack("<i", 2**31 - 1) + b"a" + END,
    "thousands of sets": HEAD + b"(" + b"\x8f" * 6_000 + b"l" + END,
    "thousands of marks": HEAD + b"(" * 20_000 + END,
    "thousands of memos": HEAD + b"N" + b"\x94" * 20_000 + END,
    "the same text, encoded again": (
        HEAD + b"X" + struct.pack("<I", 2**20) + b"a" * 2**20 + b"\x94"
        + b"".join([ENCODE, b"h\x00", text("latin1"), b"\x86R"]) * 2000 + END
    ),
    "keys that collide": HEAD + b"}(" + b"".join(
        b"\x8a\x10" + (k * (2**61 - 1)).to_bytes(16, "little") + b"N" for k in range(1, 50_000)
    ) + b"u" + END,
    "an array of 16 GB": (
        HEAD + b"\x93".join([text("numpy._core.multiarray") + text("_reconstruct"), b""])
        + b"\x93".join([text("numpy") + text("ndarray"), b""])
        + b"J\xff\xff\xff\x7f\x85" + text("b") + b"\x87R" + END
    ),
    "ndarray called": (
        HEAD + b"\x93".join([text("numpy") + text("ndarray"), b""]) + b"J\xff\xff\xff\x7f\x85\x85R."
    ),
    "an object of a class": HEAD + b"\x93".join([text("numpy") + text("dtype"), b""]) + b")\x81.",
    "of a registered class": HEAD + b"\x82\x01" + END,
    "of another file": HEAD + b"N" + b"Q" + END,
    "instance": HEAD + b"(cos\nsystem\no" + END,
    "state of a list": HEAD + b"]}b" + END,
    "protocol 0": b"(lp0\n.",
    "nothing": b"",
    "no end": HEAD + b"N",
}  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind.startswith("thousands"):  # `test_bombs` has millions
        monkeypatch.setattr(plain_pickle, "STEPS", 10_000)
    if kind == "an array of 16 GB":  # nothing is allocated before it has bytes
        array = load(tmp_path, BOMBS[kind])
        assert isinstance(array, PickledArray)
        with pytest.raises(Unreadable, match="no whole array"):
            array.values(10)
        return
    if kind == "a memo far away":
        assert load(tmp_path, BOMBS[kind]) is None
        return
    words = {
        "thousands of sets": "too many steps",
        "thousands of marks": "too many steps",
        "thousands of memos": "too many steps",
        "the same text, encoded again": "more bytes than its file",
        "keys that collide": "a key or a set's member",
        "bytes of 4 GiB": "wants 4294967296 bytes",
        "a frame of 4 GiB": "wants 4294967296 bytes",
        "ndarray called": "not callable",
        "state of a list": "it changes a list",
    }
    with pytest.raises(Unreadable, match=f"not safe or not whole .*{words.get(kind, '')}"):
        load(tmp_path, BOMBS[kind])
