"""What many tests share: tiny runs, clips built by hand, commands here and in child processes."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from sjepa_fast.build import OBJECTIVES
from sjepa_fast.config.files import parse_train
from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.config.traits import TRAITS
from sjepa_fast.data.clips import ResidentClips
from sjepa_fast.data.store import Store
from sjepa_fast.data.store_writer import StoreWriter
from sjepa_fast.joint_map import map_joints
from sjepa_fast.objectives.objective import Objective, StepInput, make_step_input
from sjepa_fast.skeletons import KINECT20, NTU25, SkeletonLayout
from sjepa_fast.train import train

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
# A target norm that each objective has.
NORMS = {kind: traits.target_norms[0] for kind, traits in TRAITS.items()}
# What each objective cannot do without, as keys of the section `objective`.
AIMS: dict[str, dict[str, object]] = {
    kind: {"kind": kind, "target_norm": NORMS[kind]}
    | ({"regularizer": "sigreg"} if traits.several_crops else {})
    for kind, traits in TRAITS.items()
}
PREDICTING = [kind for kind, traits in TRAITS.items() if traits.predicts != "nothing"]
Done = subprocess.CompletedProcess[str]
# A run of `sjepa-demo` with these takes seconds.
SMALL = {
    "data.frames": 16,
    "data.crop-min-frames": 8,
    "model.width": 32,
    "model.heads": 1,
    "model.depth": 1,
    "model.predictor-depth": 1,
    "optim.batch-size": 8,
    "optim.warmup": 1,
    "log.every": 1,
    "log.knn-every": 0,
    "runtime.device": "cpu",
    # Not auto: a trial may decide otherwise in another process.
    "runtime.dtype": "bfloat16",
}
# One step of it takes milliseconds.
STEP_CONFIG = replace(
    TrainConfig(),
    data={"frames": 8, "bodies": 1, "crop_min_frames": 4},
    model={"segment_length": 4, "width": 32, "depth": 1, "heads": 1, "predictor_depth": 1},
    view={"rotation": 0.5, "tilt": 0.1, "translation": 0.1, "flip": 0.5},
    objective={"ema_start": 0.9, "ema_end": 1.0},
    optim={"batch_size": 6, "clip_grad": 3.0},
)


def flags(values: Mapping[str, object]) -> list[str]:
    """Command-line flags: a boolean is a flag of its own, with `no-` before the name if false."""
    words = []
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        off = f"--{section}.no-{name}"
        words.append({"True": f"--{key}", "False": off}.get(str(value), f"--{key}={value}"))
    return words


def words_of_run(store: Path, run: Path, *more: str) -> list[str]:
    """Arguments of `sjepa_fast.train` for a small run; flags in `more` come last and win."""
    start = ["sjepa-demo", "--data.root", str(store), "--run", str(run)]
    return [*start, *flags(SMALL), *more]


def trained(store: Path, run: Path, *more: str) -> Path:
    """Train a small run in this process and return its folder."""
    assert train(parse_train(words_of_run(store, run, *more))) == 0
    return run


def weights(run: Path, step: int | None = None) -> dict[str, Tensor]:
    """Weights that a run saved at a step, or last."""
    folders = sorted((run / "checkpoints").glob("step-*" if step is None else f"step-{step:08d}"))
    return safetensors.torch.load_file(folders[-1] / "model.safetensors")


def metrics(run: Path) -> list[dict[str, Any]]:
    """What a run logged."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def wait_for_row(run: Path, step: int, process: subprocess.Popen[str], seconds: int = 120) -> None:
    """Wait until a run in a child process has logged a step; its output is not read."""
    rows, limit = run / "metrics.jsonl", time.monotonic() + seconds
    while not (rows.exists() and f'"step": {step},' in rows.read_text()):
        assert process.poll() is None and time.monotonic() < limit, "the run did not get there"
        time.sleep(0.005)


def packed(clips: Sequence[Tensor], layout: SkeletonLayout) -> ResidentClips:
    """Pack clips of the shape (bodies, frames, joints, 3) as a store would; all labels are 0."""
    bodies, frames = torch.tensor([clip.shape[:2] for clip in clips]).T
    rows = bodies * frames
    return ResidentClips(
        joints_RVC=torch.cat([clip.flatten(0, 1) for clip in clips]),
        offsets_N=rows.cumsum(0) - rows,
        frames_N=frames.contiguous(),
        bodies_N=bodies.contiguous(),
        labels_N=torch.zeros_like(rows),
        layout=layout,
        max_bodies=int(bodies.max()),
    )


