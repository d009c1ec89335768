# SPDX-License-Identifier: Apache-2.0
"""Joint angles of the synthetic actions as functions of time.

Angles are radians about a joint's own x, y, z axes (the body stands facing -z, y up, its own left
at -x): +x on a shoulder or hip swings the limb forward, -x on a knee folds it, -x on the spine
bows. T frames; phase runs from 0 to 1 over the motion and stays there before and after.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Series = NDArray[np.float64]

SPINE, NECK = 1, 20
SHOULDER, ELBOW, HIP, KNEE = {-1: 4, 1: 8}, {-1: 5, 1: 9}, {-1: 12, 1: 16}, {-1: 13, 1: 17}


@dataclass
class Motion:
    """Angles (T, 3) of the joints that move, and the pelvis' path (T, 3) in metres."""

    frames: int
    angles: dict[int, Series] = field(default_factory=dict)
    path: Series = field(init=False)

    def __post_init__(self) -> None:
        self.path = np.zeros((self.frames, 3))

    def turn(self, joint: int, axis: int, angle: Series) -> None:
        """Add an angle series about one axis of a joint."""
        self.angles.setdefault(joint, np.zeros((self.frames, 3)))[:, axis] += angle


def ramp(phase: Series, start: float, end: float) -> Series:
    """Smooth 0 -> 1 between two phases."""
    x = np.clip((phase - start) / (end - start), 0, 1)
    return x * x * (3 - 2 * x)


def rise_and_fall(phase: Series, start: float, top: float, leave: float, end: float) -> Series:
    """Smooth 0 -> 1 -> 0 that stays at 1 between `top` and `leave`."""
    return ramp(phase, start, top) - ramp(phase, leave, end)


def oscillation(phase: Series, count: float) -> Series:
    """Sine with `count` periods inside the motion, faded in and out."""
    return np.sin(2 * np.pi * count * phase) * rise_and_fall(phase, 0.1, 0.25, 0.8, 0.95)


def _lift_arm(motion: Motion, side: int, height: Series, style: float) -> None:
    # People lift an arm partly forward and partly sideways; `style` in [0, 1] mixes the two.
    motion.turn(SHOULDER[side], 0, height * (1 - 0.5 * style))
    motion.turn(SHOULDER[side], 2, side * height * 0.5 * style)


def raise_arm(m: Motion, p: Series, side: int, style: float) -> None:
    """Arm from the side to overhead, and it stays there."""
    _lift_arm(m, side, 2.6 * ramp(p, 0.1, 0.8), style)


def lower_arm(m: Motion, p: Series, side: int, style: float) -> None:
    """Arm from overhead to the side."""
    _lift_arm(m, side, 2.6 * (1 - ramp(p, 0.1, 0.8)), style)


def wave(m: Motion, p: Series, side: int, style: float) -> None:
    """Arm up, forearm to and fro."""
    up = rise_and_fall(p, 0, 0.2, 0.8, 1)
    _lift_arm(m, side, 1.7 * up, style)
    m.turn(ELBOW[side], 0, 1.0 * up)
    m.turn(ELBOW[side], 2, 0.7 * oscillation(p, 3 + style))


def punch(m: Motion, p: Series, side: int, style: float) -> None:
    """Fist drawn back, then thrust forward and back, with the trunk."""
    guard, thrust = rise_and_fall(p, 0, 0.25, 0.75, 1), rise_and_fall(p, 0.3, 0.45, 0.5, 0.75)
    m.turn(SHOULDER[side], 0, 0.5 * guard + 1.0 * thrust)
    m.turn(ELBOW[side], 0, 2.0 * guard - 1.8 * thrust)
    m.turn(SPINE, 1, side * (0.3 + 0.3 * style) * thrust)


def clap(m: Motion, p: Series, side: int, style: float) -> None:
    """Both forearms forward, hands meeting several times."""
    up, swing = rise_and_fall(p, 0, 0.2, 0.8, 1), oscillation(p, 4 + style)
    for arm in (-1, 1):
        m.turn(SHOULDER[arm], 0, 0.7 * up)
        m.turn(ELBOW[arm], 0, 1.2 * up)
        m.turn(SHOULDER[arm], 1, arm * (0.1 * up + 0.35 * swing))


def kick(m: Motion, p: Series, side: int, style: float) -> None:
    """Leg drawn back, then swung forward."""
    back, front = rise_and_fall(p, 0, 0.25, 0.3, 0.5), rise_and_fall(p, 0.3, 0.55, 0.6, 0.95)
    m.turn(HIP[side], 0, -0.4 * back + (1.0 + 0.4 * style) * front)
    m.turn(KNEE[side], 0, -1.2 * back - 0.2 * front)
    m.turn(SHOULDER[-side], 0, 0.5 * front)
    m.turn(SPINE, 0, 0.15 * front)


def _sit(m: Motion, depth: Series, lean: Series) -> None:
    m.path[:, 1] -= 0.42 * depth
    m.path[:, 2] += 0.3 * depth
    for leg in (-1, 1):
        m.turn(HIP[leg], 0, 1.5 * depth)
        m.turn(KNEE[leg], 0, -1.5 * depth)
    m.turn(SPINE, 0, -0.7 * lean)


