"""Comparisons give the commands behind the committed tables; each result finds its own cell."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import accuracy
from benchmarks.accuracy import OBJECTIVES, PROTOCOLS, REAL_DATA, TARGETS, Comparison
from sjepa_fast import cli
from sjepa_fast.config.files import parse_train
from sjepa_fast.evaluation import protocols
from sjepa_fast.evaluation.request import Request

DATA, WORK = Path("DATA"), Path("WORK")
ALL = [REAL_DATA, PROTOCOLS, OBJECTIVES, TARGETS]


def named(comparison: Comparison) -> str:
    return comparison.name


def seeded(comparison: Comparison, *seeds: int) -> Comparison:
    lines = tuple(line._replace(seeds=seeds) for line in comparison.lines)
    return dataclasses.replace(comparison, lines=lines)


def listed(comparison: Comparison, work: Path = WORK) -> list[str]:
    found = accuracy.commands(comparison, DATA, work)
    return [
        shlex.join([module.split(".")[1], *words]) for module in found for words in found[module]
    ]


def committed(comparison: Comparison) -> dict[str, Any]:
    path = accuracy.RESULTS / f"{comparison.name.replace('-', '_')}.json"
    content: dict[str, Any] = json.loads(path.read_text())
    return content


# Numbers and samples are those of the shell scripts that made the committed results.
NUMBERS = {
    "real-data": {"prepare": 3, "train": 16, "evaluate": 130},
    "protocols": {"prepare": 4, "train": 12, "evaluate": 88},
    "objectives": {"prepare": 2, "train": 8, "evaluate": 44},
    "targets": {"prepare": 1, "train": 9, "evaluate": 38},
}
SAMPLES = {
    "real-data": """
        prepare sbu --raw DATA/sbu_interaction --out WORK/stores/sbu
        train sjepa-nucla --data.root WORK/stores/nucla --run WORK/nucla-s2 --seed 2
            --mask.ratio 0.9 --compile
        train sjepa-nucla --data.split xsub --data.whiten 0.5 --optim.length 600
            --data.root WORK/stores/msr_action3d --run WORK/msr_action3d-s0 --seed 0
            --mask.ratio 0.9 --compile
        train sjepa-nucla --data.split fold4 --data.bodies 2 --optim.length 300
            --data.root WORK/stores/sbu --run WORK/sbu-f4-s1 --seed 1 --mask.ratio 0.9 --compile
        evaluate knn WORK/nucla-s1 --encoder target --pool full --data.split xview
        evaluate knn WORK/nucla-s1 --encoder target --pool full --data.split xview_clean
        evaluate linear WORK/msr_action3d-s2 --encoder random --pool mean --data.split xsub
        evaluate linear WORK/sbu-f3-s1 --encoder target --pool joint --data.split fold3
        evaluate linear WORK/sbu-f3-s0 --encoder raw --data.split fold3""",
    "protocols": """
        prepare florence3d --raw DATA/florence3d --out WORK/stores/florence3d
        train sjepa-nucla --compile --data.root WORK/stores/nucla --run WORK/nucla-s0 --seed 0
            --mask.ratio 0.9 --log.knn-every 0
        train sjepa-nucla --data.split xsub --optim.length 300 --data.root WORK/stores/utkinect
            --run WORK/utkinect-s1 --seed 1 --mask.ratio 0.9 --log.knn-every 0
        evaluate knn WORK/nucla-s0 --encoder raw --data.split xview_clean
        evaluate linear WORK/utkinect-s0 --encoder raw --pool joint --data.split xsub
        evaluate finetune WORK/nucla-s2 --seeds 2 --recipe.name small --data.split xview_clean
        evaluate finetune WORK/msr_action3d-s0 --encoder random --seeds 0 1 2 --recipe.name small
            --recipe.batch-size 32 --data.split xsub
        evaluate semi WORK/florence3d-s1 --seeds 1 --recipe.name small --ratio 0.1 --balanced
            --recipe.batch-size 32 --data.split xsub
        evaluate semi WORK/nucla-s0 --encoder random --seeds 0 1 2 --recipe.name small
            --ratio 0.1 --balanced --recipe.batch-size 32 --data.split xview_clean""",
    "objectives": """
        prepare nucla --raw DATA/nucla --out WORK/stores/nucla
        train skeleton2vec-nucla --data.root WORK/stores/nucla --run WORK/skeleton2vec-nucla-s0
            --seed 0 --resume auto --log.knn-every 0 --compile
        evaluate knn WORK/sjepa-nucla-s0 --encoder raw
        evaluate linear WORK/sjepa-msr_action3d-s0 --encoder raw --pool joint
        evaluate linear WORK/mamp-msr_action3d-s0 --encoder target --pool mean
        evaluate finetune WORK/skeletonmae-nucla-s0 --seeds 0 --recipe.name small
            --recipe.batch-size 32
        evaluate finetune WORK/sjepa-nucla-s0 --encoder random --seeds 0 --recipe.name small
            --recipe.batch-size 32""",
    "targets": """
        train sjepa-nucla --objective.target-every 2 --data.root WORK/stores/nucla
            --run WORK/targets-2-s1 --seed 1 --data.split val --optim.length 400
            --runtime.dtype bfloat16 --log.knn-every 0
        evaluate knn WORK/targets-1-s2 --encoder target --pool full --data.split val
        evaluate linear WORK/targets-0-s0 --encoder random --pool joint --data.split val""",
}


@pytest.mark.parametrize("comparison", ALL, ids=named)
def test_commands_are_those_of_the_committed_results(comparison: Comparison) -> None:
    lines = listed(comparison)
    assert len(set(lines)) == len(lines)
    assert Counter(line.split()[0] for line in lines) == NUMBERS[comparison.name]
    samples = SAMPLES[comparison.name].replace("\n            --", " --").splitlines()[1:]
    missing = {line.strip() for line in samples} - set(lines)
    assert not missing


def test_seeds_multiply_runs_and_what_needs_one_run_stays_with_the_first() -> None:
    more = Counter(line.split()[0] for line in listed(seeded(OBJECTIVES, 0, 1, 2)))
    assert more == {"prepare": 2, "train": 24, "evaluate": 132}
    lines = listed(seeded(PROTOCOLS, 4, 5))
    assert [line for line in lines if "finetune" in line and "utkinect" in line] == [
        f"evaluate finetune WORK/utkinect-{rest} --recipe.name small --recipe.batch-size 32 "
        "--data.split xsub"
        for rest in ("s4 --encoder random --seeds 4 5", "s4 --seeds 4", "s5 --seeds 5")
    ]


@pytest.mark.parametrize("comparison", ALL, ids=named)
def test_the_commands_have_flags_that_exist(comparison: Comparison) -> None:
    for words in map(shlex.split, listed(seeded(comparison, 0))):
        if words[0] == "train":
            config = parse_train(words[1:])
            assert str(config.run).startswith("WORK/") and config.seed == 0
        elif words[0] == "evaluate":
            request = cli.parse(protocols.PROTOCOLS[words[1]].request, words[2:], prog="evaluate")
            assert isinstance(request, Request) and str(request.run) == words[2]


def leave(run: Path, name: str, encoder: str, **figures: Any) -> None:
    (run / "results").mkdir(parents=True, exist_ok=True)
    result = {"protocol": name.split("-")[0], "encoder": encoder, **figures}
    (run / "results" / f"{name}.json").write_text(json.dumps(result))


@pytest.mark.parametrize("comparison", ALL, ids=named)
def test_what_is_done_is_not_done_again(comparison: Comparison, tmp_path: Path) -> None:
    every = listed(comparison, tmp_path)
    line = comparison.lines[0]
    run, split = line.run(tmp_path, 0), next(iter(line.splits)) or "xview"
    leave(run, f"knn-target-full-{line.store}-{split}", "target")
    leave(run, f"linear-target-joint-{line.store}2-{split}", "target")
    (run / "results" / "knn-before-after.json").write_text("{}")
    (tmp_path / "stores" / line.store).mkdir(parents=True)
    gone = [words for words in every if words not in listed(comparison, tmp_path)]
    assert [words.split()[0] for words in gone] == ["prepare", "train", "evaluate"]
    assert f"{run} --encoder target --pool full" in gone[2]


def test_a_result_over_other_seeds_is_made_anew(tmp_path: Path) -> None:
    leave(tmp_path / "utkinect-s0", "finetune-random-utkinect-xsub", "random", seeds=[0])
    start = f"evaluate finetune {tmp_path}/utkinect-s0 --encoder random --seeds"
    found = [line for line in listed(PROTOCOLS, tmp_path) if line.startswith(start)]
    assert len(found) == 1 and f"{start} 0 1 2 " in found[0]
    assert not any(line.startswith(start) for line in listed(seeded(PROTOCOLS, 0), tmp_path))


@pytest.mark.parametrize("comparison", ALL, ids=named)
def test_committed_tables_are_those_of_the_committed_json(comparison: Comparison) -> None:
    content = committed(comparison)
    path = accuracy.RESULTS / f"{comparison.name.replace('-', '_')}.md"
    assert accuracy.page(comparison, content) == path.read_text()


def rebuilt(entry: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and content of the result file that an entry of the committed JSON was made from."""
    protocol, encoder, recipe = entry["protocol"], entry["encoder"], entry["recipe"]
    name = "semi0.1-balanced" if protocol == "semi" else protocol
    pool = None if encoder == "raw" else entry.get("pool") or recipe.get("pool")
    parts = [name, encoder, *([pool] if pool else []), entry["store"], entry["split"]]
    top1 = entry["top1"][0] if isinstance(entry["top1"], list) else entry["top1"]
    figure = {"top1_k1" if protocol == "knn" else "top1": top1}
    content = {key: value for key, value in entry.items() if key not in ("run", "top1")}
    return "-".join(parts), content | figure


