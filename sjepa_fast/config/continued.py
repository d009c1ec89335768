# SPDX-License-Identifier: Apache-2.0
"""What a run takes over from the model whose weights it starts from (`continue_from`).

Its encoder was made for a size and for clips of a kind, and its weights are trained: the sizes
stay, the clips are made like those that it knows, and the learning rate is lower. All our choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from sjepa_fast.config.rule import Choice
from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.errors import InputError

# What the weights are made for. The whitening is part of them: fitted anew, it would turn the axes
# of the input under the first layer.
FIXED = (
    *("data.frames", "data.stream", "data.whiten", "model.segment_length", "model.width"),
    *("model.depth", "model.heads", "model.layer_scale"),
)
# How the encoder is used to see clips; may be changed by hand.
INPUT = (
    *("data.sampling", "data.center", "data.align_spine", "data.align_yaw"),
    "data.normalize_size",
)
RATES = ("optim.lr", "optim.lr_end")
LOWER = 0.1
TAKEN = (*FIXED, *INPUT, *RATES)


@dataclass(frozen=True)
class Origin:
    """The model that a run continues from."""

    name: str
    config: TrainConfig
    store: str
    """Name of what it was trained on."""
    begun: bool = False
    """Whether it is the run itself, which goes on and has chosen when it began."""


# Opens a model by what `continue_from` says (`training.continuing.origin_of`).
OriginOf = Callable[[str], Origin]


def check_fixed(origin: Origin, given: Mapping[str, Any]) -> None:
    """Raise InputError if a setting, by dotted key, is another than the weights are made for."""
    for key in FIXED:
        theirs = attrgetter(key)(origin.config)
        if key in given and given[key] != theirs:
            value = f"{given[key]}, but {origin.name} was trained with {theirs}"
            raise InputError(key, value, "leave it out, or train without continue_from")


def taken(origin: Origin, base: TrainConfig, given: Mapping[str, Any]) -> tuple[Choice, ...]:
    """Choose the settings in `TAKEN` for a run that continues from a model.

    Args:
        origin: The model.
        base: The recipe; has the learning rates of a fresh run.
        given: Values by dotted key that the user has set; they win.

    Returns:
        One choice for each of `TAKEN`.

    Raises:
        InputError: A given value does not fit the weights.
    """
    check_fixed(origin, given)
    chosen = []
    for key in (*FIXED, *INPUT):
        theirs = attrgetter(key)(origin.config)
        differs = key in given and given[key] != theirs
        reason = f"given; {origin.name} has {theirs}" if differs else ""
        chosen.append(Choice(key, given.get(key, theirs), reason))
    for key in RATES:
        usual = attrgetter(key)(base)
        # Without the digits that a float's product brings.
        lower = float(f"{LOWER * usual:.12g}")
        chosen.append(Choice(key, lower, f"{LOWER:g} of {usual:g}, for the weights are trained"))
        if key in given:
            chosen[-1] = Choice(key, given[key], "given")
        elif origin.begun:
            chosen[-1] = Choice(key, attrgetter(key)(origin.config), "")
    return tuple(chosen)


def describe(origin: Origin, choices: tuple[Choice, ...]) -> list[str]:
    """Say in a few lines what a run takes over, and what it does not; nothing if it has begun."""
    if origin.begun:
        return []
    same = ", ".join(f"{key} {value}" for key, value, reason in choices if not reason)
    lines = [
        f"continues {origin.name} ({origin.config.objective.kind}, trained on {origin.store}): "
        "the encoder's weights; all else starts anew",
        f"  as {origin.name}: {same}",
    ]
    if origin.config.data.whiten:
        lines.append(f"  whitening: the one in the weights of {origin.name}, not fitted anew")
    return [*lines, *(f"  {choice}" for choice in choices if choice.reason)]
