"""Stores of a hostile maker, whose checksums fit: each wrong entry and array is named."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sjepa_fast.data.store import MANIFEST, fingerprint_of, open_store
from sjepa_fast.data.store_schema import MAX_LISTED
from sjepa_fast.data.store_writer import StoreWriter
from sjepa_fast.errors import InputError
from sjepa_fast.skeletons import KINECT20
from tests.data.test_store import write

Change = Callable[[dict[str, Any], Path], object]


def seal(root: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest whose sizes and checksums are those of the files there."""
    for name, entry in manifest["files"].items() if isinstance(manifest["files"], dict) else ():
        if isinstance(entry, dict) and len(entry) > 1 and (root / name).is_file():
            data = (root / name).read_bytes()
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.pop("checksum", None)
    manifest["checksum"] = fingerprint_of(manifest)
    (root / MANIFEST).write_text(json.dumps(manifest))


def entry(key: str, value: object) -> Change:
    return lambda manifest, _: manifest.__setitem__(key, value)


def array(name: str, values: Any) -> Change:
    return lambda _, root: np.save(root / f"{name}.npy", values)


def renamed(name: str) -> Change:
    def change(manifest: dict[str, Any], root: Path) -> None:
        manifest["files"][name] = manifest["files"].pop("meta_subject.npy")

    return change


def twin_names() -> np.ndarray:
    bad = np.array(["clip0", "clip1", "clip2"])
    bad.view(np.uint32)[1] = 0x7FFFFFFF
    return bad


HOSTILE: dict[str, tuple[Change, str]] = {
    "name leaves": (entry("name", "/../../../OWNED"), "name is not"),
    "name is no text": (entry("name", 3), "name is not"),
    "escapes in the name": (entry("name", "\x1b[2J"), "name is not"),
    "long name": (entry("name", "x" * 300), "name is not"),
    "layout is a list": (entry("layout", [1]), "layout is not"),
    "layout lacks": (entry("layout", {}), "layout"),
    "layout with fractions": (
        entry("layout", KINECT20.to_dict() | {"parents": [0.5] * 20}),
        "no number of a joint",
    ),
    "layout with an infinity": (
        entry("layout", KINECT20.to_dict() | {"center": float("inf")}),
        "no number of a joint",
    ),
    "layout of millions": (
        entry("layout", KINECT20.to_dict() | {"joints": [f"j{i}" for i in range(2000)]}),
        "one parent|at most 1024",
    ),
    "another layout": (
        entry("layout", KINECT20.to_dict() | {"joints": ["x"], "parents": [0]}),
        "layout",
    ),
    "classes are text": (entry("class_names", "ab"), "class_names is not"),
    "classes are numbers": (entry("class_names", [1, 2]), "class_names is not"),
    "escapes in a class": (entry("class_names", ["a", "\x1b]0;x\x07"]), "class_names is not"),
    "no class": (entry("class_names", []), r"labels beyond 0\.\.-1 and -1, which is none"),
    "one class less": (entry("class_names", ["a"]), r"labels beyond 0\.\.0"),
    "files are a list": (entry("files", []), "files is not"),
    "files without sizes": (entry("files", {"joints.npy": {"bytes": -1}}), "files is not"),
    "skipped": (entry("skipped", [["a"]]), "skipped is not"),
    "clips": (entry("clips", 4), r"offsets.npy is int64 \(4,\)"),
    "no clips": (entry("clips", 0), "has 0 clips"),
    "clips are text": (entry("clips", "3"), "clips is not"),
    "dtype": (entry("dtype", "float64"), "dtype is not"),
    "another dtype": (entry("dtype", "float16"), "not float16"),
    "file elsewhere": (renamed("../x.npy"), "is called"),
    "file at the root": (renamed("/dev/zero"), "is called"),
    "file of another kind": (renamed("x.npy"), "is called"),
    "column with escapes": (renamed("meta_\x1b.npy"), "is called"),
    "joints of 64 bits": (array("joints", np.zeros((24, 20, 3))), "not float32"),
    "joints are numbers": (array("joints", np.zeros((24, 20, 3), int)), "joints.npy is int64"),
    "joints of another layout": (array("joints", np.zeros((24, 25, 3), np.float32)), "24, 25, 3"),
    "joints flat": (array("joints", np.zeros(9, np.float32)), "joints.npy is"),
    "joints of the other end": (array("joints", np.zeros((24, 20, 3), ">f4")), "joints.npy is >f4"),
    "joints by columns": (
        array("joints", np.asfortranarray(np.zeros((24, 20, 3), np.float32))),
        "Fortran",
    ),
    "rows lack": (array("joints", np.zeros((23, 20, 3), np.float32)), "lead from 0 to 23"),
    "offsets fall": (array("offsets", np.array([0, 23, 5, 24])), "does not fit frames"),
    "offsets begin late": (array("offsets", np.array([1, 5, 23, 24])), "lead from 0"),
    "offsets below zero": (array("offsets", np.array([0, -5, 23, 24])), "lead from 0"),
    "offsets far away": (array("offsets", np.array([0, 2**62, -(2**62), 24])), "lead from 0"),
    "offsets with fractions": (array("offsets", np.array([0.0, 5, 23, 24])), "offsets.npy is"),
    "offsets of 32 bits": (array("offsets", np.array([0, 5, 23, 24], np.int32)), "offsets.npy is"),
    "no frame": (array("frames", np.array([0, 9, 1], np.int32)), "without any"),
    "other frames": (array("frames", np.array([5, 8, 1], np.int32)), "does not fit frames"),
    "bodies below zero": (array("bodies", np.array([1, -2, 1], np.int32)), "without any"),
    "a crowd": (array("bodies", np.array([1, 2, 65], np.int32)), "a clip of 65"),
    "bodies are objects": (
        lambda _, root: np.save(root / "bodies.npy", np.array([1, {}, 2]), allow_pickle=True),
        "objects",
    ),
    "label below": (array("labels", np.array([0, -2, 0])), "labels beyond"),
    "label above": (array("labels", np.array([0, 2, 0])), r"labels beyond 0\.\.1"),
    "labels lack": (array("labels", np.array([0, 1])), "labels.npy is int64"),
    "names twice": (array("names", np.array(["a", "b", "a"])), "name twice"),
    "empty name": (array("names", np.array(["a", "b", ""])), "empty or not printable"),
    "escapes in a clip": (array("names", np.array(["a", "b", "\x1b[2J"])), "not printable"),
    "names are no Unicode": (array("names", twin_names()), "no Unicode"),
    "names are bytes": (array("names", np.array([b"a", b"b", b"c"])), "names.npy"),
    "wide names": (array("names", np.array(["a", "b", "c" * 256])), "more than 255"),
    "code 3": (array("split_xsub", np.array([1, 2, 3], np.int8)), "codes beyond"),
    "codes with fractions": (array("split_xsub", np.array([1, 2, 0.5])), "split_xsub.npy is"),
    "codes lack": (array("split_xsub", np.array([1, 2], np.int8)), "split_xsub.npy is"),
    "column of text": (array("meta_subject", np.array(["a", "b", "c"])), "meta_subject.npy is"),
    "column lacks": (array("meta_subject", np.arange(2)), "meta_subject.npy is"),
    "no npy": (lambda _, root: (root / "labels.npy").write_bytes(b"PK\x03\x04"), "labels.npy"),
    "a pipe": (
        lambda _, root: ((root / "labels.npy").unlink(), os.mkfifo(root / "labels.npy")),
        "labels.npy is missing",
    ),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("verify", [True, False], ids=["verified", "unverified"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_store_is_refused_before_it_is_used(
    tmp_path: Path, kind: str, verify: bool
) -> None:
    root = write(tmp_path / "s").root
    manifest = json.loads((root / MANIFEST).read_text())
    change, words = HOSTILE[kind]
    change(manifest, root)
    seal(root, manifest)
    with pytest.raises(InputError, match=words) as error:
        open_store(root, verify=verify)
    assert error.value.argument == "data.root"


def test_reasons_of_a_strangers_store_can_be_printed(tmp_path: Path) -> None:
    root = write(tmp_path / "s").root
    manifest = json.loads((root / MANIFEST).read_text()) | {"skipped": [["\x1b[2J", "\u202e"]]}
    seal(root, manifest)
    assert open_store(root).skipped == (("\\x1b[2J", "\\u202e"),)


def test_resealing_alone_changes_nothing(tmp_path: Path) -> None:
    root = write(tmp_path / "s").root
    seal(root, json.loads((root / MANIFEST).read_text()))
    assert len(open_store(root)) == 3


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"version": ' + b"9" * 5000 + b"}", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" + b"0," * 4_000_000 + b"0]", "more than 3145728 values"),
        (b"[1]", "version None"),
        (b'{"version": 1}', "name is not"),
    ],
)
def test_manifests_that_are_none(tmp_path: Path, text: bytes, words: str) -> None:
    (tmp_path / MANIFEST).write_bytes(text)
    with pytest.raises(InputError, match=words):
        open_store(tmp_path)


@pytest.mark.timeout(20)
def test_a_manifest_that_is_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / MANIFEST)
    with pytest.raises(InputError, match="no regular file"):
        open_store(tmp_path)


