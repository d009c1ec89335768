# SPDX-License-Identifier: Apache-2.0
"""One process, or several under torchrun, by the same code."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among all of them."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place; nothing to do for one."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        """Wait for the other processes."""
        if self.size > 1:
            dist.barrier()

    def shares(self, items: Sequence[T]) -> list[Sequence[T]]:
        """Cut items into one run of neighbours for each process; none where there are too few.

        The shares of the first processes are the larger ones.
        """
        ends = [-(-len(items) * rank // self.size) for rank in range(self.size + 1)]
        return [items[first:last] for first, last in pairwise(ends)]

    def gather(self, own: Sequence[T]) -> list[T]:
        """Return the items of all processes, in the order of their ranks, in every process.

        They travel as pickles, so tensors must be on the CPU and items small.
        """
        if self.size == 1:
            return list(own)
        found: list[Sequence[T]] = [()] * self.size
        dist.all_gather_object(found, own)
        return [item for part in found for item in part]

    def map_rows(self, function: Callable[[Tensor], Tensor], chunks: Sequence[Tensor]) -> Tensor:
        """Apply a function to chunks, each in one process, and return all rows in every process.

        Args:
            function: Gives a float32 matrix with a row for each entry of its chunk, on its device.
            chunks: The same in every process, one or more; process 0 gets the first.

        Returns:
            What `function` returned, in the order of the chunks. A chunk is not cut, so the rows
            are those that one process computes, bit for bit.
        """
        shares = self.shares(chunks)
        own = [function(chunk) for chunk in shares[self.rank]]
        if self.size == 1:
            return torch.cat(own)
        device = chunks[0].device
        # A process without a chunk does not know how wide a row is.
        width = torch.tensor(own[0].shape[1] if own else 0, device=device)
        dist.all_reduce(width, dist.ReduceOp.MAX)
        counts = [sum(map(len, share)) for share in shares]
        rows_RD = torch.empty(sum(counts), int(width), device=device)
        for rank, part in enumerate(rows_RD.split(counts)):
            if rank == self.rank and own:
                torch.cat(own, out=part)
            if len(part):
                dist.broadcast(part, rank)
        return rows_RD


ALONE = World()


def environment_world() -> World:
    """Read the launcher's variables (RANK, WORLD_SIZE, LOCAL_RANK); without them, one process."""
    return World(
        rank=int(os.environ.get("RANK", "0")),
        size=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
    )


# What PyTorch's libraries say where the other end of a connection is gone.
_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


def lost_process(error: RuntimeError) -> str | None:
    """Return a line for an error that another process of the group has caused by its end.

    None for all other errors, and with one process. What that process has said is the reason.
    """
    world = environment_world()
    gone = isinstance(error, dist.DistError) or any(words in str(error) for words in _GONE)
    if world.size == 1 or not gone:
        return None
    return f"process {world.rank} ends because another has ended, whose own line says why"


def connect(world: World, device: torch.device, patience: datetime.timedelta | None = None) -> None:
    """Join the process group: NCCL on GPUs, gloo on CPUs; nothing to do for one process.

    `patience` is how long processes wait for each other; PyTorch's minutes, if not given.
    """
    if world.size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=patience)


def disconnect(world: World) -> None:
    """Leave the process group."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()
