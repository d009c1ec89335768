# SPDX-License-Identifier: Apache-2.0
"""Synthetic skeletons: 3-D motion of action classes for demo, tests and benchmarks.

Forward kinematics on the 25-joint NTU tree: subjects have their own limb lengths, tempo, range and
posture; a performance is seen by several cameras at once; a depth sensor adds noise and sometimes
loses the second person. Every clip is a pure function of (seed, action, subject, repetition,
camera). Metres, camera frame, y up. M bodies, T frames, V joints.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sjepa_fast.data.store import Store
from sjepa_fast.data.store_writer import StoreWriter
from sjepa_fast.data.synthetic_actions import PAIRS, SOLO, Action, Motion, Series, rise_and_fall
from sjepa_fast.errors import InputError
from sjepa_fast.skeletons import NTU25

ACTIONS = (*SOLO, *PAIRS)
CAMERA_YAW = np.radians([45.0, 0.0, -45.0])

# Kinematic tree from the pelvis outwards: (joint, parent, offset in metres in the rest pose).
_TREE = (
    (1, 0, (0.0, 0.25, 0.0)),
    (20, 1, (0.0, 0.25, 0.0)),
    (2, 20, (0.0, 0.08, 0.0)),
    (3, 2, (0.0, 0.14, 0.0)),
    *(
        bone
        for first, hip, x in ((4, 12, -1.0), (8, 16, 1.0))
        for bone in (
            (first, 20, (0.18 * x, -0.04, 0.0)),
            (first + 1, first, (0.02 * x, -0.28, 0.0)),
            (first + 2, first + 1, (0.0, -0.25, -0.02)),
            (first + 3, first + 2, (0.0, -0.07, -0.01)),
            (hip, 0, (0.09 * x, -0.03, 0.0)),
            (hip + 1, hip, (0.01 * x, -0.42, -0.01)),
            (hip + 2, hip + 1, (0.0, -0.40, 0.01)),
            (hip + 3, hip + 2, (0.01 * x, -0.06, -0.13)),
        )
    ),
    (21, 7, (-0.01, -0.08, 0.0)),
    (22, 7, (0.02, -0.03, -0.04)),
    (23, 11, (0.01, -0.08, 0.0)),
    (24, 11, (-0.02, -0.03, -0.04)),
)
_MOVING = (1, 20, 4, 5, 8, 9, 12, 13, 16, 17)


@dataclass(frozen=True)
class Subject:
    """The properties of a person, the same in all performances."""

    offsets: NDArray[np.float64]
    tempo: float
    reach: float
    posture: NDArray[np.float64]
    left_handed: float


def _rng(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def make_subject(seed: int, subject: int) -> Subject:
    """Draw a person: height, proportions, tempo, range of motion, posture, handedness."""
    rng = _rng(seed, 1, subject)
    height = rng.uniform(0.85, 1.15)
    trunk, arm, leg, broad = rng.uniform(0.9, 1.1, size=4)
    offsets = np.zeros((25, 3))
    for joint, _, rest in _TREE:
        part = arm if joint in (*range(5, 8), *range(9, 12), *range(21, 25)) else trunk
        part = leg if joint in (*range(13, 16), *range(17, 20)) else part
        offsets[joint] = np.array(rest) * height * part
        if joint in (4, 8, 12, 16):
            offsets[joint, 0] *= broad
    return Subject(
        offsets=offsets,
        tempo=rng.uniform(0.75, 1.3),
        reach=rng.uniform(0.75, 1.15),
        posture=rng.normal(0, 0.12, size=(25, 3)),
        left_handed=rng.choice([0.25, 0.75], p=[0.8, 0.2]),
    )


def _rotations(angles_T3: Series) -> NDArray[np.float64]:
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles_T3).T, np.sin(angles_T3).T
    rows = [
        [cy * cz, sx * sy * cz - cx * sz, cx * sy * cz + sx * sz],
        [cy * sz, sx * sy * sz + cx * cz, cx * sy * sz - sx * cz],
        [-sy, sx * cy, cx * cy],
    ]
    return np.moveaxis(np.array(rows), 2, 0)


def pose(subject: Subject, motion: Motion) -> NDArray[np.float64]:
    """Forward kinematics: (T, 25, 3) with the pelvis on the motion's path, in body axes."""
    frames = motion.frames
    joints = np.zeros((frames, 25, 3))
    joints[:, 0] = motion.path
    turned = np.broadcast_to(np.eye(3), (25, frames, 3, 3)).copy()
    for joint, parent, _ in _TREE:
        joints[:, joint] = joints[:, parent] + turned[parent] @ subject.offsets[joint]
        own = motion.angles.get(joint)
        turned[joint] = turned[parent] if own is None else turned[parent] @ _rotations(own)
    return joints


