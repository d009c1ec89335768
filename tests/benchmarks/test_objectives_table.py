"""The comparison of objectives puts every result file into its own cell."""

import json
from pathlib import Path
from typing import Any

from benchmarks.objectives_table import read, table


def leave(run: Path, protocol: str, encoder: str, **figures: Any) -> None:
    (run / "results").mkdir(parents=True, exist_ok=True)
    result = {"protocol": protocol, "encoder": encoder, **figures}
    (run / "results" / f"{protocol}-{encoder}.json").write_text(json.dumps(result))


def test_cells_come_from_their_own_run_encoder_and_protocol(tmp_path: Path):
    for seed, shift in ((0, 0.0), (1, 2.0)):
        run = tmp_path / f"mamp-nucla-s{seed}"
        leave(run, "knn", "target", pool="full", top1_k1=70 + shift)
        (run / "results" / "knn-before.json").write_text('{"top1": 50.0}')
        leave(run, "finetune", "target", top1=0, top1_per_seed=[60 + shift])
        rows = [{"step": 0, "knn": 1}, {"step": 20, "ms_per_step": 1500}]
        rows.append({"step": 60, "ms_per_step": 3000})
        (run / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    run = tmp_path / "sjepa-msr_action3d-s0"
    leave(run, "knn", "raw", top1_k1=40.0)
    leave(run, "linear", "random", pool="joint", top1=41.0)
    leave(run, "linear", "target", pool="mean", top1=42.0)
    leave(run, "retrieval", "target", top1=1.0)
    (run / "metrics.jsonl").write_text("")

    scores, files = read(tmp_path)
    assert len(files) == 7, "what came before training and retrieval are no files of a cell"
    lines = {line.split(" | ")[1]: line for line in table(scores).splitlines() if "MSR" in line}
    assert lines["raw coordinates"].endswith("|  | 40.0 |  |  |  |  |")
    assert lines["random encoder"].endswith("|  |  | 41.0 |  |  |  |")
    assert lines["S-JEPA"].endswith("|  |  |  | 42.0 |  | 0.0 |")
    (mamp,) = [line for line in table(scores).splitlines() if "N-UCLA" in line and "MAMP" in line]
    # 20 steps of 1.5 s and 40 of 3 s are 2.5 minutes.
    assert mamp.endswith("| 50.0 ± 0.0 | 71.0 ± 1.4 |  |  | 61.0 ± 1.4 | 2.5 ± 0.0 |")