def test_the_writer_makes_no_store_that_is_refused(tmp_path: Path) -> None:
    clip = np.ones((1, 2, 20, 3), np.float32)
    for name, classes in (("a/b", ("a",)), ("\x1b", ("a",)), ("a", ("\x1b",)), ("a", ("",))):
        with pytest.raises(InputError, match="printable"):
            StoreWriter(tmp_path / "s", name, KINECT20, classes)
    with StoreWriter(tmp_path / "s", "a", KINECT20, ("a",)) as writer:
        for name in ("", "x" * 256, "\x00", "\x1b[2J", "\udcff"):
            with pytest.raises(InputError, match="printable"):
                writer.add(name, clip, 0, {"subject": 1})
        for number in (2**63, -(2**63) - 1):
            with pytest.raises(InputError, match="64 bits"):
                writer.add("a", clip, 0, {"subject": number})
        writer.add("x" * 255, clip, 0, {"subject": -(2**63)})
        for i in range(MAX_LISTED + 5):
            writer.skip(f"\x1b{i}", "why\n\x07" + "x" * 1000)
        store = writer.finish({})
    assert len(open_store(tmp_path / "s").skipped) == MAX_LISTED
    name, reason = store.skipped[0]
    assert name == "\\x1b0" and reason.startswith("why \\x07xx") and len(reason) < 350


def test_a_column_that_is_no_file_name_is_refused(tmp_path: Path) -> None:
    clip = np.ones((1, 2, 20, 3), np.float32)
    with (
        pytest.raises(InputError, match="column"),
        StoreWriter(tmp_path / "s", "a", KINECT20, ("a",)) as writer,
    ):
        writer.add("x", clip, 0, {"../subject": 1})
        writer.finish({})
    assert list(tmp_path.iterdir()) == []
