"""The tables of `docs/results.md`, from the committed rows."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.features.plan import COLUMNS, POOLED, RAW, ROWS, SETS, Set
from benchmarks.features.rows import Row, key_of
from benchmarks.report.page import wrapped
from benchmarks.tables import between, markdown

BEGIN, END = "<!-- features: begin -->", "<!-- features: end -->"
TUNED_BEGIN, TUNED_END = "<!-- tuned: begin -->", "<!-- tuned: end -->"
# Where a machine's folder has the scores of what trains by the recipe as it is now.
TUNED = "tuned"
NONE = "No machine has run it yet."


def mean_and_error(values: list[float], seeds: int) -> str:
    """Mean over seeds, its standard error, and how many they are where they are not `seeds`."""
    if not values:
        return ""
    text = f"{statistics.mean(values):.1f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values) / math.sqrt(len(values)):.1f}"
    return text if len(values) == seeds else f"{text} ({len(values)})"


def seed_scores(rows: list[Row], kind: Set, part: bool) -> dict[tuple[str, str], list[float]]:
    """Return a score for each seed by row and column, the mean over folds where all are there.

    A pool trains on one fold's training part of a set, and is scored on that fold alone.
    """
    found: dict[tuple[str, str], dict[int, dict[str, float]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for row in rows:
        score = row["part"]["top1"] if part else row["top1"]
        found[row["row"], row["column"]][row["seed"]][row["split"]] = score
    return {
        place: [
            statistics.mean(folds.values())
            for _, folds in sorted(seeds.items())
            if folds.keys() == set(kind.splits[:1] if place[0] == POOLED else kind.splits)
        ]
        for place, seeds in found.items()
    }


def set_table(rows: list[Row], kind: Set, part: bool = False) -> str:
    """Heading, clips and widths, and the table of a set, or of a part of its test clips."""
    scores = seed_scores(rows, kind, part)
    tests = [row["part"]["test_clips"] if part else row["test_clips"] for row in rows]
    trains = [row["train_clips"] for row in rows]
    alone = _widths([row for row in rows if row["row"] != POOLED])
    pooled = _widths([row for row in rows if row["row"] == POOLED])
    count = max((len(values) for values in scores.values()), default=0)
    seeds = f"{count} {'seed' if count == 1 else 'seeds'}"
    facts = f"{_range(trains)} training and {_range(tests)} test clips; {seeds}"
    if alone:
        facts += f"; numbers per clip: {alone}"
    if pooled:
        facts += f"; on all sets at once: {pooled}"
    cells = []
    for name, title in ROWS.items():
        values = [scores.get((name, column), []) for column in COLUMNS]
        if any(values):
            # Coordinates have no seed.
            due = 1 if name == RAW else count
            if name == POOLED and len(kind.splits) > 1:
                title += f" ({kind.splits[0]} alone)"
            cells.append([title, *(mean_and_error(found, due) for found in values)])
    header = ["top-1 %", *(column.title for column in COLUMNS.values())]
    title = kind.part_title if part else kind.title
    return f"## {title}\n\n{facts}.\n\n{markdown(header, cells)}"


def _widths(rows: list[Row]) -> str:
    """Numbers per clip of each pooling, and of coordinates."""
    found = {
        "raw" if row["row"] == RAW else row["column"]: row["features"]
        for row in rows
        if row["features"] and not row["column"].startswith("knn")
    }
    return ", ".join(f"{pooling} {width:,}" for pooling, width in sorted(found.items()))


def _range(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def machine_facts(content: dict[str, Any], folder: str, count: int) -> str:
    """Say where so many of the scores come from."""
    machine = content["machine"]
    torch = sorted({row["torch"] for row in content["rows"]})
    dtypes = sorted({row["dtype"] for row in content["rows"]})
    where = machine["gpu"] or "a CPU, one thread for each run"
    return (
        f"{count:,} on {where}, {' and '.join(dtypes)}, torch {' and '.join(torch)}, sjepa_fast "
        f"{machine['sjepa_fast']} (`benchmarks/results/{folder}/features.json`)"
    )


def joined(contents: dict[str, dict[str, Any]]) -> tuple[list[Row], dict[str, int]]:
    """Return the rows of all machines, and how many of each machine's, by folder.

    A cell that several machines have is that of the one with the most rows. Raises ValueError if
    they are of different stores.
    """
    stores: dict[str, str] = {}
    rows: dict[tuple[Any, ...], Row] = {}
    counts = {}
    for folder, content in sorted(contents.items(), key=lambda item: -len(item[1]["rows"])):
        for store, fingerprint in content["stores"].items():
            if stores.setdefault(store, fingerprint) != fingerprint:
                raise ValueError(f"stores: {folder} has another {store}; prepare it anew and run")
        before = len(rows)
        rows = {key_of(row): row for row in content["rows"]} | rows
        counts[folder] = len(rows) - before
    return list(rows.values()), counts


def sources(results: Path, pattern: str) -> tuple[list[Row], str]:
    """Return the rows of all machines, and the sentence that says where they come from."""
    files = sorted(results.glob(pattern))
    contents = {
        file.parent.relative_to(results).as_posix(): json.loads(file.read_text()) for file in files
    }
    if not contents:
        return [], NONE
    rows, counts = joined(contents)
    facts = [machine_facts(contents[folder], folder, n) for folder, n in counts.items()]
    [command] = {content["command"] for content in contents.values()}
    return rows, f"Scores by `{command}`: {'; '.join(facts)}."


def tables(results: Path) -> str:
    """All tables, from the `features.json` of every machine."""
    rows, facts = sources(results, "*/features.json")
    parts = [facts]
    for store, kind in SETS.items():
        found = [row for row in rows if row["set"] == store]
        if found:
            parts.append(set_table(found, kind))
        if found and kind.part:
            parts.append(set_table(found, kind, part=True))
    return wrapped("\n\n".join(parts))


def tuned_table(results: Path) -> str:
    """One table of what was fine-tuned by the recipe as it is now: a column for each set."""
    rows, facts = sources(results, f"*/{TUNED}/features.json")
    columns: dict[str, dict[tuple[str, str], list[float]]] = {}
    for store, kind in SETS.items():
        found = [row for row in rows if row["set"] == store]
        if found:
            columns[kind.title] = seed_scores(found, kind, part=False)
        if found and kind.part:
            columns[kind.part_title] = seed_scores(found, kind, part=True)
    seeds = max((len(values) for of in columns.values() for values in of.values()), default=0)
    cells = []
    for name, title in ROWS.items():
        values = [of.get((name, "finetune"), []) for of in columns.values()]
        if any(values):
            cells.append([title, *(mean_and_error(found, seeds) for found in values)])
    if not cells:
        return facts
    return wrapped(f"{facts} {seeds} seeds.\n\n{markdown(['top-1 %', *columns], cells)}")


def with_tables(text: str, results: Path) -> str:
    """Return the document's text with its tables made anew."""
    text = between(text, TUNED_BEGIN, TUNED_END, tuned_table(results))
    return between(text, BEGIN, END, tables(results))
