# SPDX-License-Identifier: Apache-2.0
"""MAMP: regress, at the masked tokens, the normalised motion of the clip (method 5.1)."""

from __future__ import annotations

from torch import Tensor

from sjepa_fast.objectives.coordinates import CoordinateObjective
from sjepa_kernels.tubelets import forward_difference, to_frames, to_tubelets


class MAMP(CoordinateObjective):
    """Predicts the forward difference of the frames that the view encoder sees."""

    def numbers(self, view_BNP: Tensor) -> Tensor:
        """Tubelets of the motion, 0 at the last frame."""
        return motion(view_BNP, self.joints)


def motion(tubelets_BNP: Tensor, joints: int) -> Tensor:
    """Tubelets of the forward difference of frames, 0 at the last frame (method 5.1)."""
    change = forward_difference(to_frames(tubelets_BNP, joints))
    return to_tubelets(change, tubelets_BNP.shape[2] // 3)
