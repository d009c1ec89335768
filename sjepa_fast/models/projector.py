# SPDX-License-Identifier: Apache-2.0
"""The projector: what a regularizer sees of the features of a batch's clips.

Shapes: D width, H hidden width, P numbers of the result.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from sjepa_fast.models.transformer import init_weights


class Projector(nn.Module):
    """Linear, GELU, batch norm, Linear without bias; not used downstream.

    The papers of the regularizers have a batch norm, too. Two layers, their sizes, and a norm by
    the batch alone are our choice. It stands behind the GELU: in front of it, it would take the
    bias of the encoder's last norm away, whose gradient would then be rounding errors.
    """

    def __init__(self, width: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, outputs, bias=False)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Project (..., D) to (..., P), in float32 also under autocast: these are few rows.

        The norm is over all rows.
        """
        with torch.autocast(x.device.type, enabled=False):
            hidden_HR = gelu(self.fc1(x.float())).flatten(0, -2).T
            normal_RH = layer_norm(hidden_HR, hidden_HR.shape[1:]).T
            out: Tensor = self.fc2(normal_RH)
        return out.view(*x.shape[:-1], -1)
