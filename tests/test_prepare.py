"""`prepare` from the command line, on written files and on the real sets."""

import dataclasses
import inspect
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sjepa_fast import cli
from sjepa_fast import prepare as prepare_module
from sjepa_fast.data.readers import READERS, options_of
from sjepa_fast.data.readers.record import Record, Source
from sjepa_fast.data.store import Store, open_store
from sjepa_fast.data.store_writer import StoreWriter
from sjepa_fast.errors import InputError
from sjepa_fast.prepare import PrepareConfig, prepare
from sjepa_fast.runtime import progress
from sjepa_fast.skeletons import NTU25
from tests.tiny import Done, call, run_python, start_python


def call_prepare(*arguments: str) -> Done:
    return call(prepare_module.main, *arguments)


def write_ntu(folder: Path) -> None:
    folder.mkdir()
    joints = np.random.default_rng(0).normal(size=(25, 3)) * [0.1, 0.6, 0.1] + [0, 0, 3]
    body = "\n".join(f"{x:.6f} {y:.6f} {z:.6f} 0 0 0 0 0 0 0 0 2" for x, y, z in joints)
    frame = f"1\n72057594037931691 0 1 1 1 1 0 0 0 2\n25\n{body}\n"
    for subject, camera in ((1, 1), (3, 2)):
        name = f"S001C00{camera}P00{subject}R001A013.skeleton"
        (folder / name).write_text("20\n" + frame * 20)
    (folder / "S001C001P001R001A014.skeleton").write_text("20\n" + frame * 3)


def test_ntu_from_the_command_line(tmp_path: Path) -> None:
    write_ntu(tmp_path / "raw")
    done = run_python(
        "-m",
        "sjepa_fast.prepare",
        "ntu60",
        "--raw",
        str(tmp_path / "raw"),
        "--out",
        str(tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    assert "skipped S001C001P001R001A014: the file ends early" in done.stdout
    assert "2 clips" in done.stdout and "1 skipped" in done.stdout
    store = open_store(tmp_path / "out")
    assert store.labels.tolist() == [12, 12] and store.frames.tolist() == [20, 20]
    assert store.splits["xsub"].tolist() == [1, 2] and store.splits["xview"].tolist() == [2, 1]
    assert store.skipped == (("S001C001P001R001A014", "the file ends early"),)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nuclaa", "--raw", "r", "--out", "o"], ["name", "nuclaa", "nucla"]),
        (["nucla", "--raw", "absent", "--out", "o"], ["raw", "absent"]),
        (["nucla", "--raw", "absent", "--ouut", "o"], ["--ouut", "--out"]),
        (["nucla", "--raw", "absent"], ["--out"]),
        (["ntu60", "--raw", ".", "--out", "o"], ["raw", "no .skeleton"]),
        (["nucla", "--raw", "r", "--out", "o", "--dtype", "int8"], ["dtype", "int8", "float32"]),
        (
            ["nucla", "--raw", "r", "--out", "o", "--missing", "m.txt"],
            ["missing", "m.txt", "ntu60"],
        ),
        (["nucla", "--raw", "r", "--out", "o", "--layout", "coco17"], ["layout", "generic only"]),
        (
            ["pyskl", "--raw", "r", "--out", "o", "--split-name", "a"],
            ["split_name", "a with pyskl", "ctrgcn only"],
        ),
        (["generic", "--raw", "r", "--out", "o", "--layout", "coco17"], ["raw", "No such file"]),
        (["pku1", "--raw", "r", "--out", "o", "--units", "mm"], ["units", "generic only"]),
        (["pku1", "--raw", "absent", "--out", "o"], ["raw", "no PKU-MMD text"]),
    ],
)
def test_bad_input_exits_2_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call_prepare(*arguments)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_row_of_the_table_is_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_still(raw: Path, *, layout: str = "") -> Source:
        def records(start: int = 0) -> Iterator[Record]:
            yield from [Record("one", np.ones((1, 4, 25, 3), np.float32), 0, {})][start:]

        return Source(layout or raw.name, NTU25, ("stand",), 1, records, "", lambda *_: {})

    monkeypatch.setitem(READERS, "still", open_still)
    arguments = ["still", "--raw", "r", "--out", str(tmp_path / "out"), "--layout", "mine"]
    assert call_prepare(*arguments).returncode == 0
    assert open_store(tmp_path / "out").name == "mine"
    said = call_prepare(*arguments, "--split-name", "a").stderr
    assert "split_name" in said and "ctrgcn only" in said
    assert "nearest: still" in call_prepare("stills", *arguments[1:]).stderr


