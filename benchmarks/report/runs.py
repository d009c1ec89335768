"""Our step in the report beyond its time: its passes, its growth, long runs, the papers' hours."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks import steps
from benchmarks.report.book import Book, Row, peaks
from benchmarks.report.steps import (
    COMPILED,
    DEFAULT,
    EAGER,
    default_clips,
    fitting_step,
    measured_step,
    paper_config,
    rates,
)
from benchmarks.steps import TWO_PERSONS, clips_of_run, ntu_like_clips, our_flops, our_step
from sjepa_fast.config.presets import PRESETS, preset
from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.data.clips import ResidentClips
from sjepa_fast.skeletons import KINECT15, KINECT20, NTU25
from sjepa_fast.training.flops import step_flops

# Training clips of the papers' splits (method 1.2).
TRAINING_CLIPS = {"ntu60-xsub": 40_091, "ntu60-xview": 37_646, "ntu120-xsub": 63_026}
TRAINING_CLIPS |= {"ntu120-xset": 54_468, "pku1": 18_841, "pku2": 5_332}


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


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
            own = replace(config, runtime=COMPILED if compiled else DEFAULT)
            step = steps.profiled_step(own, clips, device, torch.bfloat16, folder)
            ids = torch.arange(config.optim.batch_size, device=device)
            while not written.exists():
                step(ids)
            # The trace takes megabytes; `--profile` makes one where it is wanted.
            (folder / "trace.json.gz").unlink()
            facts: Row = json.loads(written.read_text())
            return {**facts, "clips": config.optim.batch_size, "flop": flop_by_pass(config, clips)}

        book.attempt(measure, needs=5, row="ours, compiled" if compiled else "ours")


def flop_by_pass(config: TrainConfig, clips: ResidentClips) -> dict[str, int]:
    """What each pass multiplies, under the names of the profile; together it is `our_flops`."""
    distinct = clips_of_run(config, clips).distinct_sequences(config.optim.batch_size)
    flops = step_flops(config, clips.layout.num_joints, target_sequences=distinct)
    return {
        "student": flops.view_encoder,
        "predictor": flops.predictor,
        "projector": flops.projector,
        "teacher": flops.target_encoder,
        "backward": flops.backward,
    }


def bodies(book: Book) -> None:
    """The steps that compute something else: present bodies only, several masks of a clip.

    Not compiled, like all rows of many shapes here: compiling each takes longer than measuring.
    """
    device, batch = torch.device(book.device), default_clips(book)
    config = replace(paper_config(book, batch), runtime=EAGER)
    clips = ntu_like_clips(16 if book.small else 2048, device)
    book.attempt(partial(fitting_step, book, config, clips), needs=3, row="both bodies")
    present = round(batch * (1 + TWO_PERSONS))
    skipping = replace(config, data={"skip_empty_bodies": True}, optim={"batch_size": present})

    def skip() -> Row:
        figures = fitting_step(book, skipping, single_bodies(len(clips.frames_N), device))
        # In clips that have this many present bodies, to compare with the other row.
        shown = batch * figures["clips"] / present
        return {**figures, "clips": shown, "clips/s": 1000 * shown / figures["ms"]}

    book.attempt(skip, needs=3, row=f"present bodies only ({present})")
    # data2vec 2's way: the target encoder's one pass serves several masks; the last row predicts
    # a quarter of the masked tokens only.
    for masks, share in ((2, 1.0), (4, 1.0), (4, 0.25)):
        several = replace(config, mask={"num_masked_views": masks, "predict_ratio": share})

        def many(several: TrainConfig = several, masks: int = masks) -> Row:
            figures = fitting_step(book, several, clips)
            return {**figures, "masks/s": masks * figures["clips/s"]}

        named = f"{masks} masks of a clip{'' if share == 1 else f', {share:.0%} of targets'}"
        book.attempt(many, needs=3, row=named)


def single_bodies(count: int, device: torch.device) -> ResidentClips:
    """Every body of so many clips as a clip of its own; told apart on the host."""
    clips = ntu_like_clips(count, torch.device("cpu"))
    single, _ = clips.split_bodies(torch.arange(count).numpy())
    values = {field.name: getattr(single, field.name) for field in dataclasses.fields(single)}
    moved = {name: x.to(device) for name, x in values.items() if isinstance(x, torch.Tensor)}
    return dataclasses.replace(single, **moved)


def growth(book: Book) -> None:
    """Cost against the number of clips, the frames of a clip, and the joints of a body; eager."""
    device = torch.device(book.device)
    sizes = (2, 4, 8) if book.small else (64, 128, 256, 512, 1024)
    clips = ntu_like_clips(sizes[-1], device)
    quick = {"rounds": 5, "most": 4.0}

    def measure(config: TrainConfig, clips: ResidentClips, what: str, value: int) -> None:
        own = replace(config, runtime=EAGER)
        run: Callable[[], Row] = partial(measured_step, book, own, clips, **quick)  # type: ignore[arg-type]
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
        _, step = our_step(config, clips, device, torch.bfloat16)
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

    book.attempt(measure, needs=4, row="ours")


def projections(book: Book) -> None:
    """Hours that each paper preset would take, from its own step's time at the default batch."""
    device, batch = torch.device(book.device), default_clips(book)
    clips = ntu_like_clips(16 if book.small else 1024, device)
    known: dict[Any, Row] = {}

    def measure(base: TrainConfig, training_clips: int) -> Row:
        config = replace(paper_config(book, batch, base), runtime=EAGER)
        key = (config.data.frames, config.model, config.mask, config.objective, config.view)
        if key not in known:
            figures = fitting_step(book, config, clips, rounds=5, most=4)
            # With its peaks, for the presets that share it.
            known[key] = {**peaks(book.device), **figures}
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
