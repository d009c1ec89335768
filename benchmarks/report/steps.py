"""The whole step in the report: rungs and ours, its passes, and how its cost grows."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import partial
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor

from benchmarks import steps
from benchmarks.reference.feeder import feeding_loader, padded_clips
from benchmarks.report.book import Book, Row, timed
from benchmarks.steps import TWO_PERSONS, ntu_like_clips, our_flops, our_step
from sjepa_fast.build import build_model
from sjepa_fast.config.presets import PRESETS, preset
from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.data.clips import ResidentClips
from sjepa_fast.skeletons import KINECT15, KINECT20, NTU25
from sjepa_fast.training.flops import step_flops

# Training clips of the papers' splits (method 1.2).
TRAINING_CLIPS = {"ntu60-xsub": 40_091, "ntu60-xview": 37_646, "ntu120-xsub": 63_026}
TRAINING_CLIPS |= {"ntu120-xset": 54_468, "pku1": 18_841, "pku2": 5_332}
SMALL: dict[str, dict[str, object]] = {
    "data": {"frames": 24, "crop_min_frames": 8},
    "model": {"width": 32, "heads": 1, "depth": 2, "predictor_depth": 1},
}


def paper_config(book: Book, clips: int, base: TrainConfig | None = None) -> TrainConfig:
    """The S-JEPA preset, or another, at a batch size; scaled down where the report is small."""
    config = base or preset("sjepa-ntu60-xsub")
    if book.small:
        config = replace(config, **SMALL)
        if config.mask.kind != "motion_aware":
            config = replace(config, mask={"kind": "random"})
    return replace(config, optim={"batch_size": clips})


def default_clips(book: Book) -> int:
    return 4 if book.small else 128


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measured_step(
    book: Book, config: TrainConfig, clips: ResidentClips, *,
    dtype: torch.dtype = torch.bfloat16, rounds: int = 10, most: float = 8.0,
) -> Row:  # fmt: skip
    """Time our step on clips of changing ids, from its first call on."""
    device = torch.device(book.device)
    start = time.perf_counter()
    _, step = our_step(config, clips, device, dtype)
    batch = config.optim.batch_size
    ids = [torch.arange(batch, device=device)]
    ids += [torch.randperm(len(clips.frames_N), device=device)[:batch] for _ in range(3)]
    loss = float(step(ids[0]))
    began = {"first_step_s": time.perf_counter() - start, "first_loss": loss}
    turn = iter(chain.from_iterable(repeat(ids)))
    figures = timed(lambda: step(next(turn)), book.device, warmup=5, rounds=rounds, most=most)
    return {**figures, **rates(config, our_flops(config, clips), figures["ms"]), **began}


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
    """Ours beside every rung of the reference at the S-JEPA default shape."""
    config = paper_config(book, default_clips(book))
    clips = ntu_like_clips(16 if book.small else 2048, torch.device(book.device))
    bare, half = {"compile": "off", "cuda_graph": "off"}, torch.bfloat16
    ours: list[tuple[str, torch.dtype, dict[str, object]]] = [
        ("ours", half, {"compile": "off"}),
        ("ours, compiled", half, {"compile": "on"}),
        ("ours, without CUDA graph", half, bare),
        ("ours, float32", torch.float32, {"compile": "off"}),
    ]
    for name, dtype, runtime in ours:
        if not (book.small and (runtime["compile"] == "on" or runtime is bare)):
            own = replace(config, runtime=runtime)
            measure = partial(measured_step, book, own, clips, dtype=dtype)
            book.attempt(measure, needs=3, row=name)
    for rung, feed in (("C", False), ("B", False), ("A", False), ("A", True), ("D", False)):
        if book.small and rung == "D":
            # Its compilation alone takes minutes on a CPU.
            book.row(row="reference D", error="left out of small reports")
            continue
        name = f"reference {rung}{', fed by its loader' if feed else ''}"
        measure = partial(measured_rung, book, config, clips, rung, feed)
        book.attempt(measure, needs=5, row=name)


def breakdown(book: Book) -> None:
    """Time of each pass of our step, and what it launches and waits for."""
    device = torch.device(book.device)
    config = paper_config(book, default_clips(book))
    clips = ntu_like_clips(16 if book.small else 512, device)
    for compiled in (False,) if book.small else (False, True):

        def measure(compiled: bool = compiled) -> Row:
            folder = book.path.parent / ("profile-compiled" if compiled else "profile")
            written = folder / "profile.json"
            written.unlink(missing_ok=True)
            own = replace(config, runtime={"compile": "on" if compiled else "off"})
            step = steps.profiled_step(own, clips, device, torch.bfloat16, folder)
            ids = torch.arange(config.optim.batch_size, device=device)
            while not written.exists():
                step(ids)
            # The trace takes megabytes; `--profile` makes one where it is wanted.
            (folder / "trace.json.gz").unlink()
            facts: Row = json.loads(written.read_text())
            return facts

        book.attempt(measure, needs=5, row="ours, compiled" if compiled else "ours")


def bodies(book: Book) -> None:
    """The steps that compute something else: present bodies only, several masks of a clip."""
    device, batch = torch.device(book.device), default_clips(book)
    config = paper_config(book, batch)
    clips = ntu_like_clips(16 if book.small else 2048, device)
    book.attempt(partial(measured_step, book, config, clips), needs=3, row="both bodies")
    single, _ = clips.split_bodies(torch.arange(len(clips.frames_N)).numpy())
    present = round(batch * (1 + TWO_PERSONS))
    skipping = replace(config, data={"skip_empty_bodies": True}, optim={"batch_size": present})

    def skip() -> Row:
        figures = measured_step(book, skipping, single)
        # In clips that have this many present bodies, to compare with the other row.
        return {**figures, "clips": batch, "clips/s": 1000 * batch / figures["ms"]}

    book.attempt(skip, needs=3, row=f"present bodies only ({present})")
    # data2vec 2's way: the target encoder's one pass serves several masks; the last row predicts
    # a quarter of the masked tokens only.
    for masks, share in ((2, 1.0), (4, 1.0), (4, 0.25)):
        several = replace(config, mask={"num_masked_views": masks, "predict_ratio": share})

        def many(several: TrainConfig = several, masks: int = masks) -> Row:
            figures = measured_step(book, several, clips)
            return {**figures, "masks/s": masks * figures["clips/s"]}

        named = f"{masks} masks of a clip{'' if share == 1 else f', {share:.0%} of targets'}"
        book.attempt(many, needs=3, row=named)


def growth(book: Book) -> None:
    """Cost against the number of clips, the frames of a clip, and the joints of a body."""
    device = torch.device(book.device)
    sizes = (2, 4, 8) if book.small else (64, 128, 256, 512, 1024)
    clips = ntu_like_clips(sizes[-1], device)
    quick = {"rounds": 5, "most": 4.0}

    def measure(config: TrainConfig, clips: ResidentClips, what: str, value: int) -> None:
        run: Callable[[], Row] = partial(measured_step, book, config, clips, **quick)  # type: ignore[arg-type]
        book.attempt(run, needs=3, what=what, value=value)

    for size in sizes:
        measure(paper_config(book, size), clips, "clips", size)
    base = paper_config(book, default_clips(book))
    for frames in (12, 24, 48) if book.small else (60, 120, 240):
        measure(replace(base, data={"frames": frames}), clips, "frames", frames)
    for layout in (KINECT15, KINECT20, NTU25):
        other = ntu_like_clips(sizes[-1], device, layout=layout)
        measure(base, other, "joints", layout.num_joints)


def long_run(book: Book) -> None:
    """Throughput over thousands of consecutive steps, as a run has them: clocks, heat and all."""
    device = torch.device(book.device)
    config = paper_config(book, default_clips(book))
    clips = ntu_like_clips(16 if book.small else 4096, device)
    wanted, chunk = (30, 10) if book.small else (2000, 100)

    def measure() -> Row:
        own = replace(config, runtime={"compile": "off" if book.small else "on"})
        _, step = our_step(own, clips, device, torch.bfloat16)
        ids = torch.randperm(len(clips.frames_N), device=device).split(config.optim.batch_size)
        for _ in range(6):
            step(ids[0])
        synchronise(book.device)
        chunks: list[float] = []
        done, loss = 0, torch.zeros(())
        while not chunks or (done < wanted and book.left() > 3):
            start = time.perf_counter()
            for _ in range(chunk):
                loss = step(ids[done % len(ids)])
                done += 1
            synchronise(book.device)
            chunks.append(1000 * (time.perf_counter() - start) / chunk)
        ms = sum(chunks) / len(chunks)
        figures = {"steps": done, "ms": ms, "chunks_ms": chunks, "last_loss": float(loss)}
        return {**figures, **rates(config, our_flops(config, clips), ms)}

    book.attempt(measure, needs=4, row="ours" if book.small else "ours, compiled")


def projections(book: Book) -> None:
    """Hours that each paper preset would take, from its own step's time at the default batch."""
    device, batch = torch.device(book.device), default_clips(book)
    clips = ntu_like_clips(16 if book.small else 1024, device)
    known: dict[Any, Row] = {}

    def measure(base: TrainConfig, training_clips: int) -> Row:
        config = paper_config(book, batch, base)
        key = (config.data.frames, config.model, config.mask, config.objective, config.view)
        if key not in known:
            known[key] = measured_step(book, config, clips, rounds=5, most=4)
        figures, optim = known[key], base.optim
        length = optim.length
        if optim.unit == "epochs":
            length *= training_clips // optim.batch_size
        seconds = length * optim.batch_size / figures["clips/s"]
        # A scaled-down step says nothing about the papers' runs.
        return {**figures, "steps": length, "hours": None if book.small else seconds / 3600}

    for name in PRESETS:
        data = next((split for split in TRAINING_CLIPS if name.endswith(split)), None)
        if data is not None:
            run = partial(measure, preset(name), TRAINING_CLIPS[data])
            book.attempt(run, needs=3, preset=name, data=data)
