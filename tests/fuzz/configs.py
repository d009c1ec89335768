"""Configurations of strangers: YAML, command lines, and what they would build."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import torch
import yaml

from sjepa_fast import ablate
from sjepa_fast.build import OBJECTIVES
from sjepa_fast.config.files import (
    apply_values,
    apply_yaml,
    check_resumable,
    parse_train,
    read_config,
    to_dict,
    to_yaml,
)
from sjepa_fast.config.plain_yaml import plain_yaml
from sjepa_fast.config.presets import PRESETS, preset
from sjepa_fast.config.presets_small import SMALL
from sjepa_fast.config.rule import KEYS
from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.config.validation import validate, validate_tokens
from sjepa_fast.skeletons import NTU25
from tests.fuzz.mutate import NUMBERS, TEXTS, mutate_bytes, mutate_text, mutate_tree, nasty, put
from tests.fuzz.target import Target

# What means something to YAML alone.
_MARKS = ("&a ", "*a", "<<: *a", "!!python/name:os.system", "!!binary aGk=", "!!set", "? ", "--- ")
_MARKS += ("...\n", "| ", ">-\n ", "%YAML 1.1\n", "# ", "[", "]", "{", "}", ", ", ": ", "- ", "\t")
_MARKS += ("2001-01-01", "12:30:45", "0o17", "1_000", ".inf", ".nan", "~", "=", "yes", "0b11")


def _yaml(rng: random.Random, folder: Path) -> Path:
    tree: Any = to_dict(preset(rng.choice(list(PRESETS))))
    if rng.random() < 0.95:
        # Reading YAML is slow, and most mutations need no more.
        tree = {key: tree[key] for key in rng.sample(list(tree), rng.choice((1, 2)))}
    kind = rng.random()
    if kind < 0.6:
        tree = mutate_tree(rng, tree)
    try:
        # Aliases appear where a value is there twice.
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=rng.random() < 0.5)
    except (yaml.YAMLError, RecursionError):
        text = repr(tree)
    data = text.encode("utf-8", "surrogatepass")
    if kind > 0.5:
        marks = [mark.encode() for mark in _MARKS]
        texts = (mutate_text(rng, text, _MARKS), mutate_bytes(rng, data, marks))
        data = rng.choice(texts)
    if rng.random() < 0.01:
        data = rng.choice((b"[", b"- ", b"? ", b"{a: ", b"a:\n ", b'"')) * 20_000
    return put(rng, folder / "config.yaml", data)


def _build(config: TrainConfig) -> None:
    validate(config)
    validate_tokens(config, NTU25.num_joints)
    if config.model.depth + config.model.predictor_depth > 12:
        return
    with torch.device("meta"):
        OBJECTIVES[config.objective.kind](config, NTU25)


def _apply(path: Path) -> None:
    config = apply_yaml(preset("sjepa-demo"), path)
    _build(config)


def _resume(path: Path) -> None:
    config = read_config(path)
    check_resumable(config, config)
    validate(config)
    assert written_and_read(config) == config


def _word(rng: random.Random) -> str:
    text = str(rng.choice((rng.choice(TEXTS), rng.choice(NUMBERS), nasty(rng))))
    # What an operating system hands over: no zero byte.
    return text.replace("\0", "")


_KEYS = (
    "mask.ratio",
    "model.depth",
    "data.root",
    "optim.lr",
    "run",
    "seed",
    "resume",
)
_KEYS += (
    *KEYS,
    "model.segment-length",
    "compile",
    "config",
    "log.to",
    "axis",
    "values",
    "x",
    "model.depth=3",
)


def _words(rng: random.Random, folder: Path) -> list[str]:
    words = (
        [rng.choice(("sjepa-demo", "mamp-small", "mamp", _word(rng)))] if rng.random() < 0.5 else []
    )
    words += ["--run", str(folder / "run")] if rng.random() < 0.7 else []
    for _ in range(rng.choice((1, 1, 2, 3))):
        key = rng.choice(_KEYS) if rng.random() < 0.9 else _word(rng)
        words += [f"--{key}={_word(rng)}"] if rng.random() < 0.3 else [f"--{key}", _word(rng)]
    return words


def _train_words(words: list[str]) -> None:
    validate(parse_train(words, lambda root, split: SMALL["nucla"].facts))


def _grid(rng: random.Random, folder: Path) -> list[str]:
    axis = rng.choice(("mask.ratio", "ratio", "data.split", "depth", "compile", _word(rng)))
    values = [rng.choice(("0.5", "0.8", "xsub", _word(rng))) for _ in range(rng.choice((1, 2, 3)))]
    words = ["--axis", axis, "--values", *values, "--run", str(folder / "grid")]
    return words + (["--seeds", "0", _word(rng)] if rng.random() < 0.3 else [])


def _ablation(words: list[str]) -> None:
    ablation = ablate.parse_ablation(words)
    for configs in ablation.cells.values():
        for config in configs:
            # A folder of its own below the grid's, whatever the value.
            assert config.run.resolve().parent == ablation.folder.resolve(), config.run
            assert config.run.name.isprintable(), config.run


def written_and_read(config: TrainConfig) -> TrainConfig:
    """What is written is what is read."""
    return apply_values(TrainConfig(), plain_yaml(to_yaml(config)), "text")


def _grid_setup(folder: Path) -> None:
    # Parsing flags takes a tenth of a second, and is a target of its own.
    ablate.parse_train = lambda args, *_: _base(args[args.index("--run") + 1])
    _ablation(["--axis", "ratio", "--values", "0.5", "--run", str(folder)])


def _base(run: str) -> TrainConfig:
    return dataclasses.replace(preset("sjepa-demo"), run=Path(run))


def _warm(folder: Path) -> None:
    _train_words(["sjepa-demo", "--run", str(folder)])
    _build(preset("sjepa-demo"))


TARGETS = (
    Target("config", _yaml, _apply, _warm),
    Target("config of a run", _yaml, _resume, _warm),
    Target("flags", _words, _train_words, _warm),
    Target("ablation", _grid, _ablation, _grid_setup),
)
