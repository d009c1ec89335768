"""From measurements to the documents: condense a pytest-benchmark JSON, and print the tables.

python -m benchmarks.tables condense RAW.json OUT.json [FILES]   keep what identifies no machine;
                                                                 FILES is what pytest was given
python -m benchmarks.tables keep RAW.json NAME [FILES]           the same into the folder of the CPU
                                                                 it was measured on, as NAME.json
python -m benchmarks.tables pages                                rewrite the documents' tables
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks import step_model
from benchmarks.report import page

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def condense(raw: dict[str, Any], files: str = "benchmarks/") -> dict[str, Any]:
    """Keep each row's statistics and facts, with date and command, which named these files."""
    rows = [
        {
            "name": row["name"],
            "group": row["group"],
            "params": row.get("params"),
            **{key: row["stats"][key] for key in ("min", "median", "max", "rounds")},
            **row["extra_info"],
        }
        for row in raw["benchmarks"]
    ]
    command = f"pytest {files} --benchmark-only"
    return {"command": command, "date": raw["datetime"][:10], "rows": rows}


def cpu_folder(facts: dict[str, Any]) -> str:
    """Name the folder of a CPU's results by its name, its bfloat16 and the threads of the run."""
    words = f"{facts['device']} {facts['bfloat16_by']}"
    plain = re.sub(r"\([^)]*\)|@.*?Hz|\b(?:processor|cpu)\b", " ", words, flags=re.IGNORECASE)
    slug = "-".join(re.findall(r"[a-z0-9]+", plain.lower()))
    return f"cpu-{slug}-{facts['threads']}-cores"


def keep(raw: dict[str, Any], name: str, files: str = "benchmarks/") -> Path:
    """Write a condensed measurement to where its CPU's results are; returns the file."""
    result = condense(raw, files)
    path = RESULTS / cpu_folder(result["rows"][0]) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def markdown(header: list[str], cells: list[list[str]]) -> str:
    """Format a table whose first column holds words, the others numbers."""
    return "\n".join(page.table(header, cells)[:-1])


def step_table(result: dict[str, Any]) -> str:
    """One row for each variant of the whole step, with the ratio to the plain reference."""
    rows = [row for row in result["rows"] if row["group"] == "sjepa step"]
    base = next(row for row in rows if row["row"] in ("reference_A", "reference_fp32"))
    header = ["step, 2 clips x 2 bodies, NTU shape", "ms (median)", "vs reference", "peak MiB"]
    cells = []
    for row in rows:
        name = "plain reference, float32" if row is base else f"{row['row']}, {row['dtype']}"
        speed = [f"{1000 * row['median']:.0f}", f"{base['median'] / row['median']:.2f}x"]
        cells.append([name.replace("_", " "), *speed, f"{row['peak_memory_mib']:.0f}"])
    return markdown(header, cells)


def other_cpu_tables(folder: Path, first: str) -> list[str]:
    """Heading and table of the step for each CPU but the one whose folder is `first`."""
    parts = []
    for path in sorted(folder.glob("cpu-*/step.json")):
        if path.parent.name == first:
            continue
        result = json.loads(path.read_text())
        facts = result["rows"][0]
        parts += [
            f"The same on {facts['threads']} cores of an {facts['device']}, where "
            f"{facts['bfloat16_by']} multiplies bfloat16, torch {facts['torch']}, "
            f"{result['date']} (`benchmarks/results/{path.parent.name}`):",
            step_table(result),
        ]
    return parts


def gpu_tables(folder: Path) -> str:
    """What is counted and modelled of the step on a GPU, and what is measured or waits for it."""
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("gpu-*/report.json"))]
    parts = []
    for report in reports:
        note = f". {report['note']}" if "note" in report else ":"
        lead = f"On {report['device']}, torch {report['torch']}{note}"
        parts.append("\n".join([lead, "", *page.steps(report)]))
    return "\n\n".join([counted_table(not parts), *parts])


