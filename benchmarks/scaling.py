"""Step time and efficiency on 8 to 512 GPUs by a model of the links: modelled, not measured.

    python -m benchmarks.scaling [--card H200] [--step-ms MS] [--batch CLIPS] [--plot FILE.png]

One GPU's step is `step_model`'s, from the counted ledger, or `--step-ms` if you have measured it.
Several GPUs keep it and add up their float32 gradients, a bucket of DistributedDataParallel at a
time, while the backward goes on; what is left at its end is waited for, and so are the small
collectives of a step (buffers, center), which move nothing and cost their latency. Of S bytes:

    ring = 2 (n - 1) / n * S / B + (2 (n - 1) - 2 h) * l + 2 h * L      (h: hosts; 0 if one)
    tree = 2 S / B + 2 (n / h - 1) * l + 2 * ceil(log2 h) * L
    all-reduce = the smaller of both + launch

n GPUs on h hosts; B: bytes/s into a GPU over NVLink, or of all network cards of a host where that
is less; l and L: latency of a hop in a host and between hosts. In the first table every GPU keeps
the ledger's clips, so the batch grows, beyond what a method may bear; in the second, of `--batch`,
the clips of a GPU shrink, and its step by that share but for its launches. Efficiency is clips per
second of n GPUs over n times those of one GPU with the ledger's clips. Not modelled: stragglers,
other traffic, the host, a scheduler's placement.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import step_model
from sjepa_fast import cli
from sjepa_fast.build import OBJECTIVES
from sjepa_fast.config.presets import preset
from sjepa_fast.errors import InputError
from sjepa_fast.skeletons import NTU25
from sjepa_fast.viz.figure import new_figure, save_figure

PRESET = "sjepa-ntu60-xsub"
CASE, FORM = f"{PRESET} bf16 triton", "ours"
GPUS = (8, 16, 32, 64, 128, 256, 512)
MIB = 2**20
SAID = "modelled, not measured"


@dataclass(frozen=True)
class Links:
    """What connects the GPUs; rates as their makers state them, the rest assumed."""

    gpus_per_host: int = 8
    """GPUs that NVLink connects."""
    nvlink: float = 450.0
    """GB/s into a GPU over NVLink."""
    network: float = 50.0
    """GB/s of one network card (400 Gbit/s)."""
    cards: int = 8
    """Network cards of a host."""
    sustained: float = 0.8
    """Share of these rates that an all-reduce gets (assumed)."""
    hop_us: float = 4.0
    """Latency of a hop in a host (assumed)."""
    far_hop_us: float = 15.0
    """Latency of a hop between hosts (assumed)."""
    launch_us: float = 20.0
    """Start of a collective (assumed)."""


# NVLink 4 and 400 Gbit/s; NVLink 3 and 200 Gbit/s.
LINKS = {"H200": Links(), "H100": Links(), "A100": Links(nvlink=300.0, network=25.0)}


@dataclass(frozen=True)
class Load:
    """What one GPU does in a step, and what it sends."""

    clips: int  # of the step below
    step_ms: float
    nodes_ms: float  # of it, what does not shrink with the clips: its launches
    backward_share: float
    bucket_bytes: tuple[int, ...]  # in the order in which the backward fills them
    small_collectives: int


@dataclass(frozen=True)
class Options:
    """What to model."""

    card: str = "H200"
    """A card of `model_constants.json`."""
    step_ms: float = 0.0
    """Measured milliseconds of one GPU's step; 0: modelled."""
    batch: int = 0
    """Clips of all GPUs together, for a second table; 0: none."""
    plot: Path | None = None
    """PNG to write."""


@dataclass(frozen=True)
class Predicted:
    """One row of the table: milliseconds, and efficiency in percent."""

    gpus: int
    clips: float  # of each GPU
    step_ms: float
    sent_ms: float  # all collectives, hidden or not
    waited_ms: float  # of them, what the backward does not hide
    efficiency: float


