"""What each compiled kernel costs, and the committed table that it must not get worse than.

A row is one kernel of one case for one GPU generation: registers a thread, bytes spilled, bytes of
shared memory, and how many global accesses in its code move 16 bytes (`wide`) or fewer (`narrow`).
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton

Rows = dict[str, dict[str, int]]

ROOT = Path(__file__).parents[2]
PATH = Path(__file__).with_name("aot_table.json")
# Registers are handed out in groups of 8 a thread, so fewer more cost nothing.
REGISTER_SLACK = 7
UPDATE = "python -m tests.kernels.test_compile_ahead --update"


def versions() -> list[str]:
    """Return the versions of Triton that the table is for: the oldest that works, and the pinned.

    The oldest is what kernels/pyproject.toml allows, with the zero that a first release has.
    """
    pinned = re.search(r"^triton==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    oldest = re.search(r'"triton>=([\d.]+)', (ROOT / "kernels" / "pyproject.toml").read_text())
    assert pinned
    assert oldest
    return [f"{oldest[1]}.0", pinned[1]]


def resources(compiled: Any, arch: int) -> dict[str, int]:
    """Return a row; registers and spills only where Triton's wheel brings the assembler."""
    ptx = compiled.asm["ptx"]
    wide, narrow = accesses(ptx)
    row = {"shared": compiled.metadata.shared, "wide": wide, "narrow": narrow}
    name = "ptxas-blackwell" if arch >= 100 else "ptxas"
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not assembler.exists():
        return row
    target = re.search(r"\.target (\w+)", ptx)
    assert target
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [assembler, "-v", f"-arch={target[1]}", source, "-o", f"{folder}/kernel.cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills, registers = re.findall(r"(\d+) bytes spill", said), re.findall(r"(\d+) regis", said)
    assert spills and registers, said
    return {"registers": max(map(int, registers)), "spills": sum(map(int, spills)), **row}


def accesses(ptx: str) -> tuple[int, int]:
    """Return how many instructions of the code move at least 16 bytes of global memory, or less."""
    sizes = [
        int(count or 1) * int(bits) // 8
        for count, bits in re.findall(r"\b(?:ld|st)\.global\S*?(?:\.v(\d))?\.[bfsu](\d+)\s", ptx)
    ]
    sizes += [int(size, 0) for size in re.findall(r"cp\.async\S* \[.*?\], \[.*?\], (\w+)", ptx)]
    return sum(size >= 16 for size in sizes), sum(size < 16 for size in sizes)


def worse(now: Rows, committed: Rows) -> list[str]:
    """Return what got worse, in words; a kernel without a committed row counts."""
    problems = []
    for name, row in now.items():
        if name not in committed:
            problems.append(f"{name}: not in the table")
            continue
        before = committed[name]
        limits = {key: before[key] for key in ("spills", "shared", "narrow")}
        limits["registers"] = before["registers"] + REGISTER_SLACK
        problems += [
            f"{name}: {key} {before[key]} -> {row[key]}"
            for key, limit in limits.items()
            if row[key] > limit
        ]
        if before["wide"] and not row["wide"]:
            problems.append(f"{name}: no 16-byte access is left of {before['wide']}")
    return problems


def load() -> dict[str, Rows]:
    """Return the committed rows by the version of Triton."""
    table: dict[str, Rows] = json.loads(PATH.read_text())
    return table


def save(rows: Rows) -> None:
    """Write the rows of the version at hand, sorted, one a line, and keep those of the other."""
    kept = {version: old for version, old in load().items() if version in versions()}
    table = kept | {triton.__version__: rows}
    sections = []
    for version in sorted(table):
        names = sorted(table[version])
        lines = ",\n".join(
            f"  {json.dumps(name)}: {json.dumps(table[version][name])}" for name in names
        )
        sections.append(f" {json.dumps(version)}: {{\n{lines}\n }}")
    PATH.write_text("{\n" + ",\n".join(sections) + "\n}\n")
