"""From the report's JSON to one page of Markdown; nothing is measured here."""

from __future__ import annotations

import math
import re
import statistics
import textwrap
from typing import Any

from benchmarks.report.book import DONE, LEFT_OUT
from benchmarks.report.fit import work_of

Row = dict[str, Any]
# Dense bfloat16 TFLOP/s and GB/s of the makers' datasheets, by a part of the device's name.
DATASHEETS = {
    "B200": (2250.0, 8000.0),
    "H200": (989.0, 4800.0),
    "H100 PCIe": (756.0, 2000.0),
    "H100": (989.0, 3350.0),
    "A100": (312.0, 2039.0),
    "L40S": (362.0, 864.0),
    "RTX 4090": (165.0, 1008.0),
}


def datasheet(device: str) -> tuple[str, float, float] | None:
    """Return (name, TFLOP/s, GB/s) of a device, or None for one that is not in the table."""
    for name, (flops, bandwidth) in DATASHEETS.items():
        if name in device:
            return name, flops, bandwidth
    return None


def rows_of(report: Row, section: str) -> list[Row]:
    """Return a section's rows, whether it ended well or not."""
    rows: list[Row] = report["sections"].get(section, {}).get("rows", [])
    return rows


def measured_peak(report: Row) -> float | None:
    """Return the TFLOP/s of the large bfloat16 product, if it was measured."""
    for row in rows_of(report, "ceilings"):
        if row["what"].startswith("matmul bfloat16") and "TFLOP/s" in row:
            return float(row["TFLOP/s"])
    return None


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Return a Markdown table; the first column holds words, the others numbers."""
    lines = [f"| {' | '.join(header)} |", f"| --- |{' ---: |' * (len(header) - 1)}"]
    return [*lines, *(f"| {' | '.join(cells)} |" for cells in rows), ""]


def figure(row: Row, key: str, form: str = ".2f") -> str:
    """Format one figure; what was not measured is a dash."""
    return f"{row[key]:{form}}" if row.get(key) is not None else "-"


def figures(row: Row, forms: dict[str, str]) -> list[str]:
    """Format several figures, each by its own format."""
    return [figure(row, key, form) for key, form in forms.items()]


def utilisation(report: Row, row: Row) -> list[str]:
    """MFU against the measured and against the datasheet's peak."""
    peaks = [measured_peak(report), (datasheet(report["device"]) or (None, None))[1]]
    if "TFLOP/s" not in row:
        return ["-", "-"]
    return ["-" if peak is None else f"{100 * row['TFLOP/s'] / peak:.1f} %" for peak in peaks]


def wrong(report: Row) -> list[str]:
    """Return the ops whose values are wrong on this device."""
    rows = rows_of(report, "values")
    failed = [row for row in rows if not row.get("error", LEFT_OUT).startswith(LEFT_OUT)]
    return [f"{row['op']} ({row['impl']})" for row in failed]


def values(report: Row) -> list[str]:
    forms = {"deviation": ".1e", "budget": ".1e"}
    cells = [
        [f"{row['op']}: {row['impl']}", *figures(row, forms), row.get("error", "ok")]
        for row in rows_of(report, "values")
    ]
    return table(["op and implementation", "from float64", "allowed", "verdict"], cells)


def ceilings(report: Row) -> list[str]:
    sheet = datasheet(report["device"])
    forms = {"ms": ".2f", "GB/s": ".1f", "TFLOP/s": ".2f"}
    cells = [[row["what"], *figures(row, forms)] for row in rows_of(report, "ceilings")]
    lines = table(["what", *forms], cells)
    if sheet is not None:
        lines.append(f"Datasheet of the {sheet[0]}: {sheet[1]:.0f} TFLOP/s, {sheet[2]:.0f} GB/s.")
    return lines


STEP_HEADER = ["ms", "min", "clips/s", "TFLOP/s", "MFU, measured peak", "MFU, datasheet"]
STEP_HEADER += ["MiB allocated", "reserved"]


def step_cells(report: Row, row: Row) -> list[str]:
    if "error" in row:
        return [row["error"], *["-"] * (len(STEP_HEADER) - 1)]
    speed = {"ms": ".2f", "ms_min": ".2f", "clips/s": ".1f", "TFLOP/s": ".3f"}
    memory = {"peak_mib": ".0f", "reserved_mib": ".0f"}
    return [*figures(row, speed), *utilisation(report, row), *figures(row, memory)]


def named(row: Row, what: str) -> str:
    """Name a row; what makes it another one than the name says stands beside it."""
    return f"{what} ({row['note']})" if "note" in row else what


def usual_loss(rows: list[Row], clips: int) -> float:
    """Return the median of the first losses of so many clips: a wrong step has another one."""
    same = [row["first_loss"] for row in rows if row.get("clips") == clips and "first_loss" in row]
    return statistics.median([loss for loss in same if not math.isnan(loss)] or [0.0])


