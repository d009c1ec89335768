"""A model of a step's milliseconds, and its constants, from what was counted and measured.

Counted, without a GPU, is a step's work: its products of matrices, its attention, the bytes of all
else, its kernels. A constant is a rate: GB/s, TFLOP/s, or microseconds a kernel. The model:

    sum over products of max(FLOP / matmul, bytes / bandwidth)
    + attention FLOP / attention_forward, _backward
    + all other bytes / bandwidth + kernels x node_us

Constants of a card before it was measured are in `benchmarks/model_constants.json`; a finished
report gives its own (`fitted`). Both are models, whatever they were fitted to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sjepa_kernels.attention.backends import BACKENDS

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
CONSTANTS = ROOT / "benchmarks" / "model_constants.json"
LEDGER = ROOT / "benchmarks" / "ledger.json"
# The clips of a counted step.
CLIPS = 128
# Names of rows of a report, and of the ledger's.
CASES = {
    "ours": "sjepa-ntu60-xsub bf16 default",
    "ours, compiled": "sjepa-ntu60-xsub bf16 on",
    "ours, eager": "sjepa-ntu60-xsub bf16 off",
    "reference C": "reference-C bf16",
    "reference D": "reference-D bf16",
}
# What all of ours do where attention is by our own kernels; compiled it is 0.3 % more.
OWN_ATTENTION = "sjepa-ntu60-xsub bf16 triton"


@dataclass(frozen=True)
class Constants:
    """What a card sustains."""

    bandwidth: float
    """GB/s."""
    matmul: float
    """TFLOP/s of bfloat16."""
    attention_forward: float
    """TFLOP/s."""
    attention_backward: float
    """TFLOP/s, five products for the forward's two."""
    node_us: float
    """Microseconds that every kernel takes beyond what it moves."""


@dataclass(frozen=True)
class Work:
    """What a step of 128 clips does, as counted."""

    products: tuple[tuple[float, float], ...]
    """(TFLOP, GB) of all products of one size together."""
    attention_forward: float
    """TFLOP."""
    attention_backward: float
    """TFLOP."""
    gb: float
    """GB of everything else."""
    nodes: int
    """Kernels."""
    gb_by_pass: dict[str, float]
    """GB of everything, by pass."""

    def ms(self, c: Constants) -> float:
        """Return the modelled milliseconds; with GB/s and TFLOP/s both are 1/1000 of a unit."""
        products = sum(max(t / c.matmul, gb / c.bandwidth) for t, gb in self.products)
        attention = self.attention_forward / c.attention_forward
        attention += self.attention_backward / c.attention_backward
        return 1000 * (products + attention + self.gb / c.bandwidth) + self.nodes * c.node_us / 1000


def work_of(row: str, *, own_attention: bool = False) -> Work | None:
    """Return what was counted of a row of the report, or None: the one place that reads the ledger.

    With `own_attention` our rows are counted with attention by our kernels, else by PyTorch's.
    The ledger has GB by class and by pass, products as (batch, m, n, k, how many, GB), attentions
    as (heads of all sequences, queries, keys, width, 1 if backward, how many, GB).
    """
    if row not in CASES or not LEDGER.exists():
        return None
    case = OWN_ATTENTION if own_attention and row.startswith("ours") else CASES[row]
    counted = json.loads(LEDGER.read_text())["rows"].get(case)
    if counted is None:
        return None
    attention = [0.0, 0.0]
    for heads, queries, keys, width, backward, count, _ in counted["attentions"]:
        products = 5 if backward else 2
        attention[backward] += 2e-12 * products * heads * queries * keys * width * count
    classes = counted["gb_by_class"]
    # Those in kernels of ours are no GEMM to the table of classes.
    ours = counted["gemms_of_ours"]
    sizes = [*counted["gemms"], *ours]
    rest = sum(gb for name, gb in classes.items() if name not in ("gemm", "attention"))
    return Work(
        products=tuple((2e-12 * b * m * n * k * c, gb) for b, m, n, k, c, gb in sizes),
        attention_forward=attention[0],
        attention_backward=attention[1],
        gb=rest - sum(gb for *_, gb in ours),
        nodes=counted["nodes"],
        gb_by_pass=counted["gb_by_pass"],
    )


def assumed(device: str) -> Constants | None:
    """Return the committed constants of a card, or None for one that has none."""
    for name, values in json.loads(CONSTANTS.read_text())["cards"].items():
        if name in device:
            return Constants(**values)
    return None


def predicted(device: str, row: Row) -> float | None:
    """Return the milliseconds that the committed constants predict of a row of the steps."""
    work, constants = work_of(row["row"]), assumed(device)
    if work is None or constants is None or row.get("clips", CLIPS) != CLIPS:
        return None
    return work.ms(constants)


