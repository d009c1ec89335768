"""`train` with a preset that fits itself to the store: what it says, what wins, what is saved."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from sjepa_fast import ablate, evaluate, train
from sjepa_fast.config.files import parse_train, read_config, to_yaml
from sjepa_fast.config.presets import FITTED, preset
from sjepa_fast.data.facts import facts_of
from sjepa_fast.data.store_writer import StoreWriter
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.protocols.supervised import SupervisedRequest
from sjepa_fast.evaluation.request import EvalData
from sjepa_fast.skeletons import KINECT20
from tests.tiny import SMALL, Done, call, flags, run_python, torchrun, weights

# A run of seconds; what the rule chooses is left to it, but for the length.
SHORT = {key: value for key, value in SMALL.items() if key != "data.frames"} | {"optim.length": 4}
del SHORT["optim.batch-size"]


def write(out: Path, clips: int = 40, bodies: int = 1, frames: int = 30) -> Path:
    """A store whose clips turn an arm, faster in the second class; every fifth tests."""
    draw = np.random.default_rng(0)
    with StoreWriter(out, "own", KINECT20, ("slow", "fast")) as writer:
        pose = draw.normal(size=(bodies, 1, 20, 3)) * [0.2, 0.5, 0.1]
        for i in range(clips):
            clip = np.repeat(pose, frames, axis=1) + draw.normal(size=(1, 1, 20, 3)) * 0.01
            clip[:, :, 7] += np.sin(np.arange(frames) * (0.1 + i % 2))[:, None] * 0.3
            writer.add(f"clip{i}", clip.astype(np.float32), i % 2, {})
        writer.finish({"random": np.where(np.arange(clips) % 5, 1, 2).astype(np.int8)})
    return out


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("stores") / "own")


@pytest.fixture(scope="module")
def finished(own: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A run without a preset, and what it said."""
    run = tmp_path_factory.mktemp("runs") / "own"
    done = call(train.main, "--data.root", own, "--run", run, *flags(SHORT))
    assert done.returncode == 0, done.stderr
    return run, done


def test_a_run_says_what_it_chose_and_saves_it(finished: tuple[Path, Done]) -> None:
    run, done = finished
    lines = done.stdout.splitlines()
    assert lines[0] == (
        "sjepa-small for own (32 training clips, median 30 frames, 20 joints, up to 1 person, "
        "2 classes):"
    )
    assert lines[1] == "  data.split random: the store's only one"
    assert "  data.frames 32: median 30, in steps of 16" in lines
    assert "  optim.length 4: given; the rule says 600" in lines
    config = read_config(run / "config.yaml")
    assert (config.data.split, config.data.frames, config.data.bodies) == ("random", 32, 1)
    assert (config.optim.batch_size, config.optim.length) == (32, 4)
    assert (config.data.whiten, config.model.layer_scale) == (0.5, 1e-4)
    assert (config.objective.kind, config.data.synthetic) == ("sjepa", False)
    assert (run / "results" / "knn-before-after.json").is_file()


