"""Which samples each step trains on: a pure function of the seed and the step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def epoch_order(ids: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return the training ids in the order of one epoch; a pure function of (seed, epoch)."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return ids[generator.permutation(len(ids))]


class BatchOrder:
    """The batches of the process `rank` of `size`; the last, smaller part of an epoch is dropped.

    `batch_size` counts the samples of all processes, which share a batch evenly.
    """

    def __init__(self, part: np.ndarray, seed: int, batch_size: int, rank: int, size: int) -> None:
        self.part, self.seed = part, seed
        self.batch_size, self.share, self.rank = batch_size, batch_size // size, rank
        self._epoch = -1
        self._ids: NDArray[np.int64] = part

    def epoch_ids(self, epoch: int) -> NDArray[np.int64]:
        """Return all ids in the order of an epoch; the latest is kept."""
        if epoch != self._epoch:
            self._epoch, self._ids = epoch, epoch_order(self.part, self.seed, epoch)
        return self._ids

    def place(self, step: int) -> tuple[int, slice]:
        """Return the epoch of a step, and this process's share in the epoch's order."""
        epoch, batch = divmod(step, len(self.part) // self.batch_size)
        first = batch * self.batch_size + self.rank * self.share
        return epoch, slice(first, first + self.share)

    def ids(self, step: int) -> NDArray[np.int64]:
        """Return this process's ids of a step, (B,)."""
        epoch, place = self.place(step)
        return self.epoch_ids(epoch)[place]

    def most(self, count_N: NDArray[np.int64], steps: int) -> int:
        """Return the largest sum of `count_N` over the ids of one step, of any process.

        All epochs that the first `steps` steps touch are searched, so a run finds the same number
        wherever it is resumed.
        """
        per_epoch = len(self.part) // self.batch_size
        used = per_epoch * self.batch_size
        return max(
            int(count_N[ids[:used]].reshape(-1, self.share).sum(axis=1).max())
            for ids in map(self.epoch_ids, range(-(-steps // per_epoch)))
        )
