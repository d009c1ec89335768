"""`sjepa_fast.export`: stores written for CTR-GCN and MAMP are read back, and so are models.

What a model's file holds is tested in tests/embedding/test_portable.py.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from sjepa_fast.data.ctrgcn_writer import padded_row
from sjepa_fast.data.readers.ctrgcn_npz import open_ctrgcn
from sjepa_fast.data.store import Store
from sjepa_fast.data.store_writer import StoreWriter
from sjepa_fast.embedding.model import Model
from sjepa_fast.errors import InputError
from sjepa_fast.export import ExportConfig, export, main
from sjepa_fast.skeletons import KINECT20, NTU25, SkeletonLayout
from tests.embedding.test_portable import content_of
from tests.tiny import call

RNG = np.random.default_rng(0)
SHAPES = ((1, 5), (2, 9), (1, 300), (2, 1))


def write(
    out: Path, layout: SkeletonLayout = NTU25, shapes: tuple[tuple[int, int], ...] = SHAPES
) -> Store:
    with StoreWriter(out, "tiny", layout, ("a", "b", "c")) as writer:
        for i, shape in enumerate(shapes):
            clip = RNG.normal(size=(*shape, layout.num_joints, 3)).astype(np.float32)
            writer.add(f"clip{i}", clip, i % 3, {})
        codes = np.array([1, 2, 1, 0][: len(shapes)], dtype=np.int8)
        return writer.finish({"xsub": codes})


def test_file_has_the_published_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = write(tmp_path / "s")
    export(ExportConfig(str(tmp_path / "s"), "ctrgcn", tmp_path / "x.npz"))
    assert "tiny xsub: 2/1 clips" in capsys.readouterr().out
    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        data = dict(file)
    assert set(data) == {"x_train", "y_train", "x_test", "y_test"}
    assert data["x_train"].dtype == np.float32 and data["x_train"].shape == (2, 300, 150)
    np.testing.assert_array_equal(data["y_train"], np.eye(3)[[0, 2]])
    np.testing.assert_array_equal(data["y_test"], np.eye(3)[[1]])
    wanted = np.zeros((300, 150), dtype=np.float32)
    wanted[:9, :75] = store.clip(1)[0].reshape(9, 75)
    wanted[:9, 75:] = store.clip(1)[1].reshape(9, 75)
    np.testing.assert_array_equal(data["x_test"][0], wanted)
    assert not data["x_train"][0, :, 75:].any(), "as in NTU-60"


@pytest.mark.parametrize("twin", [False, True])
def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path, twin: bool) -> None:
    store = write(tmp_path / "s")
    export(ExportConfig(str(tmp_path / "s"), "ctrgcn", tmp_path / "x.npz", twin=twin))
    records = list(open_ctrgcn(tmp_path / "x.npz").records())
    assert [r.label for r in records] == [0, 2, 1]
    for record, index in zip(records, (0, 2, 1), strict=True):
        assert record.clip_MTVC is not None
        assert np.array_equal(record.clip_MTVC, store.clip(index))
    assert open_ctrgcn(tmp_path / "x.npz").count == 3


def test_a_lone_body_can_be_repeated() -> None:
    clip = RNG.normal(size=(1, 4, 25, 3)).astype(np.float32)
    row = padded_row(clip, 6, twin=True)
    np.testing.assert_array_equal(row[:, :75], row[:, 75:])
    assert row[:4].any() and not row[4:].any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "ctrgnc"}, "ctrgcn"),
        ({"split": "xview"}, "tiny has xsub"),
        ({"frames": 100}, "clip2 has 300 frames"),
        ({"out": Path("x.npy")}, ".npz"),
        ({"out": Path("absent/x.npz")}, "absent"),
        ({"source": "absent"}, "has no store"),
        ({"bodies": 2}, "bodies: 2; it belongs to --format pt2 or onnx"),
        ({"format": "pt2", "twin": True}, "twin: True; it belongs to --format ctrgcn"),
        ({"format": "onnx"}, "name a .onnx file"),
        ({"format": "pt2", "out": Path("x.pt2")}, "neither config.yaml nor config.json"),
    ],
)
def test_bad_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "s")
    request = {"source": "s", "format": "ctrgcn", "out": Path("x.npz"), **change}
    with pytest.raises(InputError, match=words):
        export(ExportConfig(**request))  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_stores_that_do_not_fit(tmp_path: Path) -> None:
    write(tmp_path / "k", KINECT20)
    write(tmp_path / "three", shapes=((3, 5), (1, 4)))
    for name, words in (("k", "20 joints"), ("three", "3 bodies")):
        with pytest.raises(InputError, match=words):
            export(ExportConfig(str(tmp_path / name), "ctrgcn", tmp_path / "x.npz"))
    assert not (tmp_path / "x.npz").exists()


def test_a_saved_model(tmp_path: Path) -> None:
    """With flags; one file appears, whose features are those of `embed`."""
    saved, out = tmp_path / "saved", tmp_path / "new" / "model.pt2"
    out.parent.mkdir()
    model = Model(content_of(), device="cpu", dtype="float32")
    model.save_pretrained(saved)
    words = [saved, "--format", "pt2", "--pool", "joint", "--layout", "coco17", "--bodies", "1"]
    done = call(main, *words, "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("saved: ") and done.stdout.endswith(f"of embed -> {out}\n")
    assert list(out.parent.iterdir()) == [out]
    clips = RNG.normal(scale=0.4, size=(3, 1, 20, 17, 3)).astype(np.float32)
    found = torch.export.load(out).module()(torch.from_numpy(clips))[0].numpy()
    expected = model.embed(list(clips), "joint", "coco17", bodies=1)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