def steps(report: Row) -> list[str]:
    rows = rows_of(report, "steps")
    ours = next((row for row in rows if row["row"].startswith("ours") and "ms" in row), None)
    cells = []
    for row in rows:
        ratio = loss = "-"
        if ours is not None and "ms" in row:
            ratio = f"{ours['clips/s'] / row['clips/s']:.2f}x"
        if "first_loss" in row:
            usual = usual_loss(rows, row["clips"])
            right = abs(row["first_loss"] - usual) <= 0.02 * abs(usual)
            loss = f"{row['first_loss']:.2f}" + ("" if right else " **differs**")
        expected = figure(row, "predicted_ms", ".1f")
        first = figure(row, "first_step_s", ".1f")
        name = named(row, row["row"])
        cells.append([name, *step_cells(report, row), ratio, expected, first, loss])
    base = ours["row"] if ours is not None else "ours"
    header = ["step", *STEP_HEADER, f"time per clip over {base}", "ms, model"]
    note = (
        "Rungs are given their crops, except where fed by their loader; ours makes its own. All "
        "begin with the same weights, clips, views and masks, so the first losses must agree. "
        "FLOP are those that each must do; ours computes the targets of absent bodies once. The "
        "model's ms are predicted, from constants that were committed before "
        "(`benchmarks/model_constants.json`)."
    )
    return [*table([*header, "s to first step", "first loss"], cells), note]


COUNTED = {"T": ".2f", "GB": ".2f"}


def breakdown(report: Row) -> list[str]:
    lines = []
    for row in rows_of(report, "breakdown"):
        if "error" in row:
            lines += [f"{row['row']}: {row['error']}", ""]
            continue
        total, run = row["step_seconds"], 1000 * row["run_seconds"]
        lines += [
            f"{row['row']}: {run:.2f} ms as a run has it, {1000 * total:.2f} ms clocked pass by "
            "pass without a CUDA graph:",
            "",
        ]
        work = work_of(row["row"])
        cells = []
        for name, s in row["seconds"].items():
            flop = row.get("flop", {}).get(name)
            bytes_moved = None if work is None else work.gb_by_pass.get(name)
            counted = figures({"T": flop and flop * 1e-12, "GB": bytes_moved}, COUNTED)
            cells.append([name, f"{1000 * s:.2f}", f"{100 * s / total:.1f} %", *counted])
        lines += table(["pass", "ms", "share", "TFLOP, counted", "GB, counted"], cells)
        counts = ", ".join(f"{value:.0f} {name}" for name, value in row["counts"].items())
        lines += [f"A step: {counts}.", ""]
    return lines


def attention(report: Row) -> list[str]:
    forms = {"forward_ms": ".3f", "ms": ".3f", "forward TFLOP/s": ".1f", "TFLOP/s": ".1f"}
    forms |= {"error": ".1e", "gradient_error": ".1e"}
    cells = []
    for row in rows_of(report, "attention"):
        failed = isinstance(row.get("error"), str)
        found = [row["error"][:90], *["-"] * 5] if failed else figures(row, forms)
        cells.append([f"{tuple(row['shape'])}, {row['dtype']}, {row['backend']}", *found])
    header = ["attention", "forward ms", "with backward", "TFLOP/s", "with backward"]
    return table([*header, "error", "of gradients"], cells)


def bodies(report: Row) -> list[str]:
    rows = rows_of(report, "bodies and masks")
    base = next((row for row in rows if "clips/s" in row), None)
    cells = []
    for row in rows:
        gain = "-"
        if base is not None and "clips/s" in row:
            gain = f"{row.get('masks/s', row['clips/s']) / base['clips/s']:.2f}x"
        cells.append([named(row, row["row"]), *step_cells(report, row), gain])
    lines = table(["step", *STEP_HEADER, "clips (or their masks) a second, gain"], cells)
    note = (
        "Not compiled. Absent bodies skipped, and several masks, are other estimators than the "
        "paper's."
    )
    return [*lines, note]


def growth(report: Row) -> list[str]:
    header = ["size", *STEP_HEADER, "ms over the first's, by size"]
    cells, first = [], dict[str, Row]()
    for row in rows_of(report, "growth"):
        relative = "-"
        if "ms" in row:
            base = first.setdefault(row["what"], row)
            relative = f"{row['ms'] / base['ms'] / (row['value'] / base['value']):.2f}"
        size = named(row, f"{row['value']} {row['what']}")
        cells.append([size, *step_cells(report, row), relative])
    return [*table(header, cells), "Not compiled."]


def long_run(report: Row) -> list[str]:
    lines = []
    for row in rows_of(report, "long run"):
        if "error" in row:
            lines.append(f"{row['row']}: {row['error']}")
            continue
        chunks = row["chunks_ms"]
        lines.append(
            f"{row['row']}: {row['steps']} consecutive steps, {row['ms']:.2f} ms each, "
            f"{row['clips/s']:.1f} clips/s; slowest part {max(chunks):.2f} ms, fastest "
            f"{min(chunks):.2f} ms, last loss {row['last_loss']:.3f}."
        )
    return [*lines, ""]


