"""`sjepa_fast.plot`: every kind in every format, of tiny runs, and what each picture holds."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image

from sjepa_fast import evaluate, plot
from sjepa_fast.data.clips import load_resident
from sjepa_fast.data.store import open_store
from sjepa_fast.data.store_writer import StoreWriter
from sjepa_fast.embedding.loading import load
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.plane import pca
from sjepa_fast.models.attention_weights import attention_weights
from sjepa_fast.models.residual import Residual
from sjepa_fast.objectives.objective import make_step_input
from sjepa_fast.pictures import KINDS, drawing
from sjepa_fast.pictures.clip import ClipPictureRequest
from sjepa_fast.pictures.curves import run_curves
from sjepa_fast.pictures.mask import clip_mask
from sjepa_fast.pictures.prediction import PredictionRequest, draw_prediction, trained_objective
from sjepa_fast.pictures.retrieval import RetrievalPictureRequest, draw_retrieval
from sjepa_fast.pictures.scene import ClipRequest, open_scene
from sjepa_fast.run_folder import read_run
from sjepa_fast.viz.figure import MOVING, STILL
from tests.tiny import AIMS, CPU, call, flags, trained

# Clips of an objective whose pictures differ: features, motion, coordinates, nothing.
KIND_FLAGS = {
    kind: flags({f"objective.{key.replace('_', '-')}": value for key, value in AIMS[kind].items()})
    for kind in ("sjepa", "mamp", "skeletonmae", "multiview")
}


@pytest.fixture(scope="module")
def folder(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of short clips, two of each class and part, and the runs on it."""
    folder, full = tmp_path_factory.mktemp("pictures"), open_store(store)
    with StoreWriter(folder / "store", "short", full.layout, full.class_names) as writer:
        for part in ("train", "test"):
            ids = full.ids("xsub", part)
            for i in [i for c in range(14) for i in ids[full.labels[ids] == c][:2]]:
                writer.add(str(full.names[i]), full.clip(i)[:, :10], int(full.labels[i]), {})
        writer.finish({"xsub": np.repeat([1, 2], 28).astype(np.int8)})
    for kind, more in KIND_FLAGS.items():
        length = ("--optim.length=4", "--optim.unit=steps", "--data.split=xsub")
        trained(folder / "store", folder / kind, *length, *more)
    return folder


def texts(picture: Figure) -> str:
    return "\n".join(text.get_text() for text in picture.findobj(lambda x: hasattr(x, "get_text")))


def check(path: Path) -> None:
    """A file is a whole picture of its format, and not blank."""
    if path.suffix == ".png":
        assert imread(path)[..., :3].std() > 0.01
    elif path.suffix == ".gif":
        with Image.open(path) as gif:
            assert gif.n_frames > 4
    elif path.suffix == ".html":
        page = path.read_text()
        assert len(set(re.findall(r'"(iVBORw0[^"]*)"', page))) > 4
        assert "://" not in page, "nothing is fetched"
    elif path.suffix == ".svg":
        assert path.read_text().rstrip().endswith("</svg>")
    else:
        assert path.read_bytes().startswith(b"%PDF") and path.stat().st_size > 5000