def test_everything_after_the_run_needs_no_rule(
    own: Path, finished: tuple[Path, Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = finished
    for module in ("config.files.fitted", "train.facts_of"):
        monkeypatch.setattr(f"sjepa_fast.{module}", None)
    before = weights(run)
    for words in ([], ["sjepa-small", "--data.root", own]):
        more = flags(SHORT) if words else []
        done = call(train.main, *words, "--run", run, "--resume", "auto", *more)
        assert done.returncode == 0, done.stderr
        assert "small" not in done.stdout, "nothing was chosen"
    assert all((weights(run)[name] == tensor).all() for name, tensor in before.items())
    assert evaluate.run(["knn", str(run), "--pool", "full"]) == 0
    assert (run / "results" / "knn-target-full-own-random.json").is_file()
    words = ["mamp-small", "--data.root", own, "--run", run, "--resume", "auto"]
    other = call(train.main, *words, *flags(SHORT))
    assert other.returncode == 2 and "but the run began with" in other.stderr


def test_preset_then_rule_then_yaml_then_flags(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(f"data: {{root: {own}, frames: 64}}\noptim: {{batch_size: 16}}\n")
    config = parse_train(["--config", str(file), "--data.frames", "48"], facts_of)
    # Steps follow the batch of the file and the frames of the flag.
    assert (config.data.frames, config.optim.batch_size, config.optim.length) == (48, 16, 600)
    said = capsys.readouterr().out
    assert "data.frames 48: given; the rule says 32" in said
    assert "optim.batch_size 16: given; the rule says 32" in said
    same = parse_train(["skeletonmae-small", "--data.root", str(own), "--mask.ratio=0.7"], facts_of)
    assert same.objective.kind == "skeletonmae" and same.optim.lr == 2e-3
    assert "mask.ratio 0.7: given\n" in capsys.readouterr().out


def test_print_config_is_yaml_with_the_reasons_before_it(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_train(["mamp-small", "--data.root", str(own), "--print-config"], facts_of)
    said = capsys.readouterr().out
    assert said.startswith("# mamp-small for own (32 training clips")
    assert "#   optim.length 600: 600 passes, the least steps\n" in said
    assert yaml.safe_load(said)["optim"]["length"] == 600


def test_a_whole_configuration_is_not_fitted(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as that of a run that was copied from elsewhere, where the store is another one."""
    file = tmp_path / "config.yaml"
    config = parse_train(["mamp-nucla", "--data.root", str(own), "--run", "elsewhere"])
    file.write_text(to_yaml(config))
    assert parse_train(["--config", str(file), "--run", "elsewhere"], facts_of) == config
    assert capsys.readouterr().out == ""


def test_without_preset_and_store_it_is_the_demo() -> None:
    config = parse_train(["--run", "x"], facts_of)
    assert config.data == preset("sjepa-demo").data and config.optim == preset("sjepa-demo").optim


@pytest.mark.parametrize("name", list(FITTED))
def test_every_objective_trains_on_two_persons(name: str, tmp_path: Path) -> None:
    store = write(tmp_path / "pairs", clips=20, bodies=2, frames=12)
    short = {**SHORT, "optim.length": 2, "model.depth": 3}
    done = call(train.main, name, "--data.root", store, "--run", tmp_path / "run", *flags(short))
    assert done.returncode == 0, done.stderr
    config = read_config(tmp_path / "run" / "config.yaml")
    assert (config.data.bodies, config.optim.batch_size) == (2, 32)
    assert "data.bodies 2: most persons of any clip" in done.stdout


def test_the_grid_and_training_from_scratch_take_it_too(own: Path, tmp_path: Path) -> None:
    grid = ablate.parse_ablation(
        ["--data.root", str(own), "--axis", "ratio", "--values", "0.5", "--run", str(tmp_path)]
    )
    assert grid.cells["0.5"][0].data.whiten == 0.5 and grid.cells["0.5"][0].mask.ratio == 0.5
    scratch = SupervisedRequest(tmp_path / "run", data=EvalData(root=own), preset="sjepa-small")
    assert scratch.configuration().data.split == "random"


def test_processes_of_a_launcher_say_it_once(own: Path, tmp_path: Path) -> None:
    words = ["-m", "--", "sjepa_fast.train", "--data.root", own, "--run", tmp_path / "run"]
    done = torchrun(2, *words, *flags({**SHORT, "optim.length": 2}))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sjepa-small for own") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["mamp-small"],
            "data.root: not given; mamp-small fits itself to a store: add --data.root",
        ),
        (["sjepa-small", "--data.synthetic"], "data.root: not given; sjepa-small fits itself"),
        (["--data.root", "{none}"], "has no store"),
        (["--data.root", "{few}"], "data.root: own has 8 training clips in random; presets"),
        (["--data.root", "{brief}"], "own has clips of 3 frames (median), a segment has 4;"),
        (["--data.root", "{own}", "--data.split", "xsub"], "data.split: xsub; own has random"),
        (
            ["--data.root", "{own}", "--model.segment-length", "0"],
            "model.segment_length: 0; give a",
        ),
        (["--data.root", "{own}", "--data.frames", "9" * 400], "give at most 16384"),
        (
            ["--data.root", "{own}", "--optim.batch-size=-1"],
            "optim.batch_size: -1; give a positive",
        ),
        (["--data.root", "{several}"], "data.split: not given; synthetic has several; add"),
    ],
    ids=str,
)
def test_what_is_refused_in_one_line(
    words: list[str], says: str, own: Path, store: Path, tmp_path: Path
) -> None:
    places = {"none": tmp_path / "none", "own": own, "several": store}
    places["few"] = write(tmp_path / "few", clips=10)
    places["brief"] = write(tmp_path / "brief", frames=3)
    run = tmp_path / "run"
    done = call(train.main, *(word.format(**places) for word in words), "--run", run)
    assert done.returncode == 2 and says in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not run.exists()


def test_without_a_way_to_read_stores_it_is_refused(own: Path) -> None:
    with pytest.raises(InputError, match="preset: sjepa-small; it fits itself to a store"):
        parse_train(["--data.root", str(own)])


@pytest.mark.slow
def test_the_command_as_it_stands(own: Path, tmp_path: Path) -> None:
    words = ["--data.root", own, *flags({**SHORT, "optim.length": 2})]
    for name in ("sjepa-small", "sjepa-small-2"):
        done = run_python("-m", "sjepa_fast.train", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "runs" / name / "config.yaml").is_file()