def measured_rates(report: Row) -> Row:
    """Return the constants that the report measured on their own: copy, product, attention."""

    def rows(section: str) -> list[Row]:
        found: list[Row] = report["sections"].get(section, {}).get("rows", [])
        return [row for row in found if "ms" in row]

    rates: Row = {}
    for row in rows("ceilings"):
        for start, key, unit in (("copy", "bandwidth", "GB/s"), ("matmul b", "matmul", "TFLOP/s")):
            if row["what"].startswith(start):
                rates[key] = row[unit]
    return rates | attention_rates(rows("attention"), "auto")


def attention_rates(rows: list[Row], backend: str) -> Row:
    """Return a backend's rates at the longest sequences, where nearly all attention is."""
    found = [r for r in rows if r["backend"] == backend and r.get("dtype") == "bfloat16"]
    if not found:
        return {}
    row = max(found, key=lambda row: int(row["tokens"]))
    forward, back = row["forward TFLOP/s"], row["ms"] - row["forward_ms"]
    if back <= 0:
        return {"attention_forward": forward}
    backward = 2.5 * forward * row["forward_ms"] / back
    return {"attention_forward": forward, "attention_backward": backward}


def takes_own_attention(rows: list[Row]) -> bool:
    """Whether our kernels are the fastest backend of the longest sequences that was measured."""
    times = [
        (-int(row["tokens"]), row["ms"], row["backend"])
        for row in rows
        if row.get("dtype") == "bfloat16" and row["backend"] in (*BACKENDS, "triton")
    ]
    return bool(times) and min(times)[2] == "triton"


def fitted(report: Row) -> Row | str:
    """Fit the constants to a finished report, and predict its rows with them.

    Attention keeps its measured rates: that of ours what it takes by itself, that of the rungs
    cuDNN's, which is PyTorch's choice. Of the bandwidth of a copy and the rate of a large product a
    step reaches a share, each 0.30 to 1.00: those with the least squares of the logarithms of
    predicted over measured milliseconds, over our steps as a run has them (of the breakdown, else
    of the steps). Returns constants, shares, and rows with both times, or why there is no fit.
    """
    start = assumed(report["device"])
    rates = measured_rates(report)
    if start is None:
        start = Constants(1.0, 1.0, 1.0, 1.0, 1.5)
        if missing := {"bandwidth", "matmul", "attention_forward", "attention_backward"} - {*rates}:
            return f"No fit: {', '.join(sorted(missing))} not measured."
    ceiling = replace(start, **rates)
    times = measured_times(report)
    measured = [r for r in report["sections"].get("attention", {}).get("rows", []) if "ms" in r]
    own = takes_own_attention(measured)
    counted = {row: work for row in times if (work := work_of(row, own_attention=own)) is not None}
    ours = {row: work for row, work in counted.items() if row.startswith("ours")}
    if not ours:
        return "No fit: no row was both counted and measured."

    def off(shares: tuple[float, float]) -> float:
        c = scaled(ceiling, *shares)
        return sum(math.log(work.ms(c) / times[row]) ** 2 for row, work in ours.items())

    bandwidth, matmul = least(off)
    constants = scaled(ceiling, bandwidth, matmul)
    of_rungs = replace(constants, **attention_rates(measured, "cudnn"))
    return {
        "constants": asdict(constants),
        "share_of_copy": bandwidth,
        "share_of_matmul": matmul,
        "rows": [
            {
                "row": row,
                "measured_ms": times[row],
                "predicted_ms": work.ms(constants if row in ours else of_rungs),
            }
            for row, work in counted.items()
        ],
    }


def scaled(c: Constants, bandwidth: float, matmul: float) -> Constants:
    return replace(c, bandwidth=c.bandwidth * bandwidth, matmul=c.matmul * matmul)


def least(off: Callable[[tuple[float, float]], float]) -> tuple[float, float]:
    """Return the pair of shares of least deviation, of bandwidth to 0.1 %, of products to 1 %.

    Where products are bound by their bytes, both shares explain the same times; of pairs that are
    off by less than 0.1 % more than the best, that with the largest share of products is taken.
    """
    bandwidths = [i / 1000 for i in range(1000, 299, -1)]
    best = [
        (off(pair), pair)
        for b in range(100, 29, -1)
        for pair in [min(((a, b / 100) for a in bandwidths), key=off)]
    ]
    enough = min(best)[0] + 1e-6
    return next(pair for deviation, pair in best if deviation <= enough)


def measured_times(report: Row) -> dict[str, float]:
    """Return the milliseconds of whole steps of 128 clips, by row; the breakdown's come first."""
    found: dict[str, float] = {}
    for row in report["sections"].get("breakdown", {}).get("rows", []):
        if "run_seconds" in row and row.get("clips") == CLIPS:
            found[row["row"]] = 1000 * row["run_seconds"]
    for row in report["sections"].get("steps", {}).get("rows", []):
        if "ms" in row and row["clips"] == CLIPS:
            found.setdefault(row["row"], row["ms"])
    return found
