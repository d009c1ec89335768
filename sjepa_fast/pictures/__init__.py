# SPDX-License-Identifier: Apache-2.0
"""What goes into the pictures of `sjepa_fast.plot`, one file each, and the table of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from sjepa_fast.pictures.attention import AttentionRequest, draw_attention
from sjepa_fast.pictures.clip import ClipPictureRequest, draw_clip
from sjepa_fast.pictures.confusion import ConfusionRequest, draw_confusion
from sjepa_fast.pictures.curves import CurvesRequest, draw_curves
from sjepa_fast.pictures.mask import MaskRequest, draw_mask
from sjepa_fast.pictures.prediction import PredictionRequest, draw_prediction
from sjepa_fast.pictures.projection import ProjectionRequest, draw_projection
from sjepa_fast.pictures.retrieval import RetrievalPictureRequest, draw_retrieval
from sjepa_fast.viz.figure import Movie


@dataclass(frozen=True)
class Kind:
    """A kind of picture: its request, which the command line fills, and what draws it."""

    request: type[Any]
    draw: Callable[[Any, bool], Figure | Movie]
    """Takes the request, and whether it shall move."""
    moves: bool = True
    """Whether there is a moving one."""


KINDS: dict[str, Kind] = {
    "clip": Kind(ClipPictureRequest, draw_clip),
    "mask": Kind(MaskRequest, draw_mask),
    "prediction": Kind(PredictionRequest, draw_prediction),
    "attention": Kind(AttentionRequest, draw_attention),
    "retrieval": Kind(RetrievalPictureRequest, draw_retrieval),
    "curves": Kind(CurvesRequest, draw_curves, moves=False),
    "projection": Kind(ProjectionRequest, draw_projection, moves=False),
    "confusion": Kind(ConfusionRequest, draw_confusion, moves=False),
}
