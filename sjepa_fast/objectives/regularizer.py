# SPDX-License-Identifier: Apache-2.0
"""What keeps the features of a batch's clips apart, as a part of a loss.

Shapes: R views (or masks) of each clip, C clips of this process and N of all, M bodies, K visible
tokens, D width, P numbers of the projector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sjepa_fast.config.schema import ObjectiveConfig
from sjepa_fast.runtime.dist import World
from sjepa_kernels import sigreg, vicreg, visreg


@dataclass(frozen=True)
class Samples:
    """What a regularizer needs of a batch beside the view encoder's features."""

    shares_CM: Tensor
    """Weight of each body in its clip's mean: equal ones of those present, 0 for absent ones."""
    seed: Tensor
    step: Tensor
    """0-dim int64, both: what the directions of this step are drawn from."""
    world: World
    """The processes whose clips are compared."""

    @staticmethod
    def of(present_CM: Tensor, seed: Tensor, step: Tensor, world: World) -> Samples:
        """Weigh the present bodies (1, absent ones 0) of each clip."""
        present = present_CM.float()
        return Samples(present / present.sum(1, keepdim=True).clamp_min(1), seed, step, world)

    def features(self, visible_RCMKD: Tensor) -> Tensor:
        """Mean over the visible tokens and the present bodies of each clip, (R, N, D) float32."""
        mean_RCMD = visible_RCMKD.mean(3, dtype=torch.float32)
        return _of_all_processes((mean_RCMD * self.shares_CM[:, :, None]).sum(2), self.world)


def regularize(z_RNP: Tensor, samples: Samples, objective: ObjectiveConfig) -> Tensor:
    """Return the configured regularizer, the mean of those of each view, 0-dim.

    sigreg with the number of clips as its factor N; visreg with equal weights of its three terms;
    vicreg with 25 of the variance and 1 of the covariance.
    """
    if objective.regularizer == "vicreg":
        return vicreg(z_RNP).loss
    keys, count = (samples.seed, samples.step), objective.directions
    if objective.regularizer == "visreg":
        return visreg(z_RNP, keys[0], step=keys[1], directions=count).loss
    return sigreg(z_RNP, keys[0], step=keys[1], directions=count)


def _of_all_processes(own_RCD: Tensor, world: World) -> Tensor:
    """Put the features of all processes side by side, (R, N, D); this one's alone have a gradient.

    What follows has few rows, so that every process computes it whole, and all what one process
    would. The gradient is multiplied by the number of processes, over which
    DistributedDataParallel takes the mean.
    """
    if world.size == 1:
        return own_RCD
    known = own_RCD.detach()
    clips = known.shape[1]
    first = world.rank * clips
    all_RND = known.new_zeros(len(known), world.size * clips, known.shape[2])
    all_RND[:, first : first + clips] = known
    world.sum_(all_RND)
    # The same values: what is added is zero.
    own = known + world.size * (own_RCD - known)
    return torch.cat([all_RND[:, :first], own, all_RND[:, first + clips :]], dim=1)
