"""Configurations of strangers: refused in one line, at once, with little memory."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest
import torch

from sjepa_fast.build import build_model, weight_bytes
from sjepa_fast.config.files import apply_yaml, read_config, to_yaml
from sjepa_fast.config.plain_yaml import plain_yaml
from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.config.validation import LARGEST, validate
from sjepa_fast.errors import InputError
from sjepa_fast.runtime import device as devices
from sjepa_fast.training.inputs import run_lengths
from tests.fuzz.mutate import ODD, put_odd
from tests.tiny import CPU, STEP_CONFIG, step_clips

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{after}: &{after} [{','.join([f'*{name}'] * 9)}]\n"
    for name, after in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "an anchor or alias in line 1"),
        ("a: &x 1\n", "an anchor or alias in line 1"),
        ("mask: {ratio: 0.5}\nmask: {ratio: 0.6}\n", "the key mask twice in line 2"),
        ("mask: {ratio: 0.5, ratio: 0.6}\n", "the key ratio twice"),
        ("mask: !!python/object/apply:os.system [x]\n", "the tag tag:yaml.org,2002:python"),
        ("mask: !!set {a}\n", "the tag"),
        ("seed: !!int 1\n", "the tag"),
        ("mask: {<<: {ratio: 0.5}}\n", "a merge in line 1"),
        ("[" * 30_000, "more nesting than a configuration has"),
        ("- " * 30_000, "more nesting"),
        ('{"a":' * 10_000, "more nesting"),
        ("seed: " + "9" * 5000, "4300"),
        ("seed: 2001-99-99", "month must be"),
        ("seed: 0b_", "invalid literal"),
        ("a: b: c", "not YAML"),
        ("\x1b[2J: 1", "not YAML"),
        ("\x00", "not YAML"),
        ("x" * 2**17, "has 131072 bytes; expected at most 65536"),
        ("[1, 2]", "is not a mapping"),
    ],
)
def test_yaml_that_is_no_configuration_is_one_line(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    began = time.monotonic()
    tracemalloc.start()
    with pytest.raises(InputError) as caught:
        apply_yaml(TrainConfig(), file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - began < 10
    assert peak < 64 * 2**20
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000
    if not text.startswith(("seed: 2001", "seed: 0b")):
        assert reason in str(caught.value)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", [kind for kind in ODD if kind != "empty"])
def test_a_configuration_is_a_regular_file(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "config.yaml"
    put_odd(kind, file)
    with pytest.raises(InputError, match=r"config.yaml"):
        read_config(file)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("data: {split: 1}", "1 is not text"),
        ("data: {split: {a: 1}}", "is not text"),
        ("data: {split: [xsub]}", "is not text"),
        ("run: 2001-01-01", "is not text"),
        ("run: 5", "is not text"),
        ('run: "a\\0b"', "has a zero byte"),
        ('data: {root: "\\ud800"}', "surrogates not allowed"),
        ("seed: 1.5", "is not a whole number"),
        ("seed: true", "is not a whole number"),
        ("seed: .nan", "is not a whole number"),
        ("log: {profile: 1}", "is not true or false"),
        ("mask: 3", "give a mapping"),
        ("mask: [ratio]", "give a mapping"),
        ("mask: {1: 2}", "no such key"),
        ("mask: {null: 2}", "no such key"),
        ("? [a]\n: 1", "not YAML"),
    ],
)
def test_values_have_their_types(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=named):
        apply_yaml(TrainConfig(), file)


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    """NaN and infinity in every number that a configuration has."""
    file, tried = tmp_path / "config.yaml", 0
    for line in to_yaml(TrainConfig()).splitlines():
        key, _, value = line.strip().partition(": ")
        if not line.startswith(" "):
            section = key.rstrip(":")
            continue
        if "." not in value or not value.replace(".", "").isdigit():
            continue
        for bad in (".nan", ".inf", "-.inf", "1e999"):
            file.write_text(f"{section}: {{{key}: {bad}}}\n")
            with pytest.raises(InputError, match=key):
                validate(apply_yaml(TrainConfig(), file))
            tried += 1
    assert tried > 60


@pytest.mark.parametrize("name", sorted(LARGEST))
@pytest.mark.parametrize("beyond", [1, 10**30])
def test_sizes_have_bounds(name: str, beyond: int) -> None:
    section, key = name.split(".")
    config = replace(TrainConfig(), **{section: {key: LARGEST[name] + beyond}})
    with pytest.raises(InputError, match=rf"^{name}: \d+; give at most {LARGEST[name]}$"):
        validate(config)


def test_what_does_not_fit_is_said_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    # 3.3 TB of weights: the attempt would fail, or worse succeed on paper.
    large = replace(STEP_CONFIG, model={"width": 2**14, "depth": 256, "heads": 1})
    validate(large)
    ids = torch.arange(1)
    with pytest.raises(InputError, match=r"^model: needs \d{4,}\.\d GiB, and cpu has .* free"):
        build_model(large, step_clips(), ids, CPU)
    exact = weight_bytes(STEP_CONFIG, step_clips().layout)
    built = build_model(STEP_CONFIG, step_clips(), ids, CPU)
    assert exact == sum(value.nbytes for value in built.state_dict().values())
    monkeypatch.setattr(devices, "free_memory", lambda device: exact - 1)
    with pytest.raises(InputError, match="model: needs"):
        build_model(STEP_CONFIG, step_clips(), ids, CPU)
    monkeypatch.setattr(devices, "free_memory", lambda device: None)
    build_model(STEP_CONFIG, step_clips(), ids, CPU)


def test_frames_that_do_not_fit_are_said_too(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = {"frames": 2**14}
    config = replace(STEP_CONFIG, data=wide, model={"segment_length": 1, "width": 8192, "heads": 1})
    clips = step_clips()
    # Two to the 14 frames x joints are tokens of 2**13 numbers, of each clip.
    features = len(clips.labels_N) * 2**14 * clips.layout.num_joints * 2**13 * 4
    monkeypatch.setattr(devices, "free_memory", lambda device: features)
    with pytest.raises(InputError, match=r"^model: needs \d+\.\d GiB"):
        build_model(config, clips, torch.arange(1), CPU)


def test_a_run_has_a_bounded_number_of_steps() -> None:
    config = replace(TrainConfig(), optim={"length": 10**7, "batch_size": 4, "unit": "epochs"})
    assert run_lengths(config, 7) == (10**7, 20)
    with pytest.raises(InputError, match=r"^optim.length: 10000000 epochs are 20000000 steps"):
        run_lengths(config, 8)


def test_plain_yaml_is_read() -> None:
    text = "a: {b: [1, 2.5, true, null, 'x']}\nc: 1e-3\nd: 0x1F\n"
    assert plain_yaml(text) == {"a": {"b": [1, 2.5, True, None, "x"]}, "c": "1e-3", "d": 31}
