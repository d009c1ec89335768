# SPDX-License-Identifier: Apache-2.0
"""Choice of a training run's compute precision: on a CPU with bfloat16, by a trial of one block.

Shapes: B sequences, N tokens, D width.
"""

from __future__ import annotations

import functools
import time
from typing import NamedTuple

import torch

from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.models.residual import Residual
from sjepa_fast.models.transformer import Block
from sjepa_fast.runtime.checkpoint import list_checkpoints
from sjepa_fast.runtime.device import autocast, settled_dtype
from sjepa_fast.runtime.dist import World
from sjepa_fast.runtime.logging import recorded_dtype
from sjepa_fast.training.flops import block_flops, sequences_per_step

CPU = torch.device("cpu")
# Below this lead of bfloat16 noise could decide, and float32 is the more exact of the two.
MARGIN = 1.05
# FLOPs of a trial's forward and backward, as many sequences as they allow; how often; seconds after
# which no other round begins.
FLOPS, ROUNDS, BUDGET_S = 3e9, 5, 0.4


class Trial(NamedTuple):
    """Seconds of one thread for forward and backward of a block, the best of several."""

    float32: float
    bfloat16: float


def pick_dtype(
    config: TrainConfig, joints: int, device: torch.device, world: World
) -> tuple[torch.dtype, str]:
    """Return the compute precision of a run and why, the same in all its processes.

    Asked for; else what the device alone settles; else, on a CPU with bfloat16, what a resumed run
    began with; else the faster of the two in process 0's trial, where bfloat16 has to win by
    `MARGIN` (our choice).
    """
    settled = settled_dtype(config.runtime.dtype, device)
    if settled is not None:
        return settled
    # By every process, so that a damaged file stops them all.
    begun = recorded_dtype(config.run) if list_checkpoints(config.run) else None
    if begun is not None:
        # Timings change from day to day; a run that is resumed must go on bit for bit.
        return begun, "as the run began"
    dtype, reason = torch.float32, "as process 0 decided"
    if world.leads:
        dtype, reason = _decide(config, joints, world)
    chosen = torch.tensor(float(world.leads and dtype == torch.bfloat16), device=device)
    return (torch.bfloat16 if world.sum_(chosen).item() else torch.float32), reason


def _decide(config: TrainConfig, joints: int, world: World) -> tuple[torch.dtype, str]:
    tokens = config.data.frames // config.model.segment_length * joints
    width = config.model.width
    affordable = int(FLOPS / (3 * block_flops(tokens, width)))
    sequences = max(1, min(sequences_per_step(config) // world.size, affordable))
    trial = try_block(width, config.model.heads, tokens, sequences)
    lead = trial.float32 / trial.bfloat16
    reason = (
        f"bfloat16 is {lead:.2f}x float32 on this CPU: {1000 * trial.bfloat16:.1f} and "
        f"{1000 * trial.float32:.1f} ms for a block on one thread"
    )
    return (torch.bfloat16 if lead >= MARGIN else torch.float32), reason


@functools.cache  # so that all runs of one process decide alike
def try_block(width: int, heads: int, tokens: int, sequences: int) -> Trial:
    """Time forward and backward of a block on (B, N, D), both precisions in turn.

    One thread's time on the processor is taken: beside other processes, the time on the clock tells
    how long threads waited for each other. It draws nothing from the caller's random numbers.
    """
    with torch.random.fork_rng(devices=[]):
        block = Block(width, heads)
        x_BND = torch.randn(sequences, tokens, width, requires_grad=True)
    seconds = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for dtype in seconds:
            _once(block, x_BND, dtype)
        end = time.thread_time() + BUDGET_S
        for number in range(ROUNDS):
            for dtype in seconds:
                seconds[dtype] = min(seconds[dtype], _once(block, x_BND, dtype))
            if number and time.thread_time() > end:
                break
    finally:
        torch.set_num_threads(threads)
    return Trial(*seconds.values())


def _once(block: Block, x_BND: torch.Tensor, dtype: torch.dtype) -> float:
    start = time.thread_time()
    with autocast(CPU, dtype):
        out_BND = block(Residual(x_BND)).settled()
    out_BND.backward(torch.ones_like(out_BND))
    return time.thread_time() - start
