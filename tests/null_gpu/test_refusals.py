"""What a card or a machine lacks is said before anything is compiled or trained.

Each case is a process of its own: with a small card, without a compiler, on device values that are
none.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.peers import MODULES
from tests.null_gpu.build import ROOT, build, environment

Done = subprocess.CompletedProcess[str]


def on_null_gpu(*words: str, gib: float | None = None, **more: str) -> Done:
    """Run Python on a null GPU of its own."""
    return subprocess.run(
        [sys.executable, *words],
        env=environment(build(), gib=gib) | {"OMP_NUM_THREADS": "1"} | more,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def test_a_card_that_is_too_small_ends_the_run_before_its_first_step(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["-m", "sjepa_fast.train", "sjepa-ntu60-xsub", "--data.synthetic", "--run", str(run)]
    words += ["--compile", "off", "--log.every=1"]
    # A cache that stays empty: nothing is compiled by Inductor.
    cache = tmp_path / "inductor"
    done = on_null_gpu(*words, gib=4, TORCHINDUCTOR_CACHE_DIR=str(cache))
    assert done.returncode == 2, done.stderr[-3000:]
    said = [line for line in done.stderr.splitlines() if "optim.batch_size" in line]
    assert len(said) == 1 and "256 clips per step do not fit into the 4096 MiB" in said[0]
    assert "32 do: use --optim.accumulate 8" in said[0]
    assert not list(cache.rglob("*.py"))
    assert len((run / "metrics.jsonl").read_text().splitlines()) <= 1
    assert not list((run / "checkpoints").glob("*"))


PREFLIGHT = """
import warnings, torch
from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.runtime.preflight import preflight
from sjepa_kernels import random_mask

config = replace(TrainConfig(), runtime={"compile": "on"})
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    after = preflight(config, torch.device("cuda", 0), torch.bfloat16)
print(len(said), after.runtime.compile, after.runtime.cuda_graph, *(w.message for w in said))
random_mask(2, 8, 2, torch.zeros((), dtype=torch.int64, device="cuda"))
print("the references run")
"""


def test_a_gpu_that_can_do_everything_is_asked_and_nothing_is_said() -> None:
    done = on_null_gpu("-c", PREFLIGHT)
    assert done.stdout.splitlines()[0] == "0 on auto", done.stdout + done.stderr[-3000:]


def test_without_a_compiler_the_references_run_and_nothing_is_compiled(tmp_path: Path) -> None:
    """Triton needs one for its launchers, and so does what Inductor makes for a GPU."""
    done = on_null_gpu("-c", PREFLIGHT, CC="/bin/false", TRITON_CACHE_DIR=str(tmp_path))
    first, *rest = done.stdout.splitlines()
    assert first.startswith("1 off auto Triton does not work: "), done.stderr[-3000:]
    assert "/bin/false" in first and "references, and nothing is compiled" in first
    assert rest == ["the references run"]


RUNG = """
import torch
from benchmarks.report import steps
from benchmarks.report.book import Book, read_report
from pathlib import Path
import sys

torch.backends.cudnn.enabled = False
book = Book(Path(sys.argv[1]), "steps", "cuda", False, 1e12)
book.write(status="running")
wanted = ("ours, eager", "reference B")
attempt = Book.attempt
Book.attempt = lambda self, run, **facts: facts["row"] in wanted and attempt(self, run, **facts)
steps.rungs(book)
for row in read_report(book.path)["sections"]["steps"]["rows"]:
    print(row["row"], row.get("error"), row.get("clips"), row.get("note"), sep="|")
"""


def test_on_a_card_of_24_gib_the_report_measures_what_fits(tmp_path: Path) -> None:
    done = on_null_gpu("-c", RUNG, str(tmp_path / "report.json"), gib=23.7)
    assert done.stdout.splitlines() == [
        "ours, eager|None|128|None",
        "reference B|None|32|32 clips, as 128 do not fit",
    ], done.stdout + done.stderr[-3000:]


def test_every_graph_row_of_the_op_table_is_captured(tmp_path: Path) -> None:
    """Each regime `graph` of the ops; compiled ones take too long here, peers are elsewhere."""
    ini = tmp_path / "pytest.ini"
    ini.write_text("[pytest]\npython_files = bench_*.py\naddopts = --import-mode=importlib\n")
    files = [f"benchmarks/bench_{name}.py" for name in ("kernels", "losses", "regularizers")]
    words = ["-m", "pytest", *files, "-c", str(ini), "--rootdir", str(ROOT)]
    # Rows of visreg compare with a formula whose ndtri PyTorch compiles when it first runs, which
    # takes a driver with code; ours is captured in test_capture_of_steps.py.
    chosen = " and not ".join(["graph", "compiled", "visreg", *MODULES])
    words += ["-p", "no:cacheprovider", "-q", "--benchmark-disable", "-k", chosen]
    done = on_null_gpu(*words, BENCHMARK_VALUES_UNREAL="1")
    assert done.returncode == 0, done.stdout[-3000:]
    last = done.stdout.strip().splitlines()[-1]
    assert int(last.split()[0]) >= 17 and "skipped" not in last, last


def test_values_are_checked_unless_the_variable_says_otherwise(tmp_path: Path) -> None:
    code = "from benchmarks.conftest import values_are_real; print(values_are_real())"
    assert "BENCHMARK_VALUES_UNREAL" not in os.environ or os.environ.pop("BENCHMARK_VALUES_UNREAL")
    assert on_null_gpu("-c", code).stdout.strip() == "True"
    assert on_null_gpu("-c", code, BENCHMARK_VALUES_UNREAL="1").stdout.strip() == "False"