def _drift(rng: np.random.Generator, frames: int, scale: float) -> Series:
    # Slow sway: three sines with random periods of one to four seconds at 30 frames per second.
    time = np.arange(frames)[:, None] / 30
    waves = np.sin(2 * np.pi * (time / rng.uniform(1, 4, size=3) + rng.random(3)))
    return scale * waves @ rng.normal(size=3) / 3


def _add_side_motion(rng: np.random.Generator, motion: Motion) -> None:
    # In half of the clips something unrelated moves too: an arm, the neck or the trunk.
    if rng.random() < 0.5:
        joint = int(rng.choice([1, 4, 5, 8, 9, 20]))
        time = np.linspace(0, 1, motion.frames)
        start = rng.uniform(0, 0.5)
        length = rng.uniform(0.2, 0.5)
        shape = rise_and_fall(
            time, start, start + 0.3 * length, start + 0.7 * length, start + length
        )
        size = rng.uniform(0.3, 1.0) * (0.4 if joint in (1, 20) else 1.0)
        motion.turn(joint, int(rng.integers(0, 3)), size * shape)


def _perform(
    rng: np.random.Generator, subject: Subject, action: Action, phase: Series, side: int
) -> NDArray[np.float64]:
    motion = Motion(len(phase))
    action(motion, phase, side, rng.random())
    reach = subject.reach * rng.uniform(0.9, 1.1)
    for joint in _MOVING:
        own = motion.angles.setdefault(joint, np.zeros((len(phase), 3)))
        own *= reach
        own += subject.posture[joint] + rng.normal(0, 0.04, size=3)
        for axis in range(3):
            own[:, axis] += _drift(rng, len(phase), 0.2)
    _add_side_motion(rng, motion)
    motion.path += np.stack([_drift(rng, len(phase), 0.03) for _ in range(3)], axis=1)
    return pose(subject, motion)


def _phase(rng: np.random.Generator, tempo: float) -> Series:
    # Idle time before and after, and an uneven pace, so that no two clips align in time.
    active = int(rng.integers(24, 66) / tempo)
    before, after = rng.integers(0, 50, size=2)
    pace = np.linspace(0, 1, active) ** rng.uniform(0.7, 1.4)
    return np.concatenate([np.zeros(before), pace, np.ones(after)])


def _about_vertical(x: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    c, s = np.cos(angle), np.sin(angle)
    return np.asarray(x @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]]))


def performance(seed: int, action: int, subject: int, repetition: int) -> NDArray[np.float64]:
    """One performance in room coordinates, (M, T, 25, 3), before any camera sees it."""
    rng = _rng(seed, 2, action, subject, repetition)
    name, person = ACTIONS[action], make_subject(seed, subject)
    phase = _phase(rng, person.tempo * rng.uniform(0.9, 1.1))
    side = -1 if rng.random() < person.left_handed else 1
    if name in SOLO:
        bodies = [_perform(rng, person, SOLO[name], phase, side)]
    else:
        first, second = PAIRS[name]
        # The partner is somebody else, drawn for the pair, and reacts a little later.
        partner = make_subject(seed + 1, 1000 * subject + repetition)
        late = np.concatenate([np.zeros(3), phase])[: len(phase)]
        facing = _perform(rng, partner, second, late, -side)
        distance = rng.uniform(0.7, 1.0)
        facing = _about_vertical(facing, np.pi) + np.array([0, 0, -distance])
        bodies = [_perform(rng, person, first, phase, side), facing]
        if rng.random() < 0.5:
            bodies.reverse()
        # Pairs stand sideways to the middle camera, as actors do.
        bodies = [_about_vertical(b, np.pi / 2) for b in bodies]
    turn = rng.normal(0, np.radians(25))
    place = np.array([rng.uniform(-0.5, 0.5), 0.0, 0.0])
    return np.asarray(_about_vertical(np.stack(bodies), turn) + place)