# Rows of `ledger.json` that the page compares, with names for its columns.
COUNTED = {
    "ours": "sjepa-ntu60-xsub bf16 default",
    "ours, own attention": "sjepa-ntu60-xsub bf16 triton",
    "rung C (AMP, SDPA)": "reference-C bf16",
    "rung D (C, compiled)": "reference-D bf16",
}


def counted_table(awaiting: bool) -> str:
    """The step on a GPU as counted without one, and as modelled from that."""
    ledger = json.loads(step_model.LEDGER.read_text())
    rows = [ledger["rows"][case] for case in COUNTED.values()]
    counts = {
        "GB moved a step": [f"{row['gb']:.1f}" for row in rows],
        "graph nodes; launches of a rung": [f"{row['nodes']:,}" for row in rows],
        "peak GB": [f"{row['peak_gb']:.1f}" for row in rows],
        "waits and bytes of the host after step 1": [
            f"{row['syncs']}, {row['host_bytes']}" if "syncs" in row else "" for row in rows
        ],
    }
    cells = [[name, "counted", *values] for name, values in counts.items()]
    for name, card in step_model.cards().items():
        times = []
        for case in COUNTED.values():
            form = card["forms"]["ours" if "triton" in case else "flash"]
            row = ledger["rows"][case]
            times.append(step_model.estimate(row, card, form).total)
        cells.append([f"ms on an {name}", "modelled", *(f"{ms:.0f}" for ms in times)])
    if awaiting:
        waiting = ["awaiting a run"] * len(rows)
        cells.append(["ms, clips/s, MFU: `python benchmarks/gpu_report.py`", "measured", *waiting])
    lead = (
        "**Step on a GPU**, S-JEPA NTU, 128 clips x 2 bodies, bfloat16. Counted by `make rehearse` "
        "on a CUDA driver without a card (`benchmarks/ledger.json`); modelled from the counts by "
        "`python -m benchmarks.step_model`, which prints what it takes for true: on an H100 and "
        "an H200 rates fitted to the reports below, on an A100 assumptions. Without own "
        "attention: with flash attention."
    )
    return f"{lead}\n\n{markdown(['step', 'kind', *COUNTED], cells)}"


def data_table(result: dict[str, Any]) -> str:
    """The resident data path beside the per-clip feeder, each on one core."""
    rows = {row["row"]: row for row in result["rows"] if "row" in row}
    ratio = rows["feeder"]["median"] / rows["resident"]["median"]
    speeds = {name: row["clips"] / row["median"] for name, row in rows.items()}
    return (
        f"**Data path**, clips per second on one core: per-clip feeder {speeds['feeder']:.0f}, "
        f"resident clips {speeds['resident']:.0f} ({ratio:.1f}x). Where the allocator returns the "
        "outputs' memory after every call, that factor is about 10: `benchmarks/LOG.md`."
    )


def memory_table(result: dict[str, Any]) -> str:
    """Peak memory in fresh processes, with and without what the imports alone hold."""
    base = next(row for row in result["rows"] if row["row"] == "reference A")
    header = ["peak of a fresh process, 2 clips", "MiB", "of rung A", "above its imports"]
    cells = []
    for row in result["rows"]:
        cells.append([row["row"]])
        for key in ("peak_mib", "step_mib"):
            cells[-1] += [f"{row[key]:.0f}", f"{row[key] / base[key]:.2f}"]
    return markdown([*header, "of rung A"], cells)


def cold_start_line(result: dict[str, Any]) -> str:
    """Seconds to the first step."""
    parts = [f"{row['row']} {row['first_step_s']:.0f} s" for row in result["rows"]]
    return f"**Start** to the first step of the demo with `--compile`: {', '.join(parts)}."


