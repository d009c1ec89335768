# SPDX-License-Identifier: Apache-2.0
"""Which samples each step trains on: a pure function of the seed and the step.

Shapes: P samples of the training part, S sets of a pool.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def epoch_order(ids: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return the training ids in the order of one epoch; a pure function of (seed, epoch)."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return ids[generator.permutation(len(ids))]


def quotas(sizes_S: NDArray[np.int64], power: float) -> NDArray[np.int64]:
    """Share an epoch of all P samples out to sets of n samples each, in proportion to n^power.

    Whole parts first, then one each to the largest fractions (the set named first, where they are
    equal). Returns P in sum, (S,).
    """
    total = int(sizes_S.sum())
    weights_S = sizes_S.astype(np.float64) ** power
    exact_S = total * weights_S / weights_S.sum()
    found_S: NDArray[np.int64] = np.floor(exact_S).astype(np.int64)
    largest = np.argsort(found_S - exact_S, kind="stable")
    found_S[largest[: total - int(found_S.sum())]] += 1
    return found_S


def pooled_order(
    ids: np.ndarray, sets_P: NDArray[np.int64], power: float, seed: int, epoch: int
) -> np.ndarray:
    """Return the samples of one epoch of a pool, as many as there are ids, in random order.

    A set has its quota of them: a random part of its samples, or all of them again and again in one
    order, so that a sample comes back only after all others of its set. A pure function of its
    arguments.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    kinds, sizes = np.unique(sets_P, return_counts=True)
    quota_S = quotas(sizes, power)
    drawn = [
        np.resize(generator.permutation(ids[sets_P == kind]), quota)
        for kind, quota in zip(kinds, quota_S, strict=True)
    ]
    turn = generator.permutation(np.repeat(np.arange(len(kinds)), quota_S))
    order = np.empty_like(ids)
    order[np.argsort(turn, kind="stable")] = np.concatenate(drawn)
    return order


@dataclass(frozen=True)
class Mixture:
    """The set of each sample of a training part, (P,), and by which power of its size it counts."""

    sets_P: NDArray[np.int64]
    power: float

    @property
    def repeats(self) -> bool:
        """Whether a sample may come twice in an epoch, and so in a batch."""
        sizes = np.unique(self.sets_P, return_counts=True)[1]
        return bool((quotas(sizes, self.power) > sizes).any())


class BatchOrder:
    """The batches of the process `rank` of `size`; the last, smaller part of an epoch is dropped.

    `batch_size` counts the samples of all processes, which share a batch evenly. Without a
    `mixture` an epoch has every sample once.
    """

    def __init__(
        self,
        part: np.ndarray,
        seed: int,
        batch_size: int,
        rank: int,
        size: int,
        mixture: Mixture | None = None,
    ) -> None:
        self.part, self.seed, self.mixture = part, seed, mixture
        self.batch_size, self.share, self.rank = batch_size, batch_size // size, rank
        self._epoch = -1
        self._ids: NDArray[np.int64] = part

    def epoch_ids(self, epoch: int) -> NDArray[np.int64]:
        """Return all ids in the order of an epoch; the latest is kept."""
        if epoch != self._epoch:
            self._epoch, self._ids = epoch, self._order(epoch)
        return self._ids

    def _order(self, epoch: int) -> NDArray[np.int64]:
        mixture = self.mixture
        if mixture is None:
            return epoch_order(self.part, self.seed, epoch)
        return pooled_order(self.part, mixture.sets_P, mixture.power, self.seed, epoch)

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