def test_every_option_of_a_reader_is_a_flag() -> None:
    flags = {field.name: field.default for field in dataclasses.fields(PrepareConfig)}
    taken = {name: options_of(name) for name in READERS}
    assert {name: options for name, options in taken.items() if options} == {
        "ntu60": ("missing",),
        "ntu120": ("missing",),
        "ctrgcn": ("split_name",),
        "generic": ("layout", "units", "up"),
    }
    for name, options in taken.items():
        parameters = inspect.signature(READERS[name]).parameters
        for option in options:
            assert parameters[option].default == flags[option], (name, option)


def test_nothing_usable_is_one_line_with_the_first_reason(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "S001C001P001R001A001.skeleton").write_text("0\n")
    done = call_prepare("ntu60", "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"))
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "1 skipped, the first because: no usable skeleton" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def start_long_run(tmp_path: Path, clips: int = 400) -> subprocess.Popen[str]:
    """Begin a preparation and return once it has noted some clips."""
    write_ntu(tmp_path / "raw")
    text = (tmp_path / "raw" / "S001C001P001R001A013.skeleton").read_text()
    for i in range(2, clips):
        (tmp_path / "raw" / f"S001C001P001R{i:03d}A013.skeleton").write_text(text)
    arguments = ["ntu60", "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out")]
    code = (
        "import sjepa_fast.data.store_writer as s, sjepa_fast.prepare as p, time\n"
        "s.SYNC_SECONDS = 0.01\n"
        "add = s.StoreWriter.add\n"
        "s.StoreWriter.add = lambda *a: (time.sleep(0.002), add(*a))[1]\n"
        f"p.main({arguments!r})"
    )
    running = start_python("-c", code)
    journal = tmp_path / ".out.partial" / "journal.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and running.poll() is None:
        if journal.exists() and journal.read_text().count("\n") > 20:
            break
        time.sleep(0.01)
    return running


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_a_stopped_run_goes_on_and_ends_as_if_it_had_never_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], end: int
) -> None:
    running = start_long_run(tmp_path)
    running.send_signal(end)
    _, said = running.communicate(timeout=60)
    assert running.returncode == (130 if end == signal.SIGINT else -9)
    if end == signal.SIGINT:
        kept = re.fullmatch(r"(\d+) of 401 inputs are kept; (.*) goes on\n", said)
        assert kept and int(kept[1]) >= 20, said
        words = shlex.split(kept[2])
        assert words[:3] == ["python", "-m", "sjepa_fast.prepare"]
        assert words[3:] == ["ntu60", "--raw", f"{tmp_path}/raw", "--out", f"{tmp_path}/out"]
    else:
        assert said == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.partial", "raw"], "no store"
    request = PrepareConfig("ntu60", tmp_path / "raw", tmp_path / "out")
    prepare(request)
    resumed = re.search(r"ntu60: resuming after (\d+) of 401", capsys.readouterr().out)
    assert resumed and 20 <= int(resumed[1]) < 401
    prepare(dataclasses.replace(request, out=tmp_path / "fresh"))
    assert "resuming" not in capsys.readouterr().out
    found, wanted = open_store(tmp_path / "out"), open_store(tmp_path / "fresh")
    assert found.fingerprint == wanted.fingerprint and found.skipped == wanted.skipped
    assert len(found) == 400
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in (tmp_path / "fresh").iterdir()
    )
    assert not (tmp_path / ".out.partial").exists()


def test_another_job_does_not_go_on_from_unfinished_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ntu(tmp_path / "raw")
    request = PrepareConfig("ntu60", tmp_path / "raw", tmp_path / "out")
    finish = StoreWriter.finish

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(StoreWriter, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(request)
    monkeypatch.setattr(StoreWriter, "finish", finish)
    text = (tmp_path / "raw" / "S001C001P001R001A013.skeleton").read_text()
    (tmp_path / "raw" / "S001C001P001R000A001.skeleton").write_text(text)
    prepare(request)
    assert "resuming" not in capsys.readouterr().out
    assert open_store(tmp_path / "out").names[0] == "S001C001P001R000A001"


def test_two_runs_do_not_write_one_store(tmp_path: Path) -> None:
    write_ntu(tmp_path / "raw")
    with StoreWriter(tmp_path / "out", "x", NTU25, ("a",), job="j"):
        done = call_prepare("ntu60", "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"))
    assert done.returncode == 2 and "another run is writing" in done.stderr


