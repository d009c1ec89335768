"""Milliseconds of a training step as a model of the counted bytes and FLOP: nothing is measured.

    python -m benchmarks.step_model [H200 H100 A100]

The counts are `ledger.json`'s; what a card sustains is in `model_constants.json`:

    step = GEMM + attention + the rest's bytes / bandwidth + nodes * node_us
    GEMM = sum over products of max(bytes / bandwidth, FLOP / matmul)

That is the model of `report/fit.py`, with more told apart, to compare steps that do not exist:
kernels of torch sustain `eager_share` of the bandwidth, Inductor's and ours all of it, and
attention has several `forms` beside PyTorch's flash. A form is a pair of rates, TFLOP/s of forward
and backward (4 and 10 operations for each score and number of a head), or, for our own kernels, a
share of what the special units do: an exponential for each score, in the backward of long sequences
two; but no faster than their products at `matmul`, which are seven there instead of five. Kernels
do not overlap, and the host is never waited for. MFU
is what the step needs by its configuration (`tflop` in the ledger) over the time, as a share of
`ceiling` TFLOP/s, what large products reach.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Card = dict[str, Any]

FOLDER = Path(__file__).parent
LEDGER, CONSTANTS = FOLDER / "ledger.json", FOLDER / "model_constants.json"
# Kernels that compiler or project have made; all others are torch's own.
FUSED = ("inductor", "ours")
# Tokens up to which our attention's backward is one kernel (`sjepa_kernels.attention.fused`).
ONE_TILE = 128


@dataclass(frozen=True)
class Estimate:
    """Modelled milliseconds of one step, by what they are spent on."""

    gemm: float
    attention: float
    torch_kernels: float
    fused_kernels: float
    nodes: float

    @property
    def total(self) -> float:
        """Milliseconds of the step."""
        parts = (self.gemm, self.attention, self.torch_kernels, self.fused_kernels, self.nodes)
        return sum(parts)


def cards() -> dict[str, Card]:
    """Return the constants of each card: GB/s, TFLOP/s, and forms of attention."""
    found = json.loads(CONSTANTS.read_text())
    merged = {name: values | found["more"][name] for name, values in found["cards"].items()}
    for card in merged.values():
        flash = [card["attention_forward"], card["attention_backward"]]
        card["forms"] = {"flash": flash} | card["forms"]
    return merged


def gemm_ms(row: Row, card: Card) -> float:
    """Products of matrices, also in kernels of ours, each bound by its bytes or by its FLOP."""
    total = 0.0
    for batch, m, n, k, count, gb in row["gemms"] + row["gemms_of_ours"]:
        tflop = 2e-12 * batch * m * n * k * count
        total += 1e3 * max(gb / card["bandwidth"], tflop / card["matmul"])
    return total


def attention_ms(row: Row, card: Card, form: list[float] | float) -> float:
    """Attention in a form: at a pair of rates, or at a share of its bound."""
    exps_per_s = card["exp_per_clk_sm"] * card["sms"] * card["clock_ghz"] * 1e9
    total = 0.0
    for heads, queries, keys, width, backward, count, gb in row["attentions"]:
        scores = heads * queries * keys * count
        if isinstance(form, list):
            seconds = 1e-12 * scores * width * (10 if backward else 4) / form[backward]
        else:
            twice = backward and keys > ONE_TILE
            products = 1e-12 * scores * width * (14 if twice else 10 if backward else 4)
            exponentials = scores * (2 if twice else 1) / exps_per_s
            seconds = max(exponentials / form, products / card["matmul"])
        total += 1e3 * max(seconds, gb / card["bandwidth"])
    return total


def estimate(row: Row, card: Card, form: list[float] | float) -> Estimate:
    """Model the step of a row of the ledger on a card, with attention in a form."""
    by_class = row["gb_by_class"]
    fused = sum(by_class.get(name, 0.0) for name in FUSED)
    torch_gb = row["gb"] - fused - by_class.get("gemm", 0.0) - by_class.get("attention", 0.0)
    fused -= sum(gb for *_, gb in row["gemms_of_ours"])
    return Estimate(
        gemm=gemm_ms(row, card),
        attention=attention_ms(row, card, form),
        torch_kernels=1e3 * torch_gb / (card["bandwidth"] * card["eager_share"]),
        fused_kernels=1e3 * fused / card["bandwidth"],
        nodes=row["nodes"] * card["node_us"] * 1e-3,
    )


def modelled(case: str, name: str) -> bool:
    """Whether a row is modelled with a form of attention.

    The constants are those of half precision. Where our kernels do attention, the form is ours.
    """
    return "fp32" not in case and (name == "ours" or "triton" not in case)


def table(ledger: Row, name: str, card: Card) -> list[str]:
    """Return the lines of a card: every bf16 row, with every form of attention."""
    clips, rows, forms = ledger["clips"], ledger["rows"], card["forms"]
    lines = [f"{name}, modelled, not measured. Assumed: {json.dumps(card)}", ""]
    heads = ["GEMM", "attention", "torch", "fused", "nodes", "ms", "clips/s", "MFU", "C/it", "D/it"]
    for form, rates in forms.items():
        # What the rungs cannot have they get as flash.
        theirs = forms["flash"] if form == "ours" else rates
        rungs = [estimate(rows[f"reference-{x} bf16"], card, theirs).total for x in "CD"]
        lines.append(f"{f'attention: {form}':34}" + "".join(f"{head:>10}" for head in heads))
        for case, row in rows.items():
            if not modelled(case, form):
                continue
            found = estimate(row, card, theirs if case.startswith("reference") else rates)
            ms = found.total
            parts = (found.gemm, found.attention, found.torch_kernels, found.fused_kernels)
            cells = [f"{x:.1f}" for x in (*parts, found.nodes, ms, 1000 * clips / ms)]
            cells.append(f"{1e5 * row['tflop'] / (ms * card['ceiling']):.0f} %")
            if case.startswith(("sjepa", "reference")):
                cells += [f"{rung / ms:.2f}" for rung in rungs]
            lines.append(f"{case:34}" + "".join(f"{cell:>10}" for cell in cells))
        lines.append("")
    return lines


def main(names: list[str]) -> None:
    """Print the model of some cards, or of all."""
    ledger, known = json.loads(LEDGER.read_text()), cards()
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"cards: {', '.join(unknown)}; known: {', '.join(known)}")
    for name in names or known:
        print("\n".join(table(ledger, name, known[name])))


if __name__ == "__main__":
    main(sys.argv[1:])