def drawn(
    bodies: Sequence[int], frames: Sequence[int], layout: SkeletonLayout, seed: int = 0
) -> list[Tensor]:
    """Clips of normal noise for `packed`."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(m, t, layout.num_joints, 3) for m, t in zip(bodies, frames, strict=True)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def step_input(config: TrainConfig, clips: Sequence[Tensor], step: int = 0) -> StepInput:
    """Views and masks of all `clips` (NTU's joints) in a step of seed 0."""
    zero, ids = torch.tensor(0), torch.arange(len(clips))
    return make_step_input(packed(clips, NTU25), ids, zero, torch.tensor(step), config)


def objective(config: TrainConfig) -> Objective:
    """The configured objective for NTU's joints, with the weights of seed 0."""
    torch.manual_seed(0)
    return OBJECTIVES[config.objective.kind](config, NTU25)


def step_clips() -> ResidentClips:
    """Six clips of one body for a step of `STEP_CONFIG`."""
    return packed(drawn([1] * 6, [5, 9, 12, 20, 7, 30], KINECT20), KINECT20)


def as_kinect(store: Store, out: Path) -> Store:
    """The same people as Kinect v1 would see them, two clips per class and part."""
    rows = [row for (row,) in map_joints(NTU25, KINECT20)]
    with StoreWriter(out, "kinect", KINECT20, store.class_names) as writer:
        for part in ("train", "test"):
            ids = store.ids("xsub", part)
            for i in [i for c in range(14) for i in ids[store.labels[ids] == c][:2]]:
                clip = store.clip(i)[:, :, rows]
                writer.add(f"k-{store.names[i]}", clip, int(store.labels[i]), {})
        return writer.finish({"xsub": np.repeat([1, 2], 28).astype(np.int8)})


def call(main: Callable[[list[str]], None], *arguments: str | Path) -> Done:
    """Run a command's entry in this process: importing torch takes longer than most tests."""
    words = [str(word) for word in arguments]
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as stop,
    ):
        main(words)
    return Done(words, int(stop.value.code or 0), out.getvalue(), err.getvalue())


def environment(*first: Path) -> dict[str, str]:
    """Environment of a child process that imports from `first`, then from this checkout."""
    path = os.pathsep.join(map(str, [*first, ROOT, ROOT / "kernels"]))
    # A pytest that the child runs is no worker of this one, and measures.
    kept = {name: x for name, x in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return {**kept, "PYTHONPATH": path}


def run_python(*words: str | Path, timeout: float = 300, **options: Any) -> Done:
    """Run `python WORDS` in a child process to its end."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        **{"env": environment(), **options},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def torchrun(processes: int, *words: str | Path, timeout: float = 300, **options: Any) -> Done:
    """Run `torchrun WORDS` with as many processes on this machine, to its end."""
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
    return run_python(*launcher, *words, timeout=timeout, **options)


def start_python(*words: str | Path, **options: Any) -> subprocess.Popen[str]:
    """Start `python WORDS` as a terminal does: with SIGINT at its default.

    A background job of a shell ignores SIGINT, and so would the children of its tests.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [sys.executable, *map(str, words)],
            **{"env": environment(), **options},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)


def blocks(document: str, language: str) -> list[str]:
    """Code blocks of a document of this repository; lines that a backslash continues are one."""
    text = re.sub(r" *\\\n *", " ", (ROOT / document).read_text())
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.M | re.S)


def no_tests(cell: str) -> list[str]:
    """What a table of a document names as its tests, `FILE` or `FILE::NAME`, and is none.

    A file without a name is all of its tests. A cell that names nothing is wrong as a whole.
    """
    named = re.findall(r"`(tests/[^`:]+)(?:::([^`]+))?`", cell)
    wrong = [] if named else [cell]
    for file, name in named:
        path = ROOT / file
        tree = ast.parse(path.read_text() if path.name.startswith("test_") else "")
        found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        tests = {test for test in found if test.startswith("test_")}
        if not tests or (name and name not in tests):
            wrong.append(f"{file}::{name}")
    return wrong


def nucla_lines(document: str, data_root: Path) -> list[list[str]]:
    """Words of the commands about N-UCLA in a document, with the data where it is here."""
    lines = [line for block in blocks(document, "sh") for line in block.splitlines()]
    here = [line.replace("../shared/data", str(data_root)) for line in lines if "nucla" in line]
    return [shlex.split(line, comments=True) for line in here]


def run_documented(words: Sequence[str]) -> Done:
    """Run `python -m MODULE ARGUMENTS` of a document in this process and folder."""
    assert list(words[:2]) == ["python", "-m"], words
    done = call(importlib.import_module(words[2]).main, *words[3:])
    assert done.returncode == 0, (words, done.stderr)
    return done
