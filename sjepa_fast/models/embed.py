# SPDX-License-Identifier: Apache-2.0
"""Tubelet embedding: a clip cut into (segment x joint) tokens, plus factored positions.

Shapes: B sequences, T frames, V joints, C coordinates, S segments, N = S*V tokens (index
segment*V + joint), l frames per segment, P = l*C numbers per token, K kept tokens,
D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sjepa_fast.models.residual import Residual, fuses
from sjepa_fast.models.transformer import learned_table
from sjepa_kernels import add_positions
from sjepa_kernels.tubelets import split_streams


class OtherStreams(nn.Module):
    """Input layer of the bones and the motion that stand beside the joints in a token.

    W ((x - mean) / deviation) + b with fixed statistics of training clips: a joint moves by a
    hundredth of its distance from the root in a frame, and a layer would not see it.
    """

    def __init__(self, tokens_RP: Tensor, width: int) -> None:
        super().__init__()
        deviation, mean = torch.std_mean(tokens_RP, dim=0, correction=0)
        self.register_buffer("mean", mean)
        # What never changes says nothing, and is not magnified.
        self.register_buffer("factor", torch.where(deviation > 1e-6, 1 / deviation, 0.0))
        self.proj = nn.Linear(tokens_RP.shape[1], width)

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to the embedding of the joints."""
        mean, factor = self.get_buffer("mean"), self.get_buffer("factor")
        out: Tensor = self.proj((x - mean) * factor)
        return out


class TubeletEmbed(nn.Module):
    """Linear map of a tubelet to D numbers plus temporal and spatial positions.

    embed(x)[n] = W x[n] + b + temporal[n // V] + spatial[n % V] (S-JEPA keeps the two tables
    apart). An optional fixed whitening (x - mean) @ matrix goes first; it is fitted on the training
    data (`data.whiten`, our choice for small sets) and is saved with the weights.
    """

    def __init__(
        self, segments: int, joints: int, token_size: int, width: int, *, whiten: bool
    ) -> None:
        super().__init__()
        self.joints = joints
        self.proj = nn.Linear(token_size, width)
        self.temporal = learned_table(segments, width)
        self.spatial = learned_table(joints, width)
        # Of a classifier whose tokens hold all streams (`join_streams`).
        self.others: OtherStreams | None = None
        self.whiten = whiten
        if whiten:
            self.register_buffer("whiten_mean", torch.zeros(token_size))
            self.register_buffer("whiten_matrix", torch.eye(token_size))

    def forward(self, tubelets_BNP: Tensor, ids_keep_BK: Tensor | None = None) -> Tensor:
        """Embed all tokens, (B, N, D), or only the kept ones, (B, K, D); others cost nothing."""
        return self.pending(tubelets_BNP, ids_keep_BK).settled()

    def pending(self, tubelets_BNP: Tensor, ids_keep_BK: Tensor | None = None) -> Residual:
        """Embed in the same way; on a GPU the first norm may have to add the positions."""
        if ids_keep_BK is None:
            position_ND = (self.temporal[:, None] + self.spatial[None]).flatten(0, 1)
            branch = self._project(tubelets_BNP)
            if fuses(branch) and not position_ND.requires_grad:
                return Residual(position_ND, branch)
            return Residual(branch + position_ND)
        index = ids_keep_BK.long().unsqueeze(-1).expand(-1, -1, tubelets_BNP.shape[-1])
        branch = self._project(tubelets_BNP.gather(1, index))
        return Residual(add_positions(branch, ids_keep_BK, self.temporal, self.spatial))

    def join_streams(self, others_RP: Tensor, *, fresh: bool) -> None:
        """Take tokens of stream all from here on: a second layer for what is not joints.

        Args:
            others_RP: Bones and motion of training clips, as `split_streams` returns them.
            fresh: Whether the layer begins like the first one. It begins at 0 otherwise, so that
                a pre-trained encoder starts as what it was.
        """
        self.others = OtherStreams(others_RP, self.proj.out_features).to(others_RP.device)
        nn.init.zeros_(self.others.proj.bias)
        if fresh:
            nn.init.xavier_uniform_(self.others.proj.weight)
        else:
            nn.init.zeros_(self.others.proj.weight)

    def _project(self, x: Tensor) -> Tensor:
        if self.others is None:
            return self._project_joints(x)
        joints, others = split_streams(x)
        added: Tensor = self.others(others)
        return self._project_joints(joints) + added

    def _project_joints(self, x: Tensor) -> Tensor:
        if self.whiten:
            mean, matrix = self.get_buffer("whiten_mean"), self.get_buffer("whiten_matrix")
            # In float32 even under autocast: the matrix magnifies the small directions, and with
            # them the rounding of the large ones.
            with torch.autocast(x.device.type, enabled=False):
                x = (x.to(mean.dtype) - mean) @ matrix
        out: Tensor = self.proj(x)
        return out
