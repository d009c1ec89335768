"""One row of the ledger: a training step on the null GPU, as a process of its own.

    python -m tests.null_gpu.ledger_case "sjepa-ntu60-xsub bf16 on" OUT.json

What is written is what `ledger.py` describes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import steps
from sjepa_fast.config.presets import preset
from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.training.flops import step_flops
from tests.kernels.launches import Variant
from tests.null_gpu import gpu, ledger
from tests.null_gpu.traffic import Traffic

CLIPS, STORED = 128, 2048
DEVICE = torch.device("cuda")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
GB = 1e9


# What a way changes of the configuration.
RUNTIME: dict[str, dict[str, object]] = {
    "default": {},
    "off": {"compile": "off"},
    "on": {"compile": "on"},
    "triton": {"attention": "triton"},
}


def configured(config: TrainConfig, way: str) -> TrainConfig:
    """Return the configuration of a way."""
    return replace(config, runtime=RUNTIME[way])


def launches(records: list[gpu.Record]) -> dict[str, int]:
    """Count launches by kind: torch's kernels, Inductor's, ours, calls of libraries, the rest."""
    kinds = {"kernel": "torch", "gemm": "gemm", "library": "cudnn"}
    kinds |= {"memset": "memset", "copy": "copy"}
    count = dict.fromkeys(ledger.KINDS, 0)
    for record in records:
        if record.kind == "triton":
            count["inductor" if record.name.startswith("triton_") else "ours"] += 1
        elif record.kind in kinds:
            count[kinds[record.kind]] += 1
    return count


def after_first_step(records: list[gpu.Record]) -> dict[str, int]:
    """Count what a step should do no more: wait, copy from or to the host, allocate."""
    copies = [x for x in records if x.kind == "copy" and x.name != "DtoD"]
    return {
        "syncs": sum(x.kind == "sync" for x in records),
        "host_bytes": sum(x.sizes[0] for x in copies),
        "mallocs": gpu.mallocs(),
    }


def traffic_of(traffic: Traffic) -> dict[str, Any]:
    """Return the bytes of a step, and its products of matrices and attentions by their sizes."""

    def rounded(by: str) -> dict[str, float]:
        return {name: round(gb, 3) for name, gb in sorted(traffic.gigabytes(by).items())}

    def sized(group: str) -> list[list[float]]:
        found: dict[tuple[int, ...], list[int]] = {}
        for row in traffic.rows:
            if row.group == group and row.sizes:
                found.setdefault(row.sizes, []).append(row.bytes)
        return [
            [*sizes, len(moved), round(sum(moved) / GB, 4)]
            for sizes, moved in sorted(found.items())
        ]

    return {
        "gb": round(sum(row.bytes for row in traffic.rows) / GB, 3),
        "gb_by_pass": rounded("part"),
        "gb_by_class": rounded("group"),
        "gemms": sized("gemm"),
        "gemms_of_ours": sized("ours"),
        "attentions": sized("attention"),
    }


def our_row(name: str, dtype: torch.dtype, way: str) -> tuple[dict[str, Any], list[Variant]]:
    """Return the row of a preset's step: three steps, the capture, two replays, one counted."""
    config = replace(preset(name), optim={"batch_size": CLIPS}, runtime={"cuda_graph": "on"})
    config = configured(config, way)
    clips = steps.ntu_like_clips(STORED, DEVICE)
    step = steps._train_step(config, clips, DEVICE, dtype)
    ids = torch.arange(CLIPS, device=DEVICE)
    row: dict[str, Any] = {}
    after_first = []
    for k in range(6):
        gpu.reset()
        torch.cuda.reset_peak_memory_stats()
        step(ids)
        records = gpu.records()
        if k in (1, 2):
            row["peak_gb"] = round(torch.cuda.max_memory_allocated() / GB, 3)
        if k == 3:
            captured = launches([x for x in records if x.captured])
            row |= {"nodes": sum(captured.values()), "launches": captured}
            row["pool_gb"] = round(torch.cuda.max_memory_allocated() / GB, 3)
            row["reserved_gb"] = round(torch.cuda.memory_reserved() / GB, 3)
        elif k > 0:
            after_first.append(after_first_step(records))
    row["replay"] = {name: count for name, count in launches(records).items() if count}
    row["replay"]["graph"] = sum(x.kind == "graph_launch" for x in records)
    row |= {key: sum(x[key] for x in after_first) for key in after_first[0]}
    with Traffic() as traffic, traffic.passes(step.model, step.optimizer):
        step.eager(ids)
    row["tflop"] = round(steps.our_flops(config, clips) * 1e-12, 3)
    variants = dict(traffic.variants)
    if dtype != torch.float32 and way == "default":
        # Kernels of a float32 run, for compilation ahead of time alone.
        plain = replace(configured(config, "off"), runtime={"cuda_graph": "off"})
        step = steps._train_step(plain, clips, DEVICE, torch.float32)
        with Traffic() as other:
            step(ids)
        variants |= other.variants
    return row | traffic_of(traffic), list(variants.values())


def reference_row(rung: str) -> tuple[dict[str, Any], list[Variant]]:
    """Return the row of a rung of the reference at the S-JEPA default; it has no graph."""
    config = replace(preset("sjepa-ntu60-xsub"), optim={"batch_size": CLIPS})
    clips = steps.ntu_like_clips(STORED, DEVICE)
    reference, step = steps.reference_step(config, clips, DEVICE, rung)
    shape = (CLIPS, config.data.bodies, config.data.frames, clips.layout.num_joints, 3)
    x_BMTVC = torch.zeros(shape, device=DEVICE)
    run: Callable[[], Tensor] = partial(step, x_BMTVC, None, None)
    row: dict[str, Any] = {}
    after_first = []
    for k in range(3):
        gpu.reset()
        torch.cuda.reset_peak_memory_stats()
        run()
        records = gpu.records()
        if k:
            after_first.append(after_first_step(records))
    count = launches(records)
    row |= {"nodes": sum(count.values()), "launches": count}
    row["peak_gb"] = round(torch.cuda.max_memory_allocated() / GB, 3)
    row["reserved_gb"] = round(torch.cuda.memory_reserved() / GB, 3)
    row |= {key: sum(x[key] for x in after_first) for key in after_first[0]}
    row["tflop"] = round(step_flops(config, visible_to_the_end=True).total * 1e-12, 3)
    with Traffic() as traffic:
        inner = reference.loss_of

        def loss_of(*args: Tensor) -> Any:
            traffic.part = "forward"
            result = inner(*args)
            traffic.part = "backward"
            return result

        def begins(*_: object) -> None:
            traffic.part = "optimiser"

        reference.loss_of = loss_of  # type: ignore[assignment]
        reference.optimizer.register_step_pre_hook(begins)
        run()
    return row | traffic_of(traffic), []


def main(case: str, out: Path) -> None:
    """Write the row of a case, such as "mamp-ntu60-xsub bf16 on" or "reference-C bf16"."""
    name, dtype, *way = case.split()
    if name.startswith("reference-"):
        row, variants = reference_row(name.removeprefix("reference-"))
    else:
        row, variants = our_row(name, DTYPES[dtype], *way)
    # A compiler that fails leaves a warning and eager code.
    assert "on" not in way or row["launches"]["inductor"] > 0
    out.write_text(json.dumps({"row": row, "variants": [asdict(x) for x in variants]}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