@pytest.mark.parametrize("comparison", ALL, ids=named)
def test_committed_json_is_what_its_result_files_give(
    comparison: Comparison, tmp_path: Path
) -> None:
    expected = committed(comparison)
    for entry in expected["files"]:
        name, content = rebuilt(entry)
        folder = tmp_path / entry["run"] / "results"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(content))
    found = accuracy.collect(seeded(comparison, 0, 1, 2), tmp_path)

    def by_text(files: list[dict[str, Any]]) -> list[str]:
        return sorted(map(json.dumps, files))

    assert by_text(found["files"]) == by_text(expected["files"])
    for columns in expected["scores"].values() if comparison.timed else ():
        # These come from files of the run that are not listed.
        columns.pop(accuracy.BEFORE, None), columns.pop(accuracy.MINUTES, None)
    assert found["scores"] == expected["scores"]


def test_cells_come_from_their_own_run_encoder_and_protocol(tmp_path: Path) -> None:
    for seed, shift in ((0, 0.0), (1, 2.0)):
        run = tmp_path / f"mamp-nucla-s{seed}"
        leave(run, "knn-target-full-nucla-xview", "target", pool="full", top1_k1=70 + shift)
        (run / "results" / "knn-before.json").write_text('{"top1": 50.0}')
        tuned = {"top1": 0, "top1_per_seed": [60 + shift], "seeds": [seed]}
        leave(run, "finetune-target-nucla-xview", "target", **tuned)
        rows = [{"step": 0, "knn": 1}, {"step": 20, "ms_per_step": 1500}]
        rows.append({"step": 60, "ms_per_step": 3000})
        (run / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    run = tmp_path / "sjepa-msr_action3d-s0"
    leave(run, "knn-raw-msr_action3d-xsub", "raw", top1_k1=40.0)
    leave(run, "linear-random-joint-msr_action3d-xsub", "random", pool="joint", top1=41.0)
    leave(run, "linear-target-mean-msr_action3d-xsub", "target", pool="mean", top1=42.0)
    leave(run, "retrieval-target-msr_action3d-xsub", "target", top1=1.0)
    (run / "metrics.jsonl").write_text("")
    (tmp_path / "clock").write_text("90 2 0\n")

    comparison = seeded(OBJECTIVES, 0, 1)
    content = accuracy.collect(comparison, tmp_path)
    assert len(content["files"]) == 7, "what came before training and retrieval are no files"
    assert content["command"].endswith("accuracy objectives --data DATA --seeds 0 1")
    table = accuracy.table(comparison, content)
    lines = {line.split(" | ")[1]: line for line in table.splitlines() if "MSR" in line}
    assert lines["raw coordinates"].endswith("|  | 40.0 |  |  |  |  |")
    assert lines["random encoder"].endswith("|  |  | 41.0 |  |  |  |")
    assert lines["S-JEPA"].endswith("|  |  |  | 42.0 |  | 0.0 |")
    (mamp,) = [line for line in table.splitlines() if "N-UCLA" in line and "MAMP" in line]
    # 20 steps of 1.5 s and 40 of 3 s are 2.5 minutes.
    assert mamp.endswith("| 50.0 ± 0.0 | 71.0 ± 1.4 |  |  | 61.0 ± 1.4 | 2.5 ± 0.0 |")
    assert "call, seed 0, took 1.5 minutes, 2 processes" in accuracy.page(comparison, content)


def test_a_page_says_how_wide_its_features_are() -> None:
    content = dict(committed(ALL[0]))
    plain, files = accuracy.page(ALL[0], content), []
    for store, pool, features in (
        ("sbu", "joint", 960),
        ("nucla", None, 1920),
        ("nucla", "full", 10240),
    ):
        files.append({"store": store, "recipe": {"pool": pool}, "features": features})
    files.append({"store": "nucla", "recipe": {"name": "small"}})
    said = accuracy.page(ALL[0], {**content, "files": files})
    assert said.removeprefix(plain) == (
        "\nFeature width, numbers per clip by pooling: "
        "nucla: full 10,240, raw 1,920; sbu: joint 960.\n"
    )


def test_dry_run_lists_the_commands_and_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    work = tmp_path / "work"
    arguments = ["objectives", "--data", "DATA", "--work", str(work), "--seeds", "3", "--dry-run"]
    monkeypatch.setattr(sys, "argv", ["accuracy", *arguments])
    accuracy.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.removeprefix("python -m sjepa_fast.") for line in lines] == listed(
        seeded(OBJECTIVES, 3), work
    )
    assert not work.exists()