def sit_down(m: Motion, p: Series, side: int, style: float) -> None:
    """From standing to sitting, leaning forward on the way."""
    _sit(m, ramp(p, 0.15, 0.85), rise_and_fall(p, 0.1, 0.4, 0.6, 0.95) * (0.7 + 0.6 * style))


def stand_up(m: Motion, p: Series, side: int, style: float) -> None:
    """From sitting to standing, leaning forward on the way."""
    _sit(m, 1 - ramp(p, 0.15, 0.85), rise_and_fall(p, 0.05, 0.4, 0.6, 0.9) * (0.7 + 0.6 * style))


def bow(m: Motion, p: Series, side: int, style: float) -> None:
    """Trunk forward and up again."""
    down = rise_and_fall(p, 0.05, 0.4, 0.6, 0.95)
    m.turn(SPINE, 0, -(0.8 + 0.4 * style) * down)
    m.turn(NECK, 0, -0.4 * down)


def jump(m: Motion, p: Series, side: int, style: float) -> None:
    """Crouch, leap with arms up, land."""
    crouch = rise_and_fall(p, 0, 0.25, 0.3, 0.42) + 0.7 * rise_and_fall(p, 0.62, 0.7, 0.75, 1)
    leap = rise_and_fall(p, 0.35, 0.5, 0.52, 0.68)
    m.path[:, 1] += 0.35 * leap - 0.25 * crouch
    for half in (-1, 1):
        m.turn(HIP[half], 0, 0.9 * crouch)
        m.turn(KNEE[half], 0, -1.5 * crouch)
        m.turn(SHOULDER[half], 0, (1.2 + style) * leap - 0.5 * crouch)


def drink(m: Motion, p: Series, side: int, style: float) -> None:
    """Hand to the mouth, a short stay, and down."""
    up = rise_and_fall(p, 0.05, 0.35, 0.7, 0.95)
    m.turn(SHOULDER[side], 0, (0.7 + 0.2 * style) * up)
    m.turn(ELBOW[side], 0, 2.2 * up)
    m.turn(NECK, 0, 0.3 * rise_and_fall(p, 0.35, 0.5, 0.6, 0.75))


def throw(m: Motion, p: Series, side: int, style: float) -> None:
    """Arm wound up behind the head, then swung forward with trunk and a step."""
    wind, release = rise_and_fall(p, 0, 0.35, 0.4, 0.55), rise_and_fall(p, 0.4, 0.6, 0.65, 1)
    m.turn(SHOULDER[side], 0, 2.2 * wind + 1.1 * release)
    m.turn(ELBOW[side], 0, 1.6 * wind + 0.1 * release)
    m.turn(SPINE, 1, side * (-0.5 * wind + (0.3 + 0.3 * style) * release))
    m.turn(HIP[-side], 0, 0.5 * release)
    m.path[:, 2] -= 0.2 * ramp(p, 0.4, 0.7)


def handshake(m: Motion, p: Series, side: int, style: float) -> None:
    """One of two people: right hand out, small shakes."""
    out = rise_and_fall(p, 0.1, 0.35, 0.75, 0.95)
    m.turn(SHOULDER[1], 0, 0.8 * out + 0.12 * oscillation(p, 4 + style))
    m.turn(ELBOW[1], 0, 0.7 * out + 0.15 * oscillation(p, 4 + style))


def push(m: Motion, p: Series, side: int, style: float) -> None:
    """One of two people: both arms thrust forward with a step."""
    ready, thrust = rise_and_fall(p, 0, 0.3, 0.7, 1), rise_and_fall(p, 0.3, 0.5, 0.6, 0.8)
    for arm in (-1, 1):
        m.turn(SHOULDER[arm], 0, 0.6 * ready + 0.8 * thrust)
        m.turn(ELBOW[arm], 0, 1.8 * ready - 1.6 * thrust)
    m.turn(SPINE, 0, -0.25 * thrust)
    m.path[:, 2] -= (0.1 + 0.1 * style) * ramp(p, 0.3, 0.5)


def stagger(m: Motion, p: Series, side: int, style: float) -> None:
    """The other of two people in a push: bends back and steps away."""
    hit = rise_and_fall(p, 0.4, 0.55, 0.65, 1)
    m.turn(SPINE, 0, 0.35 * hit)
    for arm in (-1, 1):
        m.turn(SHOULDER[arm], 0, 0.5 * hit)
    m.turn(HIP[side], 0, -0.4 * hit)
    m.path[:, 2] += (0.3 + 0.2 * style) * ramp(p, 0.45, 0.8)


Action = Callable[[Motion, Series, int, float], None]

_ALONE = (
    *(raise_arm, lower_arm, wave, punch, clap, kick),
    *(sit_down, stand_up, bow, jump, drink, throw),
)
SOLO: dict[str, Action] = {act.__name__.replace("_", " "): act for act in _ALONE}
PAIRS: dict[str, tuple[Action, Action]] = {
    "shake hands": (handshake, handshake),
    "push": (push, stagger),
}