@pytest.mark.parametrize(
    ("kind", "ending"),
    [(kind, end) for kind, of in KINDS.items() for end in STILL + (MOVING if of.moves else ())],
)
def test_every_kind_in_every_format(folder: Path, tmp_path: Path, kind: str, ending: str) -> None:
    out = tmp_path / f"picture{ending}"
    done = call(plot.main, kind, folder / "mamp", "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{kind} -> {out}\n"
    check(out)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize("run", ["sjepa", "skeletonmae"])
@pytest.mark.parametrize("ending", [".png", ".gif"])
def test_predictions_of_the_other_objectives(
    folder: Path, tmp_path: Path, run: str, ending: str
) -> None:
    out = tmp_path / f"p{ending}"
    assert call(plot.main, "prediction", folder / run, "--out", out).returncode == 0
    check(out)


def test_pictures_of_training_are_those_of_the_command(folder: Path, tmp_path: Path) -> None:
    for kind in ("curves", "mask", "confusion"):
        out = tmp_path / "again.png"
        assert call(plot.main, kind, folder / "sjepa", "--out", out).returncode == 0
        assert out.read_bytes() == (folder / "sjepa" / f"{kind}.png").read_bytes(), kind


def test_without_a_file_the_picture_goes_into_the_run(folder: Path) -> None:
    done = call(plot.main, "projection", folder / "mamp", "--part", "train")
    assert done.stdout == f"projection -> {folder}/mamp/projection.png\n"
    check(folder / "mamp" / "projection.png")


def test_clips_of_a_store_before_any_run(folder: Path, tmp_path: Path) -> None:
    names = [str(name) for name in open_store(folder / "store").names[:3]]
    request = ClipPictureRequest(folder / "store", out=tmp_path / "c.png", clip=(*names,))
    picture = KINDS["clip"].draw(request, False)
    assert all(name in texts(picture) for name in names)
    assert call(plot.main, "clip", folder / "store", "--out", tmp_path / "c.png").returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("confusoin RUN", "kind: confusoin; nearest: confusion"),
        ("curves RUN --out x.gif", "x.gif ends with .gif, and curves does not move; end it with"),
        ("clip RUN --out x.jpg", "x.jpg ends with .jpg; end it with .png, .svg, .pdf, .gif or"),
        ("mask RUN --out x", "x ends with nothing; end it with"),
        ("mask RUN --out nowhere/x.png", "cannot be written (No such file or directory)"),
        ("mask RUN --clip A00S000R000C00", "clip: A00S000R000C00 is not in short; nearest: A00"),
        ("mask RUN --clip other", "clip: other is not in short; name one of the 56 clips"),
        ("mask RUN --step -1", "step: -1; give 0 or more"),
        ("clip RUN --rate 0", "rate: 0.0; give 0.1 to 100"),
        ("clip STORE", "out: not given; name a file"),
        ("clip STORE --out x.png --data.root RUN", "data.root:"),
        ("mask STORE", "is not a run folder"),
        ("prediction MULTI", "run: multiview predicts nothing; plot its mask"),
        ("prediction SJEPA --show motion", "sjepa predicts features, which have no coordinates"),
        ("attention RUN --layer 2", "layer: 2; give 1 to 1, or 0"),
        ("attention RUN --head -1", "head: -1; give 1 to 1, or 0"),
        ("attention RUN --joint hand", "joint: hand; nearest: head, hand_left, "),
        ("attention RUN --segment 9", "segment: 9; give 1 to 4, or 0"),
        ("curves", "run: not given"),
        ("curves RUN SJEPA", "out: not given; name a file for the picture of several runs"),
        ("projection RUN --clips 3", "clips: 3; give 4 or more"),
        ("projection RUN --method tsen", "method: tsen; nearest: tsne"),
        ("confusion RUN --encoder raw", "encoder: raw; use target"),
        ("confusion RUN --result knn", "has no result knn"),
        ("retrieval RUN --neighbours 28", "neighbours: 28; give 1 to 27"),
        ("retrieval RUN --clip A99", "clip: A99 is not in short"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"RUN": "mamp", "STORE": "store", "MULTI": "multiview", "SJEPA": "sjepa"}
    typed = [str(folder / places[word]) if word in places else word for word in words.split()]
    before = sorted(folder.rglob("*"))
    done = call(plot.main, *typed)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert said in done.stderr
    assert not list(tmp_path.iterdir()) and sorted(folder.rglob("*")) == before


def test_help_names_every_kind_and_a_kind_its_flags() -> None:
    done = call(plot.main, "--help")
    assert done.returncode == 0 and all(f"\n  {kind} " in done.stdout for kind in KINDS)
    assert "--layer" in call(plot.main, "attention", "--help").stdout


@pytest.mark.parametrize("run", KIND_FLAGS)
def test_the_mask_is_that_of_the_training_step(folder: Path, run: str) -> None:
    config, store = read_run(folder / run), open_store(folder / "store")
    clips = load_resident(store, config.data, CPU)
    scene = open_scene(ClipRequest(folder / run))
    index = int(np.flatnonzero(store.bodies == 2)[0])
    ids = torch.tensor([0, index])
    seed = torch.tensor(config.seed)
    batch = make_step_input(clips, ids, seed, torch.tensor(3), config)
    kept = batch.ids_keep_BK.view(-1, 2, 2, batch.ids_keep_BK.shape[1])[0, 1]
    tokens = clip_mask(scene.config, scene.store, scene.clips, index, step=3)
    visible = [np.flatnonzero(body.ravel() == 0).tolist() for body in tokens.values_MSV]
    assert visible == kept.long().sort().values.tolist()
    assert tokens.clip_MTVC.shape == (2, config.data.frames, 25, 3)


def test_losses_of_tokens_are_drawn_where_they_belong(folder: Path) -> None:
    scene = open_scene(PredictionRequest(folder / "sjepa"))
    picture = draw_prediction(PredictionRequest(folder / "sjepa"), False)
    tokens = clip_mask(scene.config, scene.store, scene.clips, 0, step=0)
    [mesh] = [
        m
        for axes in picture.axes
        for m in axes.collections
        if m.get_array() is not None
        and np.ndim(m.get_array()) == 2
        and m.get_array().shape == (25, 4)
    ]
    shown = np.ma.getmaskarray(mesh.get_array())
    assert (shown == (tokens.values_MSV[0].T == 0)).all(), "no loss at what is visible"
    model = trained_objective(scene)
    assert f"mean {float(mesh.get_array().mean()):.2f}" in texts(picture)
    assert model.center is not None and model.center.abs().sum() > 0, "the trained weights"


def test_true_motion_stays_and_visible_joints_are_not_predicted(folder: Path) -> None:
    scene = open_scene(PredictionRequest(folder / "skeletonmae"))
    from sjepa_fast.pictures.mask import step_of

    batch = step_of(scene.clips, 0, 0, scene.config)
    model = trained_objective(scene)
    with torch.no_grad():
        true, predicted = model.restored(batch)
    torch.testing.assert_close(true, batch.view_BNP)
    kept = batch.ids_keep_BK.long()[0]
    torch.testing.assert_close(predicted[0, kept], true[0, kept], atol=1e-5, rtol=0)
    hidden = batch.ids_mask_BQ.long()[0]
    moved = (predicted[0, hidden] - true[0, hidden]).abs().mean(dim=1)
    assert (moved > 1e-5).all()


def test_attention_is_what_the_block_mixes_by(folder: Path) -> None:
    encoder = load(folder / "mamp", device="cpu", dtype="float32").encoder_for(
        open_store(folder / "store").layout
    )
    torch.manual_seed(0)
    tubelets = torch.randn(2, 4 * 25, 12)
    weights, values, _ = attention_weights(encoder, tubelets, 0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    with torch.no_grad():
        block, x = encoder.blocks[0], encoder.embed(tubelets)
        x = x + block.proj((weights @ values).transpose(1, 2).flatten(2))
        x = x + block.fc2(torch.nn.functional.gelu(block.fc1(block.norm2(x))))
        torch.testing.assert_close(encoder.norm(x), encoder(tubelets), atol=1e-4, rtol=1e-4)
        whole = block(Residual(encoder.embed(tubelets))).settled()
        torch.testing.assert_close(x, whole, atol=1e-4, rtol=1e-4)


def test_curves_stand_beside_the_scores_without_training(folder: Path) -> None:
    run = folder / "sjepa"
    curves = run_curves(run)
    scored = [row for row in curves.rows if "knn" in row]
    report = json.loads((run / "results/knn-before-after.json").read_text())
    assert [row["step"] for row in scored] == [0, 4], "the first and the last"
    assert [row["knn"] for row in scored] == [report["before"], report["after"]]
    done = call(evaluate.main, "knn", run, "--encoder", "raw")
    assert done.returncode == 0, done.stderr
    raw = json.loads((run / "results/knn-raw-short-xsub.json").read_text())["top1_k1"]
    assert curves.baselines == {"random encoder": report["before"], "raw coordinates": raw}


def test_a_written_result_is_drawn_as_it_is(folder: Path, tmp_path: Path) -> None:
    run = folder / "skeletonmae"
    assert call(evaluate.main, "knn", run, "--no-baselines").returncode == 0
    [name] = [path.stem for path in (run / "results").glob("knn-target-*.json")]
    out = tmp_path / "c.png"
    done = call(plot.main, "confusion", run, "--result", name, "--out", out)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == (run / "results" / f"{name}.png").read_bytes()
    (run / "results" / "odd.json").write_text(
        json.dumps({"per_class": {"a": 1.0}, "confusion": [[1, 2]], "headline": 1.0})
    )
    done = call(plot.main, "confusion", run, "--result", "odd", "--out", out)
    assert done.returncode == 2 and "has no matrix of its classes" in done.stderr


def test_a_clip_is_not_its_own_neighbour_and_the_nearest_come_first(folder: Path) -> None:
    store = open_store(folder / "store")
    name = str(store.names[0])
    request = RetrievalPictureRequest(folder / "mamp", clip=(name,), neighbours=5)
    picture = draw_retrieval(request, False)
    assert isinstance(picture, Figure)
    written = texts(picture)
    assert written.count(name) == 1 and f"Asked: raise arm ({name})" in written
    likeness = [float(x) for x in re.findall(r"^(-?\d\.\d\d): ", written, re.M)]
    assert len(likeness) == 5 and likeness == sorted(likeness, reverse=True)


def test_pca_finds_the_plane_that_holds_the_points() -> None:
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(50, 2)) * [5.0, 2.0]
    axes = np.linalg.qr(rng.normal(size=(40, 2)))[0]
    points, names = pca((flat @ axes.T + 3).astype(np.float32), 0)
    between = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
    np.testing.assert_allclose(
        np.linalg.norm(points[:, None] - points[None], axis=-1), between, atol=1e-3
    )
    shares = [int(re.findall(r": (\d+) %", name)[0]) for name in names]
    assert 99 <= sum(shares) <= 101 and shares[0] > shares[1]


# The libraries' own warnings, such as that umap-learn misses Tensorflow for what nobody asked for.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("method", "module"), [("tsne", "sklearn"), ("umap", "umap")])
def test_maps_of_the_extra(folder: Path, tmp_path: Path, method: str, module: str) -> None:
    out = tmp_path / "m.png"
    words = ("projection", folder / "mamp", "--method", method, "--out", out)
    if importlib.util.find_spec(module) is None:
        done = call(plot.main, *words)
        assert done.returncode == 2 and "pip install 'sjepa-fast[viz]'" in done.stderr
        pytest.skip(f"{module} of the extra viz is not installed")
    done = call(plot.main, *words)
    assert done.returncode == 0, done.stderr
    check(out)


def test_a_store_of_other_joints_has_no_prediction(folder: Path, tmp_path: Path) -> None:
    from sjepa_fast.skeletons import KINECT20

    with StoreWriter(tmp_path / "k", "kinect", KINECT20, ("a",)) as writer:
        for i in range(4):
            clip = np.random.default_rng(i).normal(size=(1, 10, 20, 3)).astype(np.float32)
            writer.add(f"k{i}", clip, 0, {})
        writer.finish({"xsub": np.array([1, 1, 2, 2], dtype=np.int8)})
    words = (folder / "mamp", "--data.root", tmp_path / "k", "--out", tmp_path / "p.png")
    done = call(plot.main, "prediction", *words)
    assert done.returncode == 2 and "use a store of ntu25" in done.stderr
    done = call(plot.main, "attention", *words, "--joint", "hand_left")
    assert done.returncode == 0, "an encoder reads other joints"


def test_nothing_is_written_when_the_disk_is_full(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(drawing, "write_figure", full)
    request = ClipPictureRequest(folder / "mamp", out=tmp_path / "c.png")
    with pytest.raises(InputError, match="No space left on device"):
        drawing.plot(request, "clip")
    assert not list(tmp_path.iterdir())