def test_bad_input_late_in_a_run_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ntu(tmp_path / "raw")

    def refuse(*_: object, **__: object) -> None:
        raise InputError("raw", "bad", "mend it")

    monkeypatch.setattr(StoreWriter, "finish", refuse)
    with pytest.raises(InputError):
        prepare(PrepareConfig("ntu60", tmp_path / "raw", tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_dry_run_reports_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ntu(tmp_path / "raw")
    request = PrepareConfig("ntu60", tmp_path / "raw", None, dry_run=True)
    prepare(request)
    dry = capsys.readouterr().out
    assert "dry run, nothing written" in dry and "xsub 1/1, xview 1/1" in dry
    prepare(dataclasses.replace(request, out=tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
    prepare(dataclasses.replace(request, out=tmp_path / "out", dry_run=False))
    wet = capsys.readouterr().out
    for line in ("skipped S001C001P001R001A014: the file ends early", "2 clips, 40 frames"):
        assert line in dry and line in wet
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out.skipped.txt", "raw"]


def test_every_skipped_input_is_listed_beside_the_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ntu(tmp_path / "raw")
    text = (tmp_path / "raw" / "S001C001P001R001A013.skeleton").read_text()
    (tmp_path / "raw" / "again").mkdir()
    (tmp_path / "raw" / "again" / "S001C001P001R001A013.skeleton").write_text(text)
    for i in range(30):
        (tmp_path / "raw" / f"S001C001P001R001A1{i:02d}.skeleton").write_text(text)
    prepare(PrepareConfig("ntu60", tmp_path / "raw", tmp_path / "out"))
    listed = (tmp_path / "out.skipped.txt").read_text().splitlines()
    assert len(listed) == 32
    assert "S001C001P001R001A013\tname: S001C001P001R001A013 occurs twice" in "".join(listed)
    assert "S001C001P001R001A100\taction 100 is not one of 60" in listed
    said = capsys.readouterr().out
    assert said.count("skipped S") == 20 and "and 12 more, all in" in said
    shutil.rmtree(tmp_path / "raw" / "again")
    for path in [*(tmp_path / "raw").glob("*A1*"), *(tmp_path / "raw").glob("*A014*")]:
        path.unlink()
    prepare(PrepareConfig("ntu60", tmp_path / "raw", tmp_path / "out", overwrite=True))
    assert not (tmp_path / "out.skipped.txt").exists(), "an old list does not outlive its store"


def test_what_a_store_refuses_is_skipped_with_the_reason(tmp_path: Path) -> None:
    x, y = np.ones((3, 300, 150), dtype=np.float32), np.eye(60)[[1, 2, 3]]
    x[1] *= 1e5
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:1], y_test=y[:1])
    prepare(PrepareConfig("ctrgcn", tmp_path / "a.npz", tmp_path / "out", dtype="float16"))
    store = open_store(tmp_path / "out")
    assert store.names.tolist() == ["train-000000", "train-000002", "test-000000"]
    (skipped,) = store.skipped
    assert skipped[0] == "train-000001" and "beyond float16" in skipped[1]


def test_failures_of_the_machine_exit_1_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def full_disk() -> int:
        raise OSError(28, "No space left on device", "joints.npy")

    with pytest.raises(SystemExit) as stop:
        cli.run_main(full_disk)
    said = capsys.readouterr().err
    assert stop.value.code == 1 and said.count("\n") == 1 and "No space left" in said


def test_a_log_gets_plain_progress_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    write_ntu(tmp_path / "raw")
    prepare(PrepareConfig("ntu60", tmp_path / "raw", tmp_path / "out"))
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in said if "/3" in line] == [
        f"ntu60 {i}/3" for i in (1, 2, 3)
    ]


def test_existing_store_is_kept_unless_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ntu(tmp_path / "raw")
    request = PrepareConfig("ntu60", tmp_path / "raw", tmp_path / "out")
    prepare(request)
    with pytest.raises(InputError, match="--overwrite"):
        prepare(request)
    half = PrepareConfig("ntu60", tmp_path / "raw", tmp_path / "out", None, "xsub", "float16", True)
    prepare(half)
    assert open_store(tmp_path / "out").joints.dtype == np.float16


def real(data_root: Path, name: str, folder: str, out: Path) -> Store:
    prepare(PrepareConfig(name, data_root / folder, out))
    return open_store(out)


def upright_and_metric(store: Store, head: str, low: float, high: float) -> None:
    top, root = store.layout.joints.index(head), store.layout.center
    heights = store.joints[:, top, 1] - store.joints[:, root, 1]
    assert (heights > 0).mean() > 0.9, "y points up"
    assert low < np.median(heights) < high, "metres"


def same_as_raw(store: Store, file: Path) -> None:
    with np.load(file) as raw:
        joints, offsets = raw["joints"], raw["offsets"]
        for i, name in enumerate(raw["name"]):
            assert str(store.names[i]) == str(name)
            assert np.array_equal(store.clip(i)[0], joints[offsets[i] : offsets[i + 1], 0]), name


def parts(store: Store, split: str) -> tuple[int, int]:
    return len(store.ids(split, "train")), len(store.ids(split, "test"))


def test_real_nucla(data_root: Path, tmp_path: Path) -> None:
    store = real(data_root, "nucla", "nucla", tmp_path / "s")
    assert len(store) == 1484 and parts(store, "xview") == (1020, 464)
    assert parts(store, "xview_clean") == (1020, 369)
    assert set(store.meta["camera"][store.ids("val", "train")]) == {1}
    assert set(store.meta["camera"][store.ids("val", "test")]) == {2}
    upright_and_metric(store, "head", 0.4, 0.8)
    same_as_raw(store, data_root / "nucla" / "nucla.npz")


def test_real_clips_as_a_folder_of_ones_own(data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    rows = ["name,label,camera,split"]
    with np.load(data_root / "nucla" / "nucla.npz") as raw:
        for i in range(0, 1484, 40):
            clip = raw["joints"][raw["offsets"][i] : raw["offsets"][i + 1], 0]
            np.save(tmp_path / "raw" / f"{raw['name'][i]}.npy", clip)
            part = "train" if raw["train_xview"][i] else "test"
            label = raw["class_names"][raw["label"][i]]
            rows.append(f"{raw['name'][i]},{label},{raw['camera'][i]},{part}")
    (tmp_path / "raw" / "labels.csv").write_text("\n".join(rows) + "\n")
    prepare(PrepareConfig("generic", tmp_path / "raw", tmp_path / "out", layout="kinect20"))
    store, whole = open_store(tmp_path / "out"), real(data_root, "nucla", "nucla", tmp_path / "s")
    assert len(store) == 38 and store.skipped == ()
    for i, j in enumerate(range(0, 1484, 40)):
        assert np.array_equal(store.clip(i), whole.clip(j))
        assert store.class_names[store.labels[i]] == whole.class_names[whole.labels[j]]
        assert store.splits["default"][i] == whole.splits["xview"][j]


def test_real_msr_action3d(data_root: Path, tmp_path: Path) -> None:
    store = real(data_root, "msr_action3d", "msr_action3d", tmp_path / "s")
    assert len(store) == 557 and parts(store, "xsub") == (284, 273)
    assert store.joints.any(axis=(1, 2)).all(), "no all-zero frame is left"
    upright_and_metric(store, "head", 0.4, 0.8)
    shoulders = store.joints[:, list(store.layout.shoulders), 0]
    assert np.median(shoulders[:, 1] - shoulders[:, 0]) > 0.2, "joints are in layout order"


def test_real_sbu(data_root: Path, tmp_path: Path) -> None:
    store = real(data_root, "sbu", "sbu_interaction", tmp_path / "s")
    assert len(store) == 282 and (store.bodies == 2).all()
    assert sum(parts(store, f"fold{k}")[1] for k in range(5)) == 282
    upright_and_metric(store, "head", 0.2, 0.6)


def test_real_florence_and_utkinect(data_root: Path, tmp_path: Path) -> None:
    florence = real(data_root, "florence3d", "florence3d", tmp_path / "f")
    assert len(florence) == 215
    upright_and_metric(florence, "head", 0.2, 0.7)
    utkinect = real(data_root, "utkinect", "utkinect", tmp_path / "u")
    assert len(utkinect) == 199
    same_as_raw(utkinect, data_root / "utkinect" / "utkinect.npz")
    upright_and_metric(utkinect, "head", 0.4, 0.8)


def test_real_ui_prmd(data_root: Path, tmp_path: Path) -> None:
    store = real(data_root, "ui_prmd", "ui_prmd", tmp_path / "s")
    assert len(store) == 1000 and parts(store, "xsub") == (500, 500)
    upright_and_metric(store, "head_top", 0.4, 0.8)
