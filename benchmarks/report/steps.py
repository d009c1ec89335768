"""The whole step in the report: ours beside every rung of the reference."""

from __future__ import annotations

import gc
import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import chain, repeat

import torch
from torch import Tensor

from benchmarks import steps
from benchmarks.reference.feeder import feeding_loader, padded_clips
from benchmarks.report.book import Book, Row, forget_peaks, timed
from benchmarks.steps import ntu_like_clips, our_flops, our_step
from sjepa_fast.build import build_model
from sjepa_fast.config.presets import preset
from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.data.clips import ResidentClips
from sjepa_fast.training.flops import step_flops

# Settings of `runtime` by which rows of ours differ; no other place of the report names `compile`.
DEFAULT: dict[str, object] = {}
EAGER: dict[str, object] = {"compile": "off"}
COMPILED: dict[str, object] = {"compile": "on"}
SMALL: dict[str, dict[str, object]] = {
    "data": {"frames": 24, "crop_min_frames": 8},
    "model": {"width": 32, "heads": 1, "depth": 2, "predictor_depth": 1},
}


def paper_config(book: Book, clips: int, base: TrainConfig | None = None) -> TrainConfig:
    """The S-JEPA preset, or another, at a batch size; scaled down where the report is small."""
    config = base or preset("sjepa-ntu60-xsub")
    if book.small:
        config = replace(config, **SMALL, objective={"target_layers": 2})
        if config.mask.kind != "motion_aware":
            config = replace(config, mask={"kind": "random"})
    return replace(config, optim={"batch_size": clips})


def default_clips(book: Book) -> int:
    return 4 if book.small else 128


def largest_that_fits(measure: Callable[[int], Row], clips: int) -> Row:
    """Measure a step of so many clips or, on a small card, of the largest of its halves that fits.

    An eighth of the clips is the least. A row of fewer clips than asked for says so under `note`.
    """
    for share in (1, 2, 4, 8):
        size = clips // share
        try:
            row = measure(size)
        except torch.OutOfMemoryError:
            if share == 8 or size < 2:
                raise
        else:
            return row if share == 1 else {**row, "note": f"{size} clips, as {clips} do not fit"}
        # Outside of the handler, whose traceback holds what did not fit.
        gc.collect()
        torch.cuda.empty_cache()
        forget_peaks("cuda")
    raise AssertionError("unreachable")


def measured_step(
    book: Book, config: TrainConfig, clips: ResidentClips, *,
    dtype: torch.dtype = torch.bfloat16, rounds: int = 10, most: float = 8.0,
) -> Row:  # fmt: skip
    """Time our step on clips of changing ids, from its first call on."""
    device = torch.device(book.device)
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        warnings.simplefilter("always", RuntimeWarning)
        _, step = our_step(config, clips, device, dtype)
        batch = config.optim.batch_size
        ids = [torch.arange(batch, device=device)]
        ids += [torch.randperm(len(clips.frames_N), device=device)[:batch] for _ in range(3)]
        loss = float(step(ids[0]))
        began = {"first_step_s": time.perf_counter() - start, "first_loss": loss}
        turn = iter(chain.from_iterable(repeat(ids)))
        figures = timed(lambda: step(next(turn)), book.device, warmup=5, rounds=rounds, most=most)
    # A row must not carry the name of what it has silently fallen back from.
    fallen = [str(w.message) for w in warned if "without" in str(w.message)]
    note = {"note": "; ".join(fallen)[:200]} if fallen else {}
    return {**figures, **rates(config, our_flops(config, clips), figures["ms"]), **began, **note}


def fitting_step(book: Book, config: TrainConfig, clips: ResidentClips, **options: object) -> Row:
    """Like `measured_step`, of fewer clips where the configured ones do not fit."""

    def measure(size: int) -> Row:
        fewer = replace(config, optim={"batch_size": size})
        return measured_step(book, fewer, clips, **options)  # type: ignore[arg-type]

    return largest_that_fits(measure, config.optim.batch_size)


def rates(config: TrainConfig, flops: int, ms: float) -> Row:
    """Clips per second, and FLOP/s by the count of what is computed."""
    return {
        "clips": config.optim.batch_size,
        "clips/s": 1000 * config.optim.batch_size / ms,
        "TFLOP": flops * 1e-12,
        "TFLOP/s": flops * 1e-9 / ms,
    }


def measured_rung(
    book: Book, config: TrainConfig, clips: ResidentClips, rung: str, feed: bool
) -> Row:
    """Time a rung of the reference: on clips cropped before, or fed by its own loader."""
    device = torch.device(book.device)
    start = time.perf_counter()
    reference, run = steps.reference_step(config, clips, device, rung)
    ids = torch.arange(config.optim.batch_size, device=device)
    # From our initialisation, and first on what our first step draws: the losses must agree.
    reference.load_weights(build_model(config, clips, ids, device).state_dict())
    clip, view, keep = steps.shared_batch(config, clips, ids, 0)
    loss = float(run(clip, view, keep))
    began = {"first_step_s": time.perf_counter() - start, "first_loss": loss}
    step: Callable[[], Tensor] = partial(run, clip, None, None)
    if feed:
        on_gpu = book.device == "cuda"
        ready = padded_clips(clips, torch.arange(min(len(clips.frames_N), 2048)))
        workers = min(16, os.cpu_count() or 1) if on_gpu else 0
        loader = feeding_loader(ready, config, workers=workers, pinned=on_gpu)
        fed = chain.from_iterable(repeat(loader))

        def step() -> Tensor:
            clip, view = next(fed)
            moved = [x.to(device, non_blocking=True) for x in (clip, view)]
            return run(*moved, None)

    figures = timed(step, book.device, warmup=2, rounds=8, most=8)
    flops = step_flops(config, clips.layout.num_joints).total
    return {**figures, **rates(config, flops, figures["ms"]), **began}


def rungs(book: Book) -> None:
    """Ours beside every rung of the reference at the S-JEPA default shape, the most wanted first.

    D, the strongest baseline, takes longest to compile: it comes before what is only history.
    """
    batch = default_clips(book)
    config = paper_config(book, batch)
    clips = ntu_like_clips(16 if book.small else 2048, torch.device(book.device))

    def ours(name: str, dtype: torch.dtype, **runtime: object) -> None:
        if book.small and runtime == COMPILED:
            # As that of D, below.
            book.row(row=name, error="left out of small reports")
            return
        own = replace(config, runtime=runtime)
        measure = partial(fitting_step, book, own, clips, dtype=dtype)
        book.attempt(measure, needs=3, row=name)

    def reference(rung: str, *, feed: bool = False, needs: float = 5) -> None:
        def measure(size: int) -> Row:
            fewer = replace(config, optim={"batch_size": size})
            return measured_rung(book, fewer, clips, rung, feed)

        name = f"reference {rung}{', fed by its loader' if feed else ''}"
        if book.small and rung == "D":
            # Its compilation alone takes minutes on a CPU.
            book.row(row=name, error="left out of small reports")
        else:
            book.attempt(partial(largest_that_fits, measure, batch), needs=needs, row=name)

    ours("ours", torch.bfloat16, **DEFAULT)
    ours("ours, eager", torch.bfloat16, **EAGER)
    reference("C")
    reference("D", needs=15)
    reference("B")
    reference("A")
    ours("ours, compiled", torch.bfloat16, **COMPILED)
    ours("ours, float32", torch.float32, **DEFAULT)
    reference("A", feed=True)
    ours("ours, eager, without CUDA graph", torch.bfloat16, **EAGER, cuda_graph="off")