def test_a_failed_process_ends_the_program_after_the_others_were_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def fake(call: list[str], env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(call)
        assert env["OMP_NUM_THREADS"] == "1"
        return subprocess.CompletedProcess(call, int("bad" in call[-1]))

    monkeypatch.setattr(subprocess, "run", fake)
    accuracy.execute("sjepa_fast.evaluate", [["knn", str(number)] for number in range(8)], 2)
    assert sorted(call[2:] for call in calls) == [
        [f"knn {number}" for number in range(6)],
        ["knn 6", "knn 7"],
    ]
    with pytest.raises(SystemExit, match=r"^1 processes of .*train failed"):
        accuracy.execute("sjepa_fast.train", [["bad"], ["good"]], 1)
    assert calls[-1][1:] == ["-m", "sjepa_fast.train", "good"]


@pytest.mark.slow
def test_a_short_comparison_runs_from_raw_files_to_its_table(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = accuracy.MANY.parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), str(root / "kernels")]))
    short = " --optim.warmup 1 --model.depth 1 --optim.batch-size 16"
    line = PROTOCOLS.lines[3]
    line = line._replace(seeds=(0,), train=line.train.replace("300", "2") + short)
    columns = {name: PROTOCOLS.columns[name] for name in ("1-NN", "linear")}
    tiny = dataclasses.replace(PROTOCOLS, lines=(line,), columns=columns)
    work, out = tmp_path / "work", tmp_path / "out"
    accuracy.compare(tiny, data_root, work, out)
    assert not any(accuracy.commands(tiny, data_root, work).values()), "all is done"
    content = json.loads((out / "protocols.json").read_text())
    assert len(content["files"]) == 6 and list(content["scores"]) == ["Florence 3D (109 / 106)"]
    text = (out / "protocols.md").read_text()
    assert text.count("| Florence 3D (109 / 106) |") == 3 and text.count("(1) |") == 6