def optional_tables(folder: Path) -> list[str]:
    """What of the smaller measurements a machine has."""
    makers = {"data": data_table, "memory": memory_table, "cold-start": cold_start_line}
    return [
        make(json.loads((folder / f"{name}.json").read_text()))
        for name, make in makers.items()
        if (folder / f"{name}.json").exists()
    ]


def demo_table(result: dict[str, Any]) -> str:
    """Score and cost of the demo."""
    forms = {"before": ".1f", "after": ".1f", "wall_s": ".0f"}
    cells = [[f"seed {row['seed']}", *page.figures(row, forms)] for row in result["rows"]]
    return markdown(["demo", "1-NN before", "1-NN after", "wall s"], cells)


def speed_tables() -> str:
    """Return all tables of speed and memory, from the committed results."""
    folder = RESULTS / "cpu-2-cores"
    step = json.loads((folder / "step.json").read_text())
    facts = step["rows"][0]
    return "\n\n".join(
        [
            f"On {facts['threads']} cores of an {facts['device']}, torch {facts['torch']}; files "
            "and commands in `benchmarks/results/cpu-2-cores`.",
            "**Training step** (`pytest benchmarks/bench_step.py --benchmark-only`, "
            f"{step['date']}). Ours includes crop, view, mask and clipping; the reference is "
            "given its crop. Peaks are of one process that ran all rows; fresh ones stand below.",
            step_table(step),
            *other_cpu_tables(RESULTS, folder.name),
            gpu_tables(RESULTS),
            *optional_tables(folder),
        ]
    )


def score_tables() -> str:
    """Return what the demo and the small sets give, from the committed results."""
    folder = RESULTS / "cpu-2-cores"
    demo = json.loads((folder / "demo.json").read_text())
    subjects = json.loads((folder / "demo_subjects.json").read_text())
    return "\n\n".join(
        [
            "**Demo**: top-1 % across views, mean-pooled, cold compiler cache, peak "
            f"{demo['peak_rss_mib']} MiB (`python -m benchmarks.demo OUT`).",
            demo_table(demo),
            "Across subjects and views, with six people to learn from, the same recipe does not "
            f"help: un-pooled 1-NN moved by {subjects['mean_gain']:+.1f} points on average "
            "(`demo_subjects.json`).",
            "**Small real sets** (`python -m benchmarks.accuracy real-data --data DATA`): top-1 %, "
            "mean [range] over 3 seeds (SBU: 2 seeds x 5 folds). Random is each run's own "
            "initialisation. These are not NTU results and not comparable with published ones. "
            "Measured with 0.9 masked and tokens whitened in bfloat16; the library whitens in "
            "float32. Numbers per clip: un-pooled 10,240, joint-pooled 1,280, mean-pooled 64, raw "
            "1,920 (SBU, with 15 joints and two persons: 7,680, 960, 64 and 2,880).",
            (folder / "real_data.md").read_text().split("\n\n", 1)[1].strip(),
        ]
    )


# The one place that says which document holds which tables.
PAGES = {"docs/speed.md": speed_tables, "docs/quickstart.md": score_tables}


def between(text: str, begin: str, end: str, new: str) -> str:
    """Return the text with what stands between two markers made anew."""
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n{new}\n{end}{rest.partition(end)[2]}"


def with_tables(name: str) -> str:
    """Return the text of a document of `PAGES` with its tables made anew."""
    return between((ROOT / name).read_text(), BEGIN, END, page.wrapped(PAGES[name]()))


def main() -> None:
    """Run one of the three commands."""
    if sys.argv[1] == "keep":
        print(keep(json.loads(Path(sys.argv[2]).read_text()), *sys.argv[3:]))
    elif sys.argv[1] == "condense":
        raw = json.loads(Path(sys.argv[2]).read_text())
        Path(sys.argv[3]).write_text(json.dumps(condense(raw, *sys.argv[4:]), indent=1) + "\n")
    else:
        for name in PAGES:
            (ROOT / name).write_text(with_tables(name))


if __name__ == "__main__":
    main()
