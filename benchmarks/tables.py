"""From measurements to the README: condense a pytest-benchmark JSON, and print the tables.

python -m benchmarks.tables condense RAW.json OUT.json    drop what identifies the machine's owner
python -m benchmarks.tables readme                        rewrite the README's tables from results
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def condense(raw: dict[str, Any]) -> dict[str, Any]:
    """Keep each row's statistics and facts, with date and command."""
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
    command = "pytest benchmarks/ --benchmark-only"
    return {"command": command, "date": raw["datetime"][:10], "rows": rows}


def step_table(result: dict[str, Any]) -> str:
    """One row for each variant of the whole step, with the ratio to the plain reference."""
    rows = [row for row in result["rows"] if row["group"] == "sjepa step"]
    base = next(row for row in rows if row["row"] in ("reference_A", "reference_fp32"))
    lines = [
        "| step, 2 clips x 2 bodies, NTU shape | ms (median) | vs reference | peak MiB |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        name = "plain reference, float32" if row is base else f"{row['row']}, {row['dtype']}"
        ratio = base["median"] / row["median"]
        lines.append(
            f"| {name.replace('_', ' ')} | {1000 * row['median']:.0f} | {ratio:.2f}x | "
            f"{row['peak_memory_mib']:.0f} |"
        )
    return "\n".join(lines)


def demo_table(result: dict[str, Any]) -> str:
    """Score and cost of the demo."""
    lines = ["| demo | 1-NN before | 1-NN after | wall s |", "| --- | ---: | ---: | ---: |"]
    for row in result["rows"]:
        lines.append(
            f"| seed {row['seed']} | {row['before']:.1f} | {row['after']:.1f} | "
            f"{row['wall_s']:.0f} |"
        )
    return "\n".join(lines)


def tables() -> str:
    """All tables of the README, from the committed results."""
    folder = RESULTS / "cpu-2-cores"
    step = json.loads((folder / "step.json").read_text())
    demo = json.loads((folder / "demo.json").read_text())
    subjects = json.loads((folder / "demo_subjects.json").read_text())
    facts = step["rows"][0]
    return "\n\n".join(
        [
            f"On {facts['threads']} cores of an {facts['device']}, torch {facts['torch']}; files "
            "and commands in `benchmarks/results/cpu-2-cores`. No GPU has been measured yet.",
            "**Training step** (`pytest benchmarks/bench_step.py --benchmark-only`, "
            f"{step['date']}). Ours includes crop, view, mask and clipping; the reference is "
            "given its crop.",
            step_table(step),
            "**Demo**: top-1 % across views, mean-pooled, cold compiler cache, peak "
            f"{demo['peak_rss_mib']} MiB (`python -m benchmarks.demo OUT`).",
            demo_table(demo),
            "Across subjects and views, with six people to learn from, the same recipe does not "
            f"help: un-pooled 1-NN moved by {subjects['mean_gain']:+.1f} points on average "
            "(`demo_subjects.json`).",
            "**Small real sets** (`benchmarks/real_data.sh DATA_FOLDER`): top-1 %, mean [range] "
            "over 3 seeds (SBU: 2 seeds x 5 folds). Random is each run's own initialisation. "
            "These are not NTU results and not comparable with published ones. The runs whitened "
            "tokens in bfloat16; the library does so in float32 since.",
            (folder / "real_data.md").read_text().split("\n\n", 1)[1].strip(),
        ]
    )


def with_tables(readme: str) -> str:
    """Return the README's text with its tables made anew."""
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{tables()}\n{END}{tail}"


def main() -> None:
    """Run one of the two commands."""
    if sys.argv[1] == "condense":
        raw = json.loads(Path(sys.argv[2]).read_text())
        Path(sys.argv[3]).write_text(json.dumps(condense(raw), indent=1) + "\n")
    else:
        path = ROOT / "README.md"
        path.write_text(with_tables(path.read_text()))


if __name__ == "__main__":
    main()
