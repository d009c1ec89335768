"""Every protocol in several processes of a launcher: the results are those of one, bit for bit."""

import json
import shutil
from pathlib import Path

import pytest

from sjepa_fast import evaluate
from sjepa_fast.data.synthetic import write_synthetic_store
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation import features, subject
from sjepa_fast.evaluation.protocols import PROTOCOLS, linear
from sjepa_fast.runtime.dist import World
from tests.tiny import as_kinect, flags, torchrun, trained

# Small enough for several chunks, of which the last is shorter; one part has fewer than processes.
CHUNK = 30
# All calls in one start of the processes: the group has to outlive the first of them.
CALLS = """
import json, sys
from sjepa_fast import evaluate
from sjepa_fast.evaluation import features
from sjepa_fast.evaluation.protocols import linear
from sjepa_fast.runtime.dist import disconnect, environment_world

evaluate.disconnect = lambda world: None
features.CHUNK = linear.CHUNK = int(sys.argv[1])
for words in json.loads(sys.argv[2]):
    assert evaluate.run(words) == 0, words
disconnect(environment_world())
"""
STEPS = {"recipe.unit": "steps", "recipe.length": 2, "recipe.warmup": 1, "recipe.score-every": 2}
SHORT = flags({**STEPS, "recipe.hidden": 8, "recipe.batch-size": 16})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    store = write_synthetic_store(folder / "store", subjects=2, repetitions=1)
    as_kinect(store, folder / "other")
    sizes = {"data.split": "xsub", "optim.length": 2, "optim.batch-size": 16}
    return trained(store.root, folder / "run", *flags(sizes))


def requests(run: Path) -> list[list[str]]:
    # Shared unevenly.
    several = [*SHORT, "--seeds", "0", "1", "2"]
    other = ["--data.root", str(run.parent / "other")]
    own = ["--data.root", str(run.parent / "store"), "--data.split", "xsub"]
    return [
        ["knn", str(run), "--pool", "full"],
        ["knn", str(run), "--encoder", "raw"],
        ["knn", str(run), "--pool", "pyramid", "--scaling", "pca", "--checkpoints", "all"],
        ["retrieval", str(run), *other],
        ["linear", str(run), "--recipe.name", "small"],
        ["linear", str(run), "--recipe.name", "paper", "--recipe.epochs", "2", "--augment"],
        ["finetune", str(run), *several],
        ["supervised", str(run.parent / "scratch"), *own, *several],
        ["semi", str(run), "--ratio", "0.5", *several],
        ["transfer", str(run), *other, *several],
        ["ensemble", str(run), str(run), "--of", "linear-target-mean-synthetic"],
    ]


def kept(results: Path) -> dict[str, object]:
    """Everything in a folder of results but the pictures: JSON read, the rest as bytes."""
    files = [path for path in results.iterdir() if path.suffix != ".png"]
    return {
        path.name: json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes()
        for path in files
    }


@pytest.mark.slow
def test_results_of_two_processes_are_those_of_one(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = requests(run)
    assert {words[0] for words in every} == set(PROTOCOLS)
    monkeypatch.setattr(features, "CHUNK", CHUNK)
    monkeypatch.setattr(linear, "CHUNK", CHUNK)
    shutil.rmtree(run / "results", ignore_errors=True)
    for words in every:
        assert evaluate.run(words) == 0
    scratch = run.parent / "scratch"
    alone, alone_scratch = kept(run / "results"), kept(scratch / "results")
    shutil.rmtree(run / "results"), shutil.rmtree(scratch)
    script = tmp_path / "calls.py"
    script.write_text(CALLS)
    done = torchrun(2, script, str(CHUNK), json.dumps(every))
    assert done.returncode == 0, done.stderr
    together = kept(run / "results")
    assert together == alone
    assert kept(scratch / "results") == alone_scratch
    assert {
        *("knn-random-full-synthetic-xsub.json", "knn-random-pyramid-pca-synthetic-xsub.json"),
        *("retrieval-raw-kinect-xsub.json", "linear-random-mean-augment-synthetic-xsub.json"),
    } <= set(alone), "what stands beside"
    written = [line for line in done.stdout.splitlines() if " -> " in line]
    assert len(written) == len(every), "one process prints"


def test_fewer_seeds_than_processes_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(subject, "connect", lambda *_: None)
    monkeypatch.setattr(World, "gather", lambda _, own: list(own))
    with pytest.raises(InputError, match=r"seeds: 1 for 2 processes.* give 2 seeds or more"):
        evaluate.run(["finetune", str(run), *SHORT, "--seeds", "9"])
    assert not list((run / "finetune").glob("*-s9"))


def test_processes_that_found_different_checkpoints_do_not_score(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run may save between two processes' looks at its folder."""
    monkeypatch.setattr(subject, "connect", lambda *_: None)
    monkeypatch.setattr(World, "gather", lambda _, own: [*own, 10**6])
    with pytest.raises(InputError, match="got a new checkpoint while the processes opened it"):
        evaluate.run(["knn", str(run)])