def synthetic_clip(
    action: int, subject: int, camera: int, repetition: int, seed: int = 0
) -> NDArray[np.float32]:
    """One clip as a depth sensor records it, (M, T, 25, 3) float32 in metres; M is 1 or 2.

    `action` is an index into `ACTIONS`; subject and repetition are any numbers; camera is 0 (from
    the left), 1 (front) or 2 (from the right). Camera frame, y up.
    """
    room = performance(seed, action, subject, repetition)
    rng = _rng(seed, 3, action, subject, repetition, camera)
    if len(room) == 2 and rng.random() < 0.15:
        room = room[:1]
    seen = _about_vertical(room, CAMERA_YAW[camera] + rng.normal(0, np.radians(4)))
    pitch = rng.normal(0, np.radians(4))
    c, s = np.cos(pitch), np.sin(pitch)
    seen = seen @ np.array([[1, 0, 0], [0, c, s], [0, -s, c]])
    seen = seen + np.array([0, rng.uniform(-0.3, 0.1), rng.uniform(2.2, 3.8)])
    frames = seen.shape[1]
    noise = rng.normal(0, 0.008, size=seen.shape)
    # Now and then a joint is tracked badly for a while: a slow wander.
    for body in range(len(seen)):
        for joint in rng.choice(25, size=2, replace=False):
            start = int(rng.integers(0, frames))
            length = int(rng.integers(5, 20))
            wander = np.cumsum(rng.normal(0, 0.02, size=(length, 3)), axis=0)
            noise[body, start : start + length, joint] += wander[: frames - start]
    return np.asarray(seen + noise, dtype=np.float32)


def write_synthetic_store(
    out: Path, *, subjects: int = 12, repetitions: int = 3, cameras: int = 3, seed: int = 0
) -> Store:
    """Write a store of actions x subjects x cameras x repetitions clips.

    Splits: xsub (even subjects train), xview (cameras 1 and 2 train, 0 tests) and xsub_xview (train
    subjects on train cameras, test subjects on the test camera). A test part needs two subjects.

    Raises InputError if a count is below 1, there are more cameras than three, or the seed is
    negative.
    """
    for argument, value in (("subjects", subjects), ("repetitions", repetitions)):
        if value < 1:
            raise InputError(argument, value, "use at least 1")
    if not 1 <= cameras <= len(CAMERA_YAW):
        raise InputError("cameras", cameras, f"use 1 to {len(CAMERA_YAW)}")
    if seed < 0:
        raise InputError("seed", seed, "use 0 or more")
    command = (
        f"write_synthetic_store(subjects={subjects}, repetitions={repetitions}, "
        f"cameras={cameras}, seed={seed})"
    )
    with StoreWriter(out, "synthetic", NTU25, ACTIONS) as writer:
        for subject in range(subjects):
            for action in range(len(ACTIONS)):
                for repetition in range(repetitions):
                    for camera in range(cameras):
                        clip = synthetic_clip(action, subject, camera, repetition, seed)
                        name = f"A{action:02d}S{subject:03d}R{repetition:03d}C{camera}"
                        meta = {"subject": subject, "camera": camera, "repetition": repetition}
                        writer.add(name, clip, action, meta)
        subject_N = np.array(writer.table.meta["subject"])
        camera_N = np.array(writer.table.meta["camera"])
        even, front = subject_N % 2 == 0, camera_N > 0
        splits = {
            "xsub": np.where(even, 1, 2),
            "xview": np.where(front, 1, 2),
            "xsub_xview": np.where(even & front, 1, np.where(~even & ~front, 2, 0)),
        }
        return writer.finish({k: v.astype(np.int8) for k, v in splits.items()}, command)
