# SPDX-License-Identifier: Apache-2.0
"""Clips of a store as they are, all frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from sjepa_fast.data.store import MANIFEST, Store, open_store
from sjepa_fast.errors import InputError
from sjepa_fast.pictures.scene import ClipsRequest, called, check_rate, clip_ids, open_scene
from sjepa_fast.viz.clips import Track, clip_movie, clip_strips
from sjepa_fast.viz.figure import Movie
from sjepa_fast.viz.pose import turned


@dataclass(frozen=True)
class ClipPictureRequest(ClipsRequest):
    """Skeletons of clips over time, as the store holds them; of a run, or of a store itself."""


def _opened(request: ClipsRequest) -> Store:
    if not (request.run / MANIFEST).exists():
        return open_scene(request).store
    if request.data.root is not None:
        raise InputError("data.root", request.data.root, f"leave it out, {request.run} is a store")
    if request.out is None:
        raise InputError("out", "not given", "name a file; none is written into a store")
    return open_store(request.run, verify=False)


def draw_clip(request: ClipPictureRequest, moving: bool) -> Figure | Movie:
    """Draw the named clips, or the first one of the store."""
    check_rate(request.rate)
    store = _opened(request)
    tracks = []
    for index in clip_ids(store, request.clip) or [0]:
        clip = np.asarray(store.clip(index), dtype=np.float32)
        tracks.append(Track(f"{called(store, index)}, {clip.shape[1]} frames", clip))
    tracks = [Track(track.title, turned(track.clip_MTVC, request.turn)) for track in tracks]
    title = f"Clips of {store.name}" if len(tracks) > 1 else f"A clip of {store.name}"
    if moving:
        return clip_movie(tracks, store.layout, title, rate=request.rate)
    return clip_strips(tracks, store.layout, title)
