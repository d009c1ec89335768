"""Times every tile that our Triton attention could take on this card, in bfloat16.

    python -m benchmarks.tune_attention [--out JSON] [--seconds 60] [--processes 14]

The shapes are the step's: heads of 32, 750 and 75 tokens. First processes of their own compile all
tiles side by side, so that little time on the card goes by; then each is checked against float64
and timed alone. A row's milliseconds are of the forward, or of the whole backward with the other
kernel's tile left as it is. The best rows belong into `sjepa_kernels.attention.fused.TILES`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.report.devices import MOST_WRONG, relative, true_attention
from sjepa_kernels.attention import fused
from sjepa_kernels.attention.fused import Tile

HEADS, WIDTH, SEQUENCES = 8, 32, 256
LONG, SHORT = 750, 75
Row = dict[str, Any]


def product(
    forms: tuple[tuple[int, int], ...], columns: tuple[int, ...], stages: tuple[int, ...]
) -> list[Tile]:
    """Tiles of all (rows, warps), columns and stages."""
    return [
        Tile(rows, c, warps, s) for (rows, warps), c, s in itertools.product(forms, columns, stages)
    ]


FORMS, COLUMNS = ((64, 4), (128, 8), (128, 4)), (64, 32, 128)
CANDIDATES = {
    "forward": product(FORMS, COLUMNS, (3, 4, 2)),
    "queries": product(FORMS, COLUMNS, (3, 4, 2)),
    "keys": product(FORMS, COLUMNS, (1, 2, 3, 4)),
    "short forward": product((*FORMS, (64, 8), (32, 4)), (128,), (1,)),
    "short backward": product(((128, 4), (128, 8), (128, 16)), (128,), (1,)),
}


@contextmanager
def using(kind: str, tile: Tile) -> Iterator[None]:
    """Make one kernel take this tile; of the backward's pair the other one has as many rows."""
    if kind.startswith("short"):
        with mock.patch.object(fused, "_one_tile", lambda *_: tile):
            yield
        return
    tiles = fused.TILES[2]._replace(**{kind: tile})
    if other := {"queries": "keys", "keys": "queries"}.get(kind):
        beside = getattr(tiles, other)
        if beside.rows != tile.rows:
            beside = Tile(tile.rows, 64, 4, 1)
        tiles = tiles._replace(**{other: beside})
    with mock.patch.dict(fused.TILES, {2: tiles}):
        yield


def inputs(kind: str, sequences: int) -> tuple[Tensor, Tensor]:
    """Packed tokens, and the gradient of their mixed values."""
    torch.manual_seed(0)
    tokens = SHORT if kind.startswith("short") else LONG
    qkv = torch.randn(sequences, tokens, 3, HEADS, WIDTH, device="cuda").bfloat16()
    return qkv, torch.randn(sequences, tokens, HEADS, WIDTH, device="cuda").bfloat16()


def call(kind: str, qkv: Tensor, grad: Tensor) -> Callable[[], Tensor]:
    """The forward, or the backward behind a forward that was made before."""
    if kind.endswith("forward"):
        return lambda: fused._forward(qkv, None, 0)[0]
    out, lse = fused._forward(qkv, None, 0)
    return lambda: fused._gradients(grad, qkv, out, lse, 0, True)[0]


def compiled(kind: str, tile: Tile) -> str | None:
    """Run a tile once on one sequence; what is compiled stays in Triton's cache."""
    qkv, grad = inputs(kind, 1)
    run = call(kind, qkv, grad)
    try:
        with using(kind, tile):
            run()
            torch.cuda.synchronize()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"[:200]
    return None


def compile_all(processes: int, seconds: float) -> dict[tuple[str, Tile], str | None]:
    """Compile all candidates side by side; returns those that were done in time, with errors."""
    found: dict[tuple[str, Tile], str | None] = {}
    end = time.time() + seconds
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context)
    waiting = {
        pool.submit(compiled, kind, tile): (kind, tile)
        for kind, tiles in CANDIDATES.items()
        for tile in tiles
    }
    try:
        for done in as_completed(waiting, timeout=max(1.0, end - time.time())):
            try:
                found[waiting[done]] = done.result()
            except Exception as error:
                found[waiting[done]] = f"{type(error).__name__}: {error}"[:200]
    except TimeoutError:
        print(f"{len(waiting) - len(found)} tiles were not compiled in time", file=sys.stderr)
    pool.shutdown(wait=False, cancel_futures=True)
    return found


def measured(kind: str, tile: Tile, full: tuple[Tensor, Tensor], truth: Tensor) -> Row:
    """Error and median milliseconds of one tile."""
    from triton.testing import do_bench

    qkv, grad = full
    run = call(kind, qkv, grad)
    with using(kind, tile):
        error = relative(run()[: len(truth)], truth)
        if not error <= MOST_WRONG[torch.bfloat16]:
            return {"error": f"wrong: {error:.1e}"}
        return {"ms": do_bench(run, warmup=8, rep=30, return_mode="median"), "deviation": error}


def main(argv: list[str] | None = None) -> None:
    """Compile, check, time, and print the best."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("tiles.json"))
    parser.add_argument("--seconds", type=float, default=60, help="for the compilation at most")
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 1) - 2))
    parser.add_argument("--compile-only", action="store_true")
    asked = parser.parse_args(argv)
    start = time.time()
    ready = compile_all(asked.processes, asked.seconds)
    print(f"{len(ready)} tiles compiled in {time.time() - start:.0f} s", file=sys.stderr)
    if asked.compile_only:
        return
    rows: list[Row] = []
    for kind in CANDIDATES:
        full = inputs(kind, SEQUENCES)
        exact = true_attention(full[0][:2], full[1][:2])
        truth = exact[0] if kind.endswith("forward") else exact[1]
        for tile in CANDIDATES[kind]:
            if (kind, tile) not in ready:
                continue
            row: Row = {"kernel": kind, **tile._asdict()}
            error = ready[kind, tile]
            row |= {"error": error} if error else measured(kind, tile, full, truth)
            rows.append(row)
        own = sorted((r for r in rows if r["kernel"] == kind and "ms" in r), key=lambda r: r["ms"])
        for row in own[:6]:
            print(" ".join(f"{k}={v:.4g}" if k == "ms" else f"{v}" for k, v in row.items()))
        facts = {"device": torch.cuda.get_device_name(), "rows": rows}
        asked.out.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
