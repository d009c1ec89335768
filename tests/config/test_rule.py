"""The rule that fits the presets `*-small` to a store: what it chooses from which counts."""

import re
from dataclasses import replace
from typing import Any

import pytest

from sjepa_fast.config.presets import FITTED, preset
from sjepa_fast.config.presets_small import fitted, unfitted
from sjepa_fast.config.rule import KEYS, StoreFacts
from sjepa_fast.config.schema import TrainConfig, kept_tokens
from sjepa_fast.config.validation import validate, validate_tokens
from sjepa_fast.errors import InputError

# As N-UCLA's training part.
MANY = StoreFacts("many", "xview", "its only one", 1020, 1020, 34, 20, 1, 10)


def facts(**changes: Any) -> StoreFacts:
    """`MANY`, changed; one person a clip unless the sequences are given."""
    return replace(MANY, **{"sequences": changes.get("clips", MANY.clips), **changes})


def chosen(found: StoreFacts, method: str = "sjepa", **given: Any) -> tuple[Any, ...]:
    """Frames, share masked, batch and steps."""
    config, _ = fitted(method, found, {key.replace("__", "."): v for key, v in given.items()})
    return config.data.frames, config.mask.ratio, config.optim.batch_size, config.optim.length


@pytest.mark.parametrize(
    ("found", "frames", "masked", "batch", "steps"),
    [
        (facts(), 32, 0.7, 64, 2400),
        (facts(clips=284, frames=38), 32, 0.7, 32, 1300),
        (facts(clips=100), 32, 0.7, 32, 600),
        (facts(clips=109, frames=20, joints=15), 32, 0.7, 32, 600),
        (facts(clips=227, sequences=454, frames=23, joints=15, persons=2), 32, 0.7, 32, 2100),
        (facts(clips=16), 32, 0.7, 16, 600),
        (facts(clips=479), 32, 0.7, 32, 2200),
        (facts(clips=960), 32, 0.7, 64, 2200),
        (facts(frames=4), 32, 0.7, 64, 2400),
        (facts(frames=40), 32, 0.7, 64, 2400),
        (facts(frames=41), 48, 0.7, 64, 2400),
        # Long clips and many: as much work as 3,600 steps of 64 x 160 tokens.
        (facts(frames=117, joints=21, clips=1600), 64, 0.7, 64, 1700),
        (facts(frames=90, joints=25, clips=40_000), 64, 0.7, 128, 700),
        (facts(frames=90, joints=500), 64, 0.7, 64, 600),
        # Few joints: 24 tokens stay as long as less than a third would be masked otherwise.
        (facts(joints=9), 32, 0.65, 64, 2400),
        (facts(joints=5), 32, 0.4, 64, 2400),
        (facts(joints=2), 32, 0.3, 64, 2400),
    ],
    ids=str,
)
def test_what_is_chosen(
    found: StoreFacts, frames: int, masked: float, batch: int, steps: int
) -> None:
    assert chosen(found) == (frames, masked, batch, steps)


@pytest.mark.parametrize("method", [method for _, method in FITTED.values()])
@pytest.mark.parametrize(
    "found",
    [MANY, facts(clips=16, joints=4), facts(frames=300, joints=25, clips=10**6), facts(joints=2)],
    ids=str,
)
def test_what_is_chosen_can_be_trained(method: str, found: StoreFacts) -> None:
    config = preset(f"{method}-small", lambda: found)
    validate(config)
    validate(fitted(method, found, {"optim.length": 2})[0])
    validate_tokens(config, found.joints)
    assert config.objective.kind == method and config.run.name == f"{method}-small"
    tokens = config.data.frames // config.model.segment_length * found.joints
    assert kept_tokens(config.mask, tokens, found.joints) >= min(16, tokens / 2)
    assert config.optim.batch_size <= found.sequences
    assert (config.data.whiten, config.model.layer_scale) == (0.5, 1e-4)


def test_every_choice_has_a_reason_and_no_other_key_changes() -> None:
    config, choices = fitted("mamp", facts(clips=227, sequences=454, persons=2))
    assert tuple(choice.key for choice in choices) == KEYS
    assert all(re.match(rf"{re.escape(c.key)} {c.value}: \S", str(c)) for c in choices)
    assert config.data.bodies == 2 and config.data.skip_empty_bodies
    base = unfitted("mamp")
    for section, kept in (("view", base.view), ("objective", base.objective), ("eval", base.eval)):
        assert getattr(config, section) == kept
    assert base.objective.kind == "mamp" != TrainConfig().objective.kind


def test_labels_are_not_needed() -> None:
    unlabelled = facts(classes=0)
    assert fitted("sjepa", unlabelled) == fitted("sjepa", MANY)
    assert "10 classes" in str(MANY) and "no labels" in str(unlabelled)


def test_given_values_win_and_the_rest_follows_them() -> None:
    assert chosen(MANY, data__frames=64) == (64, 0.7, 64, 1800)
    assert chosen(MANY, optim__batch_size=32) == (32, 0.7, 32, 3600)
    assert chosen(MANY, model__segment_length=3)[0] == 36
    assert chosen(facts(frames=90), model__segment_length=8)[0] == 64
    assert chosen(MANY, mask__ratio=0.9)[1] == 0.9
    assert chosen(MANY, optim__unit="epochs")[3] == 151
    for given, warmup in (
        ({}, 50),
        ({"optim.length": 20}, 1),
        ({"optim.length": 1}, 0),
        ({"optim.unit": "epochs"}, 3),
        ({"optim.unit": "epochs", "optim.length": 12}, 1),
        ({"optim.length": 20, "optim.warmup": 7}, 7),
    ):
        optim = fitted("sjepa", MANY, given)[0].optim
        assert (optim.warmup, optim.lr) == (warmup, 1e-3), given
    lines = map(str, fitted("sjepa", MANY, {"data.frames": 64, "data.bodies": 1})[1])
    said = [line for line in lines if "given" in line]
    assert said == ["data.bodies 1: given", "data.frames 64: given; the rule says 32"]


def test_a_visible_share_of_its_own_is_an_upper_limit() -> None:
    """Multi-view masks less than the others."""
    assert chosen(MANY, "multiview")[1] == 0.4
    assert chosen(facts(joints=4), "multiview")[1] == 0.3
    assert chosen(facts(joints=6), "multiview")[1] == 0.4 < chosen(facts(joints=6))[1]


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (facts(clips=15), "data.root: many has 15 training clips in xview; .* need 16 or more"),
        (facts(clips=1), "many has 1 training clip in xview"),
        (facts(frames=3), r"many has clips of 3 frames \(median\), a segment has 4; prepare"),
    ],
    ids=str,
)
def test_too_little_is_refused(found: StoreFacts, says: str) -> None:
    with pytest.raises(InputError, match=says):
        fitted("sjepa", found)


def test_a_preset_that_fits_itself_needs_a_store() -> None:
    with pytest.raises(InputError, match=r"preset: mamp-small; .*--data\.root STORE"):
        preset("mamp-small")