def hours(report: Row) -> list[str]:
    forms = {"ms": ".2f", "clips/s": ".1f", "steps": ".0f"}
    cells = [
        [named(row, row["preset"]), *figures(row, forms), row.get("error") or figure(row, "hours")]
        for row in rows_of(report, "hours")
    ]
    lines = table(["preset", "ms a step here", "clips/s", "steps", "hours"], cells)
    note = "Projected from a step that is not compiled, at the batch of the table above; not run."
    return [*lines, note]


def operations(report: Row) -> list[str]:
    forms = {"GB/s": ".1f", "% of copy": ".0f", "error": ".1e"}
    cells, errors = [], []
    for row in rows_of(report, "operations"):
        if "error" in row and "median" not in row:
            errors.append(f"* `{row.get('name', row['file'])}`: {row['error']}")
            continue
        name = f"{row['group']}: `{row['name']}`"
        cells.append([name, f"{1e6 * row['median']:.1f}", *figures(row, forms)])
    header = ["operation", "us a round (median)", "GB/s", "% of copy", "error"]
    note = "A round of the regime `graph` is 20 calls. Ratios: `python -m benchmarks.kernel_table`."
    return [*table(header, cells), note, "", *errors]


READING = (
    "Milliseconds, MiB, deviations and rates are **measured** here. FLOP, GB by pass and what the "
    "operations must move are **counted**, without a GPU. What says model, predicted or hours is "
    "**modelled**: arithmetic on both. Values are checked before times: a row whose values are "
    "wrong has an error in place of a time."
)


def model(report: Row) -> list[str]:
    """The constants fitted to this report, and what they predict of its own rows."""
    found = report.get("model")
    if not isinstance(found, dict):
        return [] if found is None else ["## Model", "", found, ""]
    units = {"bandwidth": "GB/s", "node_us": "us a kernel"}
    constants = [
        f"{name} {value:.4g} {units.get(name, 'TFLOP/s')}"
        for name, value in found["constants"].items()
    ]
    forms = {"predicted_ms": ".1f", "measured_ms": ".1f"}
    cells = [[row["row"], *figures(row, forms)] for row in found["rows"]]
    return [
        "## Model",
        "",
        f"Fitted to this report: {', '.join(constants)}; {found['share_of_copy']:.0%} of the copy, "
        f"{found['share_of_matmul']:.0%} of the product.",
        "",
        *table(["step", "ms, model as fitted", "ms, measured"], cells),
    ]


TITLES = {
    "values": ("Values", values),
    "ceilings": ("Ceilings", ceilings),
    "steps": ("Training step", steps),
    "breakdown": ("Passes of a step", breakdown),
    "attention": ("Attention", attention),
    "bodies and masks": ("Absent bodies, several masks", bodies),
    "long run": ("Long run", long_run),
    "growth": ("Growth", growth),
    "hours": ("Hours for the papers' runs", hours),
    "operations": ("Operations", operations),
}


def wrapped(text: str) -> str:
    """Wrap what is no row of a table to 120 columns; what stands in backticks stays whole."""
    lines = []
    for line in text.split("\n"):
        whole = line.startswith("|") or len(line) <= 120
        held = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "\0"), line)
        parts = textwrap.wrap(held, 120, break_long_words=False, break_on_hyphens=False)
        lines += [line] if whole else [part.replace("\0", " ") for part in parts]
    return "\n".join(lines)


def page(report: Row) -> str:
    """Return the report, complete or not, as Markdown; sections that did not end well say so."""
    took = f" in {report['minutes']} minutes." if "minutes" in report else "."
    lines = [f"# {report['device']}, torch {report['torch']}, {report['date']}", ""]
    lines += [f"`{report['command']}`{took}", ""]
    if "note" in report:
        lines += [report["note"], ""]
    if report["small"]:
        lines += ["**Scaled down for a CPU: the command works; no figure here is a claim.**", ""]
    known = {"cuda": "CUDA", "cudnn": "cuDNN", "memory_gib": "GiB", "nvidia_smi": "nvidia-smi"}
    lines += [f"* {name}: {report[key]}" for key, name in known.items() if key in report]
    lines += [f"* {report['threads']} threads of {report['cores']} cores", "", READING, ""]
    if ops := wrong(report):
        lines += [f"**Wrong values on this device: {', '.join(ops)}.**", ""]
    for name, (title, write) in TITLES.items():
        entry = report["sections"].get(name)
        if entry is None:
            continue
        lines += [f"## {title}", ""]
        status = entry.get("status", "not begun")
        if status != DONE:
            lines += [f"**{status}** {entry.get('error', '')}".rstrip(), ""]
        if entry["rows"]:
            try:
                lines += [*write(report), ""]
            except (KeyError, TypeError) as error:
                # A page without one table is better than none; the rows are in the JSON.
                lines += [f"No table: {error!r} in the rows.", ""]
    lines += model(report)
    plots = report.get("plots")
    if isinstance(plots, str):
        lines += [plots, ""]
    elif plots:
        lines += [f"![{name}]({name})" for name in plots]
    return wrapped("\n".join(lines).rstrip()) + "\n"
