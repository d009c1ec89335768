"""What commands show while they work: a line with a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.terminals import Shown, on_terminal
from tests.tiny import flags, run_python, trained, words_of_run

LENGTHS = {"optim.length": 9, "log.every": 3, "log.panel-every": 6, "checkpoint.every": 4}
FINETUNE = ("--recipe.length", "3", "--recipe.unit", "steps", "--recipe.warmup", "0")


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal") / "run"
    return trained(store, folder, "--optim.length=2", "--data.split=xsub")


def shows(shown: Shown, *heads: str) -> None:
    """The command succeeds, and each phase had a bar; a count has a time that is left."""
    assert shown.code == 0, shown.text
    for head in heads:
        found = [line for line in shown.bars if re.match(head, line)]
        assert found, (head, shown.lines)
        if "/" in head:
            assert all(re.search(r"ETA (--:--:--|\d\d:\d\d:\d\d)", line) for line in found)


def test_train_shows_phases_steps_and_figures(store: Path, tmp_path: Path) -> None:
    words = words_of_run(store, tmp_path / "run", *flags(LENGTHS), "--log.knn-every=3")
    shown = on_terminal("-m", "sjepa_fast.train", *words)
    shows(shown, "loading ", r"step \d+/9 ", "report ")
    assert shown.lines[0] == f"run folder: {tmp_path / 'run'}"
    last = [line for line in shown.bars if line.startswith("step 9/9 ")][-1]
    for figure in ("ETA 00:00:00", "loss ", "kNN ", "clips/s "):
        assert figure in last
    (left,) = (line for line in shown.lines if line.startswith("step 9/9 | loss "))
    assert len(left) <= 100


def test_ctrl_c_names_a_command_that_goes_on(store: Path, tmp_path: Path) -> None:
    run = tmp_path / "a run"
    typed: list[str] = []

    def react(said: str) -> bytes:
        if not typed and re.search(r"step \d\d+/400", said):
            typed.append("ctrl-c")
            return b"\x03"
        return b""

    words = words_of_run(store, run, *flags({**LENGTHS, "optim.length": 400}))
    shown = on_terminal("-m", "sjepa_fast.train", *words, react=react)
    assert shown.code == 130, shown.text
    said = re.search(r"stopped by SIGINT: step (\d+) is saved; (.*) goes on\r\n", shown.text)
    assert said, "in one line, to be copied"
    python, *resume = shlex.split(said[2])
    assert python == "python" and resume[-2:] == ["--resume", "auto"]
    before = (run / "config.yaml").read_text()
    # Shorter than the run was, so that nobody waits for the rest of it.
    (run / "config.yaml").write_text(before.replace("length: 400", f"length: {int(said[1]) + 2}"))
    resumed = run_python(*resume)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resumed at step {said[1]}" in resumed.stdout
    after = (run / "config.yaml").read_text()
    ours, theirs = (
        [line for line in text.splitlines() if "length:" not in line and "resume:" not in line]
        for text in (before, after)
    )
    assert ours == theirs, "the command is that of the same run"


@pytest.mark.parametrize(
    ("words", "heads"),
    [
        (("linear",), (r"features \d+/\d+ ", "linear probe ")),
        (("linear", "--recipe", "paper", "--recipe.epochs", "40", "--augment"),
         (r"features \d+/\d+ ", r"linear probe: epoch \d+/40 ")),
        (("finetune", *FINETUNE), (r"step \d/3 ",)),
    ],
    ids=["small", "paper", "finetune"],
)  # fmt: skip
def test_evaluate_shows_features_epochs_and_steps(
    run: Path, words: tuple[str, ...], heads: tuple[str, ...]
) -> None:
    shown = on_terminal("-m", "sjepa_fast.evaluate", words[0], run, *words[1:])
    shows(shown, "loading ", *heads)
    assert shown.lines[0] == f"run folder: {run}"


@pytest.mark.slow
def test_supervised_shows_its_steps(store: Path, tmp_path: Path) -> None:
    words = ("--data.root", store, "--data.split", "xsub", "--preset", "sjepa-demo")
    shown = on_terminal(
        "-m", "sjepa_fast.evaluate", "supervised", tmp_path / "run", *words, *FINETUNE
    )
    shows(shown, "loading ", r"step \d/3 ")


def test_embed_shows_its_clips(store: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.npz"
    shown = on_terminal("-m", "sjepa_fast.embed", run, store, "--out", out, "--batch-size", "8")
    shows(shown, "loading ", r"embedding \d+/\d+ ")


def clips(folder: Path) -> Path:
    """A folder of clips whose name, that of the set, a terminal would obey."""
    folder.mkdir()
    for number in range(40):
        walk = np.random.default_rng(number).normal(size=(30, 22, 3), scale=0.4)
        np.save(folder / f"c{number:02d}.npy", walk)
    return folder


def prepare(folder: Path, out: Path) -> tuple[str | Path, ...]:
    words = ("generic", "--raw", folder, "--layout", "kinect22", "--out", out)
    return ("-m", "sjepa_fast.prepare", *words)


def test_prepare_shows_its_inputs(tmp_path: Path) -> None:
    shown = on_terminal(*prepare(clips(tmp_path / "my \x1b[31mclips"), tmp_path / "out"))
    shows(shown, "loading ", r".*clips \d+/40 ", "writing ")
    assert "\x1b[31mclips" not in shown.raw


Command = Callable[[Path, Path, Path], tuple[str | Path, ...]]


@pytest.mark.parametrize(
    "command",
    [
        lambda store, run, out: (
            "-m", "sjepa_fast.train", *words_of_run(store, out / "run", *flags(LENGTHS)),
        ),
        lambda store, run, out: ("-m", "sjepa_fast.evaluate", "linear", run),
        lambda store, run, out: ("-m", "sjepa_fast.embed", run, store, "--out", out / "a.npz"),
        lambda store, run, out: prepare(clips(out / "clips"), out / "out"),
    ],
    ids=["train", "evaluate", "embed", "prepare"],
)  # fmt: skip
def test_a_file_gets_plain_lines(store: Path, run: Path, tmp_path: Path, command: Command) -> None:
    """Also where a variable has rich take the file for a terminal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORCE_COLOR", "1")
        done = run_python(*command(store, run, tmp_path))
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert not re.search(r"[\x1b\r━╸]", said), said
    assert "loading" in said.splitlines()
    assert len(said.splitlines()) <= 25
