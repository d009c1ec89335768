"""The plain S-JEPA training steps that every speed claim of the step is measured against.

Four rungs of one correct and complete S-JEPA, each written as well as its idea allows:

A  from the equations (method sections 2 and 3) in the way the method's family of code works: fp32,
   materialised attention, two full argsorts, repeat + concatenate + gather with an int64 index as
   wide as the features, the predictor's output and the loss at all N tokens and then a product
   with the mask, AdamW and the EMA as loops over tensors, a host sync in every step, and clips
   from the per-clip loop of `feeder.py`;
B  A under bfloat16 autocast (weights, loss and optimiser stay fp32);
C  B with PyTorch's fused attention, fused AdamW, `_foreach_lerp_`, and no host sync;
D  C with networks and loss under one `torch.compile(fullgraph=True)`.

TF32 is as PyTorch's defaults have it: off for products of matrices. Left out although the family's
code has them, so as not to weaken the rungs: a gradient scaler, per-tensor gradient norms, an
all-reduce of the logged loss.

Shapes: B clips, M bodies, T frames, V joints, C coordinates, S segments, N = S*V tokens, K kept
tokens, D width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.reference.networks import ReferenceEncoder, ReferencePredictor
from benchmarks.reference.sampling import (
    keys_of_given_ids,
    mask_from_keys,
    motion_aware_keys,
    random_view,
)


@dataclass(frozen=True)
class Rung:
    """What a rung has beyond the plain step."""

    amp: bool = False
    """Networks run under bfloat16 autocast."""
    fused: bool = False
    """Fused attention and AdamW, one multi-tensor EMA, no host sync."""
    compiled: bool = False
    """One compiled graph from clips to loss."""


RUNGS = {
    "A": Rung(),
    "B": Rung(amp=True),
    "C": Rung(amp=True, fused=True),
    "D": Rung(amp=True, fused=True, compiled=True),
}


class ReferenceStep(nn.Module):
    """View encoder, predictor, target encoder, center and optimiser behind one `step`.

    State dict names: `view_encoder.*`, `target_encoder.*`, `predictor.*` and `center`, the names of
    `sjepa_fast.objectives.sjepa.SJEPA`; positions, mask token and the tubelet kernel differ in
    shape alone (`load_weights` reshapes them).

    Args:
        batch_clips: B, clips per step.
        bodies: M, bodies per clip; each is a sequence of its own.
        frames: T; a multiple of `length`.
        joints: V.
        width: D.
        depth: Blocks of the two encoders.
        predictor_depth: Blocks of the predictor.
        heads: Attention heads.
        seed: Of the initialisation and of all draws.
        length: l, frames per segment.
        mask_ratio: Share of tokens that are hidden.
        device: Where the step runs.
        rung: One of `RUNGS`.
    """

    center: Tensor

    temp_student, temp_target, center_momentum = 0.1, 0.06, 0.9
    mask_tau = 0.8
    view_angle, view_shift, view_flip = 0.3, 0.1, 0.5

    def __init__(
        self,
        batch_clips: int = 2,
        bodies: int = 2,
        frames: int = 120,
        joints: int = 25,
        width: int = 256,
        depth: int = 8,
        predictor_depth: int = 5,
        heads: int = 8,
        seed: int = 0,
        *,
        length: int = 4,
        mask_ratio: float = 0.9,
        device: torch.device | str = "cpu",
        rung: str = "A",
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.rung = RUNGS[rung]
        fused = self.rung.fused
        self.shape = (batch_clips, bodies, frames, joints, 3)
        self.length = length
        segments = frames // length
        self.tokens = segments * joints
        self.kept = self.tokens - int(self.tokens * mask_ratio)
        self.view_encoder = ReferenceEncoder(
            segments, joints, 3, length, width, depth, heads, fused
        )
        self.predictor = ReferencePredictor(segments, joints, width, predictor_depth, heads, fused)
        self.target_encoder = copy.deepcopy(self.view_encoder).requires_grad_(False)
        self.register_buffer("center", torch.zeros(width))
        self.to(device)
        trained = [weight for weight in self.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [w for w in trained if w.ndim > 1], "weight_decay": 0.05},
                {"params": [w for w in trained if w.ndim == 1], "weight_decay": 0.0},
            ],
            lr=0.0,
            betas=(0.9, 0.95),
            foreach=False,
            fused=fused,
        )
        self.loss_of = self.loss
        if self.rung.compiled:
            self.loss_of = torch.compile(self.loss, fullgraph=True, dynamic=False)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy the state dict of an S-JEPA of the same size; every name must be there."""
        with torch.no_grad():
            for name, mine in self.state_dict().items():
                given = weights[name]
                if name.endswith("embed.proj.weight") and given.ndim == 2:
                    # A Linear reads a tubelet as (frame, coord), the convolution as (coord, frame).
                    given = given.view(len(given), self.length, 3).transpose(1, 2)
                mine.copy_(given.reshape(mine.shape))

    def loss(self, view_BTVC: Tensor, clip_BTVC: Tensor, keys_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and the batch mean of the targets at the hidden tokens (method 3.2).

        L = -mean over hidden tokens of sum_d softmax((R_t - c) / 0.06) log softmax(R_p / 0.1).
        """
        ids_keep, ids_restore, mask_BN = mask_from_keys(keys_BN, self.kept)
        visible = self.view_encoder(view_BTVC, ids_keep)
        prediction_BND = self.predictor(visible, ids_restore)
        with torch.no_grad():
            target_BND = self.target_encoder(clip_BTVC)
        # Autocast leaves features in bfloat16; the loss is fp32 in every rung.
        target_BND, prediction_BND = self._full(target_BND), self._full(prediction_BND)
        target_softmax = torch.softmax((target_BND - self.center) / self.temp_target, dim=-1)
        log_softmax = torch.log_softmax(prediction_BND / self.temp_student, dim=-1)
        loss_BN = -(target_softmax * log_softmax).sum(dim=-1)
        loss = (loss_BN * mask_BN).sum() / mask_BN.sum()
        center = (target_BND * mask_BN.unsqueeze(-1)).sum(dim=(0, 1)) / mask_BN.sum()
        return loss, center

    @staticmethod
    def _full(x: Tensor) -> Tensor:
        return x.float() if x.dtype == torch.bfloat16 else x

    def step(
        self,
        x_BMTVC: Tensor,
        lr: float,
        momentum: float,
        *,
        view_BMTVC: Tensor | None = None,
        ids_keep: Tensor | None = None,
    ) -> Tensor:
        """One training step: view, mask, three forwards, backward, AdamW, EMA, center.

        Args:
            x_BMTVC: Cropped clips in metres, on the step's device.
            lr: Learning rate of this step.
            momentum: EMA momentum of this step.
            view_BMTVC: The students' view, or None to draw one (25-joint layout).
            ids_keep: Visible token ids (B*M, K), or None to draw them from the clips' motion.

        Returns:
            The loss before the update, 0-dim.

        Raises:
            ValueError: If the clips or the ids do not have the shape the step was built for.
            FloatingPointError: In the rungs that look at every loss, A and B, if it is not finite.
        """
        if tuple(x_BMTVC.shape) != self.shape:
            raise ValueError(f"x_BMTVC: shape {tuple(x_BMTVC.shape)}; give {self.shape}")
        clip_BTVC = x_BMTVC.flatten(0, 1)
        if ids_keep is None:
            keys_BN = motion_aware_keys(clip_BTVC, self.length, self.mask_tau)
        elif tuple(ids_keep.shape) == (len(clip_BTVC), self.kept):
            keys_BN = keys_of_given_ids(ids_keep, self.tokens)
        else:
            expected = (len(clip_BTVC), self.kept)
            raise ValueError(f"ids_keep: shape {tuple(ids_keep.shape)}; give {expected}")
        if view_BMTVC is None:
            view_BMTVC = random_view(x_BMTVC, self.view_angle, self.view_shift, self.view_flip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr

        self.optimizer.zero_grad()
        device = x_BMTVC.device.type
        with torch.autocast(device, dtype=torch.bfloat16) if self.rung.amp else nullcontext():
            loss, center = self.loss_of(view_BMTVC.flatten(0, 1), clip_BTVC, keys_BN)
        if not self.rung.fused and not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()}")
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            targets = list(self.target_encoder.parameters())
            sources = list(self.view_encoder.parameters())
            if self.rung.fused:
                torch._foreach_lerp_(targets, sources, 1 - momentum)
            else:
                for target, source in zip(targets, sources, strict=True):
                    target.mul_(momentum).add_(source, alpha=1 - momentum)
            self.center.mul_(self.center_momentum).add_(center, alpha=1 - self.center_momentum)
        if x_BMTVC.is_cuda and not self.rung.fused:
            torch.cuda.synchronize()
        return loss.detach()
