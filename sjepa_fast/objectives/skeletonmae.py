# SPDX-License-Identifier: Apache-2.0
"""SkeletonMAE on a plain transformer: regress the masked tokens' normalised coordinates.

Method 5.2: the row "SkeletonMAE (Transformer)" of the papers' tables, which is neither of the two
papers of that name (method 5.3).
"""

from __future__ import annotations

from torch import Tensor

from sjepa_fast.objectives.coordinates import CoordinateObjective


class SkeletonMAE(CoordinateObjective):
    """Predicts the coordinates that the view encoder sees."""

    def numbers(self, view_BNP: Tensor) -> Tensor:
        """The tubelets as they are."""
        return view_BNP
