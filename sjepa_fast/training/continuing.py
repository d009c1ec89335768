# SPDX-License-Identifier: Apache-2.0
"""Starts a run from the weights of a model (`continue_from`), and writes down which it was."""

from __future__ import annotations

import dataclasses

from sjepa_fast.config.continued import Origin, check_fixed
from sjepa_fast.config.files import leaves, to_dict
from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.embedding.content import Content, fitting_encoder
from sjepa_fast.embedding.loading import open_content
from sjepa_fast.errors import InputError
from sjepa_fast.objectives.objective import Objective
from sjepa_fast.run_folder import describe_origin
from sjepa_fast.runtime.checkpoint import list_checkpoints
from sjepa_fast.runtime.dist import World
from sjepa_fast.runtime.manifest import entry_of
from sjepa_fast.skeletons import SkeletonLayout


def _open(source: str) -> Content:
    try:
        return open_content(source)
    except InputError as error:
        raise InputError("continue_from", error.value, error.fix) from error


def _origin(content: Content) -> Origin:
    return Origin(content.origin, content.config, str(content.trained_on.get("store")))


def origin_of(source: str) -> Origin:
    """Open a run, a saved model, one on the Hub or tiny, for the configuration of a run.

    Raises InputError if there is none, or it is damaged.
    """
    return _origin(_open(source))


def open_start(config: TrainConfig, layout: SkeletonLayout) -> Content | None:
    """Open the model that a run begins with, its positions mapped to the joints of the store.

    Returns None where there is none, or the run has begun. Raises InputError if it does not fit the
    configuration, or a joint has no counterpart.
    """
    if not config.continue_from or list_checkpoints(config.run):
        return None
    content = _open(config.continue_from)
    check_fixed(_origin(content), leaves(to_dict(config)))
    # With the sizes of this run, which are compared with those of the weights.
    content = dataclasses.replace(content, config=config)
    encoder = fitting_encoder(content, layout)
    return dataclasses.replace(content, weights=dict(encoder.state_dict()), layout=layout)


def start_from(content: Content, model: Objective, config: TrainConfig, world: World) -> None:
    """Load what `open_start` returned into view and target encoder; note it in the run's folder."""
    for encoder in (model.view_encoder, model.target_encoder):
        if encoder is not None:
            encoder.load_state_dict(content.weights)
    if world.leads:
        record = {
            "model": content.origin,
            "encoder": content.encoder,
            "step": content.step,
            "sha256": entry_of(content.path).sha256,
            "trained_on": content.trained_on,
        }
        describe_origin(config, record)
