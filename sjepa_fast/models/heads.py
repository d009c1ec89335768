"""The classifier that fine-tuning trains: the encoder and the papers' action head.

Shapes: B clips, M bodies, S segments, V joints, N = S*V tokens, P numbers per token, D
width.
"""

from __future__ import annotations

from torch import Tensor, nn

from sjepa_fast.models.encoder import SkeletonTransformer
from sjepa_fast.models.transformer import init_weights


class ActionHead(nn.Module):
    """Two-layer classifier over joint-wise features (method 6.2).

    Dropout on tokens, mean over time, joints side by side, mean over persons, Linear, BatchNorm,
    ReLU, Linear. Xavier initialisation is our choice. With D 256, V 25, hidden width 2,048 and 60
    classes it has 13,236,284 parameters.
    """

    def __init__(
        self, width: int, joints: int, classes: int, hidden: int = 2048, dropout: float = 0.3
    ) -> None:
        super().__init__()
        self.joints = joints
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(joints * width, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.fc2 = nn.Linear(hidden, classes)
        init_weights(self)

    def forward(self, tokens_BMND: Tensor) -> Tensor:
        """Return the scores (B, classes)."""
        x = self.dropout(tokens_BMND)
        batch, bodies, tokens, width = x.shape
        x = x.view(batch, bodies, tokens // self.joints, self.joints * width)
        out: Tensor = self.fc2(self.norm(self.fc1(x.mean(dim=(1, 2)))).relu())
        return out


class ActionClassifier(nn.Module):
    """An encoder with its final norm, which is trained too, and the action head."""

    def __init__(
        self, encoder: SkeletonTransformer, joints: int, classes: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.norm.normalized_shape[0]
        self.head = ActionHead(width, joints, classes, hidden, dropout)

    def forward(self, tubelets_BNP: Tensor, bodies: int) -> Tensor:
        """Return the scores (B, classes) of tubelets whose rows are clips x bodies."""
        tokens = self.encoder(tubelets_BNP)
        return self.head(tokens.view(-1, bodies, *tokens.shape[1:]))  # type: ignore[no-any-return]