def all_reduce_ms(size: float, gpus: int, links: Links) -> float:
    """Time to add up `size` bytes over all GPUs, by the better of ring and tree."""
    if gpus == 1:
        return 0.0
    hosts = max(1, gpus // links.gpus_per_host)
    rate = links.nvlink if hosts == 1 else min(links.nvlink, links.cards * links.network)
    through_ms = 2 * size / (rate * links.sustained * 1e6)
    far = 2 * hosts if hosts > 1 else 0
    ring_us = (2 * (gpus - 1) - far) * links.hop_us + far * links.far_hop_us
    inner, depth = gpus // hosts - 1, math.ceil(math.log2(hosts))
    tree_us = 2 * inner * links.hop_us + 2 * depth * links.far_hop_us
    ring = through_ms * (gpus - 1) / gpus + 1e-3 * ring_us
    tree = through_ms + 1e-3 * tree_us
    return min(ring, tree) + 1e-3 * links.launch_us


def buckets(size: int) -> tuple[int, ...]:
    """Cut gradients as DistributedDataParallel does by default: 1 MiB first, then 25 MiB each."""
    found, left = [min(size, MIB)], size - min(size, MIB)
    while left:
        found.append(min(left, 25 * MIB))
        left -= found[-1]
    return tuple(found)


def exposed_ms(sizes: Sequence[int], backward_ms: float, times_ms: Sequence[float]) -> float:
    """Wait at the end of a backward that fills the buckets evenly; they are sent one by one."""
    total, filled, end = sum(sizes), 0, 0.0
    for size, took in zip(sizes, times_ms, strict=True):
        filled += size
        end = max(end, backward_ms * filled / total) + took
    return end - backward_ms


def predict(load: Load, gpus: int, links: Links, batch: int = 0) -> Predicted:
    """Model one step; `batch` is that of all GPUs, 0 for the load's clips in each."""
    clips = batch / gpus if batch else load.clips
    share = clips / load.clips
    alone = load.nodes_ms + (load.step_ms - load.nodes_ms) * share
    times = [all_reduce_ms(size, gpus, links) for size in load.bucket_bytes]
    small = load.small_collectives * all_reduce_ms(0, gpus, links)
    waited = exposed_ms(load.bucket_bytes, alone * load.backward_share, times) + small
    step = alone + waited
    # Clips per second and GPU, over those of one GPU alone.
    efficiency = 100 * share * load.step_ms / step
    return Predicted(gpus, clips, step, sum(times) + small, waited, efficiency)


def trained_parameters(name: str = PRESET) -> tuple[int, int]:
    """Count what a preset trains, and the buffers that are sent out before every forward."""
    config = preset(name)
    with torch.device("meta"):
        model = OBJECTIVES[config.objective.kind](config, NTU25)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained, len(list(model.buffers()))


def load_of(options: Options) -> Load:
    """Return the load of one GPU from the ledger and the model, or from a measured step."""
    known = step_model.cards()
    if options.card not in known:
        raise InputError("card", options.card, f"known: {', '.join(known)}")
    if options.step_ms < 0 or options.batch < 0:
        raise InputError("step-ms, batch", "negative", "give 0 or more")
    ledger = json.loads(step_model.LEDGER.read_text())
    row, card = ledger["rows"][CASE], known[options.card]
    found = step_model.estimate(row, card, card["forms"][FORM])
    trained, sent_buffers = trained_parameters()
    return Load(
        clips=ledger["clips"],
        step_ms=options.step_ms or found.total,
        nodes_ms=min(found.nodes, options.step_ms or found.nodes),
        backward_share=row["gb_by_pass"]["backward"] / row["gb"],
        bucket_bytes=buckets(4 * trained),
        small_collectives=1 + min(1, sent_buffers),
    )


def assumptions(options: Options, load: Load, links: Links) -> list[str]:
    """Say what the table stands on."""
    source = "given" if options.step_ms else f"{SAID}, attention: {FORM}"
    sizes = ", ".join(f"{size / MIB:.1f}" for size in load.bucket_bytes)
    return [
        f"{PRESET} on {options.card}: {SAID}. Assumed:",
        f"  step of one GPU with {load.clips} clips: {load.step_ms:.1f} ms ({source}), of which "
        f"{load.nodes_ms:.1f} ms do not shrink with the clips",
        f"  backward: {100 * load.backward_share:.0f} % of the step, as of the counted bytes; it "
        "fills the buckets evenly",
        f"  gradients: {sum(load.bucket_bytes) / 1e6:.1f} MB in float32, buckets of {sizes} MiB; "
        f"{load.small_collectives} small collectives",
        f"  links: {json.dumps(dataclasses.asdict(links))}",
        "  no CUDA graph, and a host that is never waited for",
    ]


def table(rows: Sequence[Predicted]) -> list[str]:
    """Return the lines of the table."""
    heads = ("GPUs", "clips/GPU", "batch", "ms", "sent ms", "waited ms", "clips/s", "efficiency")
    lines = ["".join(f"{head:>12}" for head in heads)]
    for row in rows:
        batch = row.clips * row.gpus
        cells = [f"{row.gpus}", f"{row.clips:g}", f"{batch:.0f}", f"{row.step_ms:.2f}"]
        cells += [f"{row.sent_ms:.2f}", f"{row.waited_ms:.2f}"]
        cells += [f"{1000 * batch / row.step_ms:.0f}", f"{row.efficiency:.1f} %"]
        lines.append("".join(f"{cell:>12}" for cell in cells))
    return lines


def plot(series: dict[str, Sequence[Predicted]], title: str, out: Path) -> None:
    """Draw step time and efficiency over the GPUs, a line for each series."""
    figure = new_figure(8, 3.4)
    panels = (("ms per step", "step_ms"), ("efficiency, %", "efficiency"))
    for place, (name, value) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, 2, place)
        for label, rows in series.items():
            gpus = [row.gpus for row in rows]
            axes.plot(gpus, [getattr(row, value) for row in rows], marker="o", label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(GPUS, [str(count) for count in GPUS])
        axes.set_xlabel("GPUs")
        axes.set_ylabel(f"{name} (modelled)")
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, out)


def run(options: Options) -> int:
    """Print assumptions and table, and draw the plot if it is wanted."""
    load, links = load_of(options), LINKS[options.card]
    series = {f"{load.clips} clips per GPU": [predict(load, count, links) for count in GPUS]}
    if options.batch:
        shared = [count for count in GPUS if count <= options.batch]
        rows = [predict(load, count, links, options.batch) for count in shared]
        series[f"{options.batch} clips in all"] = rows
    print("\n".join(assumptions(options, load, links)))
    for label, rows in series.items():
        print("\n".join(["", f"{label}, {SAID}", *table(rows)]))
    if options.plot is not None:
        plot(series, f"{PRESET} on {options.card}: {SAID}", options.plot)
        print(f"plot: {options.plot}")
    return 0


if __name__ == "__main__":
    cli.run_main(lambda: run(cli.parse(Options, None, prog="benchmarks.scaling")))
