# SPDX-License-Identifier: Apache-2.0
"""Settings chosen from what a store holds, so that one recipe fits any small set; all our choice.

Where the numbers come from is in docs/small-sets.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from sjepa_fast.config import schema
from sjepa_fast.config.validation import LARGEST
from sjepa_fast.errors import InputError

# What is chosen, in this order.
KEYS = (
    *("data.split", "data.bodies", "data.frames", "mask.ratio", "optim.batch_size"),
    *("optim.length", "optim.warmup", "data.whiten", "model.layer_scale"),
)

LEAST_CLIPS = 16
# Frames of a clip as the networks see it, in whole groups of segments.
FRAMES, SEGMENTS = (32, 64), 4
BATCHES = (32, 128)  # sequences in a batch
BATCHES_IN_A_PASS = 15  # at least, where the smallest batch allows it
PASSES = 150
STEPS = (600, 3600)
# No more work than the most steps of this many tokens each: N-UCLA's batch of 64 clips.
TOKENS_IN_A_STEP = 64 * 160
WARMUP_SHARE = 12  # of the length, at most one part in so many
LEAST_VISIBLE, LEAST_MASKED = 24, 0.3
WHITEN, LAYER_SCALE = 0.5, 1e-4


@dataclass(frozen=True)
class StoreFacts:
    """What the rule knows of a store: counts of the training part of a split."""

    store: str
    split: str
    why_split: str
    clips: int
    sequences: int
    """Persons of all clips; a batch is drawn from them."""
    frames: int
    """Median of the clips."""
    joints: int
    persons: int
    """Most of any clip, of all parts."""
    classes: int
    """0 without labels; not used by the rule."""

    def __str__(self) -> str:
        counts = (
            _count(self.clips, "training clip"),
            f"median {_count(self.frames, 'frame')}",
            _count(self.joints, "joint"),
            f"up to {_count(self.persons, 'person')}",
            f"{self.classes} classes" if self.classes else "no labels",
        )
        return f"{self.store} ({', '.join(counts)})"


class Choice(NamedTuple):
    """One setting, and why it has this value."""

    key: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.key} {self.value}: {self.reason}"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'s' if number != 1 else ''}"


def _sane(key: str, given: Mapping[str, Any], otherwise: int) -> int:
    """The given value, in a range to compute with; beyond it is refused by name later."""
    return int(min(max(given.get(key, otherwise), 1), LARGEST[key]))


def _power_of_two(number: float) -> int:
    """The largest power of two up to a number; 1 for less."""
    return 1 << max(0, math.floor(math.log2(max(number, 1))))


def choose(
    facts: StoreFacts, config: schema.TrainConfig, given: Mapping[str, Any]
) -> tuple[Choice, ...]:
    """Choose the settings in `KEYS` for a store.

    Args:
        facts: What the store holds.
        config: The recipe that is fitted; has the segment's length, the share of tokens to mask
            where a clip has enough of them, and the steps of warm-up where there are enough.
        given: Values by dotted key that the user has set. They win, and what depends on them
            follows them.

    Returns:
        One choice for each of `KEYS`, in this order.

    Raises:
        InputError: If there are too few clips to learn from, or they are shorter than a segment.
    """
    segment = _sane("model.segment_length", given, config.model.segment_length)
    if facts.clips < LEAST_CLIPS:
        value = f"{facts.store} has {_count(facts.clips, 'training clip')} in {facts.split}"
        raise InputError("data.root", value, f"presets of small sets need {LEAST_CLIPS} or more")
    if facts.frames < segment:
        value = (
            f"{facts.store} has clips of {facts.frames} frames (median), a segment has {segment}"
        )
        fix = "prepare longer clips, or lower --model.segment-length"
        raise InputError("data.root", value, fix)
    chosen: list[Choice] = []

    def settle(key: str, value: Any, reason: str) -> None:
        if key in given:
            also = "" if given[key] == value else f"; the rule says {value}"
            value, reason = given[key], f"given{also}"
        chosen.append(Choice(key, value, reason))

    settle("data.split", facts.split, facts.why_split)
    alone = "of any clip; each trains as a sequence of its own"
    settle("data.bodies", facts.persons, f"most persons {alone if facts.persons > 1 else 'seen'}")
    settle("data.frames", *_frames(facts, segment))
    tokens = _sane("data.frames", given, chosen[-1].value) // segment * facts.joints
    settle("mask.ratio", *_masked(config.mask.ratio, tokens))
    settle("optim.batch_size", *_batch(facts))
    batch = _sane("optim.batch_size", given, chosen[-1].value)
    steps, why = _steps(facts, batch, batch * tokens)
    warmup = config.optim.warmup
    if given.get("optim.unit") == "epochs":
        steps = max(1, round(steps * batch / facts.sequences))
        warmup = round(warmup * batch / facts.sequences)
    settle("optim.length", steps, why)
    length = _sane("optim.length", given, steps)
    settle("optim.warmup", min(warmup, length // WARMUP_SHARE), "a twelfth of the run at most")
    why = "full strength blows up the noise of coordinates"
    settle("data.whiten", WHITEN, why)
    settle("model.layer_scale", LAYER_SCALE, "the encoder starts close to the coordinates")
    return tuple(chosen)


def _frames(facts: StoreFacts, segment: int) -> tuple[int, str]:
    group = SEGMENTS * segment
    least, most = math.ceil(FRAMES[0] / group) * group, max(FRAMES[1] // group, 1) * group
    near = math.ceil(facts.frames / group - 0.5) * group
    frames = max(least, min(near, most))
    bound = "" if frames == near else ", the least" if frames > near else ", the most"
    return frames, f"median {facts.frames}, in steps of {group}{bound}"


def _masked(usual: float, tokens: int) -> tuple[float, str]:
    room = math.floor((1 - LEAST_VISIBLE / max(tokens, 1)) * 20) / 20
    ratio = min(usual, max(room, LEAST_MASKED))
    return ratio, f"leaves {tokens - int(tokens * ratio)} of {tokens} tokens visible"


def _batch(facts: StoreFacts) -> tuple[int, str]:
    part = _power_of_two(facts.sequences / BATCHES_IN_A_PASS)
    batch = min(max(BATCHES[0], min(part, BATCHES[1])), _power_of_two(facts.sequences))
    reason = f"{_count(facts.sequences, 'sequence')}, {facts.sequences / batch:.0f} batches a pass"
    return batch, reason


def _steps(facts: StoreFacts, batch: int, tokens: int) -> tuple[int, str]:
    wanted = PASSES * facts.sequences / batch
    most = min(STEPS[1], STEPS[1] * TOKENS_IN_A_STEP / max(tokens, 1))
    steps = max(STEPS[0], round(min(wanted, most) / 100) * 100)
    passes = f"{steps * batch / facts.sequences:.0f} passes"
    if wanted < STEPS[0]:
        return steps, f"{passes}, the least steps"
    if most < wanted:
        return steps, f"{passes}, as much as two cores do in minutes"
    return steps, f"about {PASSES} passes"


def with_values(config: schema.TrainConfig, values: Mapping[str, Any]) -> schema.TrainConfig:
    """Return a copy with some values changed, by dotted key."""
    sections: dict[str, dict[str, object]] = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    return schema.replace(config, **sections)
