"""`--log.to`: boards that get the rows of `metrics.jsonl`, and what a broken one does to a run."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sjepa_fast import extras
from sjepa_fast.config.files import apply_values, parse_train, to_yaml
from sjepa_fast.config.plain_yaml import plain_yaml
from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.errors import InputError
from sjepa_fast.runtime.boards import BOARDS, check_boards
from sjepa_fast.runtime.logging import RunLog
from sjepa_fast.train import main
from tests.tiny import call, metrics, words_of_run

TRACKERS = ("wandb", "trackio")


class Tracker(ModuleType):
    """Has the calls that W&B and trackio share, and keeps what it was called with."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.calls: list[tuple[str, Any]] = []

    def init(self, **words: Any) -> None:
        self.calls.append(("init", words))

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append(("log", {"step": step, **values}))

    def finish(self) -> None:
        self.calls.append(("finish", None))


@pytest.fixture
def trackers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tracker]:
    made = {name: Tracker(name) for name in TRACKERS}
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    return made


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_gets_the_rows_and_the_settings(
    trackers: dict[str, Tracker], tmp_path: Path, name: str
) -> None:
    run = tmp_path / "mine"
    for start, step in ((0, 5), (5, 10), (0, 5)):
        run.mkdir(exist_ok=True)
        with RunLog(run, start, (name,), {"optim": {"lr": 0.1}}) as log:
            log.row(step, {"loss": 2.0})
    (_, begun), *rest = trackers[name].calls
    assert begun["name"].startswith("mine") and begun["config"] == {"optim": {"lr": 0.1}}
    assert begun["resume"] == "allow", "a resumed run goes on in the same place"
    assert rest[0] == ("log", {"step": 5, "loss": 2.0}) and rest[1] == ("finish", None)
    assert rest[2] == ("init", begun), "under the same name and id"
    assert rest[3:5] == [("log", {"step": 10, "loss": 2.0}), ("finish", None)]
    _, again = rest[5]
    unique = {"wandb": "id", "trackio": "name"}[name]
    assert again[unique] != begun[unique], "a fresh start in the same folder is another run"


def test_a_run_that_trains_hands_over_all_rows(
    trackers: dict[str, Tracker], store: Path, tmp_path: Path
) -> None:
    words = words_of_run(store, tmp_path / "run", "--log.to", *TRACKERS)
    assert call(main, *words).returncode == 0
    for name in TRACKERS:
        rows = [given for what, given in trackers[name].calls if what == "log"]
        assert rows == metrics(tmp_path / "run"), name
        assert trackers[name].calls[0][1]["config"]["log"]["to"] == list(TRACKERS)


# A network that is away is an OSError, as a full disk is.
@pytest.mark.parametrize("kind", [RuntimeError, ConnectionError])
@pytest.mark.parametrize("when", ["init", "log", "finish"])
def test_a_board_that_fails_is_said_once_and_does_not_end_the_run(
    trackers: dict[str, Tracker],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    when: str,
    kind: type[Exception],
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise kind("no\nnetwork\x1b")

    monkeypatch.setattr(trackers["wandb"], when, refuse)
    with RunLog(tmp_path, 0, TRACKERS) as log:
        for step in (1, 2):
            log.row(step, {"loss": 1.0})
    said = capsys.readouterr().err.splitlines()
    reason = f"{kind.__name__}: no network\\x1b"
    assert said == [f"warning: nothing more goes to wandb ({reason})"]
    assert [what for what, _ in trackers["trackio"].calls] == ["init", "log", "log", "finish"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_that_is_not_installed_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda module: None)
    run = tmp_path / "run"
    refused = call(main, "--data.synthetic", "--run", run, "--log.to", name)
    assert refused.returncode == 2 and not run.exists()
    install = f"run: pip install {name} (or: pip install 'sjepa-fast[log]')"
    assert refused.stderr == f"log.to: {name} needs {name}, not installed here; {install}\n"


def test_what_is_no_board_is_refused() -> None:
    with pytest.raises(InputError, match=r"log\.to: tensorboard twice"):
        check_boards(("tensorboard", "tensorboard"))
    for text in ("{log: {to: wandb}}", "{log: {to: [wanb]}}"):
        with pytest.raises(InputError, match=r"(is not a list|nearest: wandb).*log\.to"):
            apply_values(TrainConfig(), plain_yaml(text), "text")


def test_the_flag_of_older_versions() -> None:
    for old, new in (("true", ("tensorboard",)), ("false", ())):
        values = plain_yaml(f"log: {{tensorboard: {old}}}")
        config = apply_values(TrainConfig(), values, "config.yaml")
        assert config.log.to == new
        assert apply_values(TrainConfig(), plain_yaml(to_yaml(config)), "text") == config
    with pytest.raises(InputError, match=r"it is now --log\.to tensorboard"):
        parse_train(["--data.synthetic", "--log.tensorboard"])
    with pytest.raises(InputError, match=r"--log\.no-tensorboard: no such flag; leave it out"):
        parse_train(["--data.synthetic", "--log.no-tensorboard"])


@pytest.mark.parametrize("name", TRACKERS)
def test_the_real_one_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed (extra log)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run = tmp_path / "run"
    run.mkdir()
    for start in (0, 2):
        with RunLog(run, start, (name,), {"optim": {"lr": 0.1}}) as log:
            log.row(start + 1, {"loss": 1.5})
            log.row(start + 2, {"loss": 1.25})
    assert "nothing more goes to" not in capfd.readouterr().err
    files = [path for path in tmp_path.rglob("*") if path.suffix in (".wandb", ".db")]
    assert files and all(path.stat().st_size for path in files)
    rows = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3, 4]
