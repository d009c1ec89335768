# SPDX-License-Identifier: Apache-2.0
"""Reads configurations from preset, YAML and command line (in that order), and writes YAML."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import cattrs
import yaml
from cattrs import ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn
from cattrs.v import format_exception

from sjepa_fast import cli
from sjepa_fast.config.continued import Origin, OriginOf, describe, taken
from sjepa_fast.config.plain_yaml import plain_yaml
from sjepa_fast.config.presets import FITTED, PRESETS, preset
from sjepa_fast.config.presets_small import fitted, unfitted
from sjepa_fast.config.rule import KEYS, StoreFacts, with_values
from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.errors import InputError, nearest
from sjepa_fast.names import say
from sjepa_fast.opening import read_text

# A configuration with all keys has three thousand.
YAML_BYTES = 2**16
# Keys that may differ when a run is resumed: they change no weight, `optim.accumulate` by rounding
# alone, as another number of processes does.
FREE_ON_RESUME = (
    "run",
    "resume",
    "log",
    "checkpoint",
    "data.backend",
    "data.workers",
    "data.prefetch",
    "runtime.verify",
    "optim.accumulate",
    "runtime.max_skipped",
)


@dataclasses.dataclass(frozen=True)
class Renamed:
    """The present name of a key of older versions, and new names of its values, if any."""

    key: str
    values: dict[Any, Any]
    """Of a flag that was on or off, by True and False."""


# By section and key. Old names are read in run folders and YAML; an old flag gets a hint.
RENAMED = {
    ("eval", "linear"): Renamed("recipe", {"sgd": "paper", "logistic": "small"}),
    ("data", "backend"): Renamed("backend", {"stream": "disk"}),
    ("log", "tensorboard"): Renamed("to", {True: ["tensorboard"], False: []}),
}


# Plain types, what is read as them, and their names for messages. YAML 1.1 reads "1e-3" as a
# string, so numbers in strings are numbers here.
_PLAIN: tuple[tuple[type, Any, str], ...] = (
    (float, int | float | str, "a number"),
    (int, int, "a whole number"),
    (bool, bool, "true or false"),
)


@functools.cache
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_unstructure_hook(Path, str)
    converter.register_structure_hook(Path, lambda value, _: Path(_text(value)))
    converter.register_structure_hook(str, lambda value, _: _text(value))
    for kind, accepted, what in _PLAIN:
        converter.register_structure_hook(kind, _strict(kind, accepted, what))
    converter.register_structure_hook_func(
        _is_tuple, lambda value, kind: _each(converter, value, get_args(kind)[0])
    )
    converter.register_structure_hook_func(
        _is_choice, lambda value, kind: _one_of(value, get_args(kind))
    )
    converter.register_structure_hook_factory(
        dataclasses.is_dataclass,
        lambda cls: make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True),
    )
    return converter


def _message(error: BaseException, kind: type[Any] | None) -> str:
    return str(error) if isinstance(error, ValueError) else format_exception(error, kind)


def _strict(kind: type, accepted: Any, what: str) -> Callable[[object, object], Any]:
    def structure(value: object, _: object) -> Any:
        # A bool is an int to Python.
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{value!r} is not {what}")
        return kind(value)

    return structure


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text; put it in quotes")
    if "\0" in value:
        raise ValueError(f"{value!r} has a zero byte")
    # What the system takes as a name, any bytes of a path included.
    os.fsencode(value)
    return value


def _is_tuple(kind: Any) -> bool:
    origin: Any = get_origin(kind)
    return origin is tuple


def _each(converter: cattrs.Converter, value: object, kind: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{value!r} is not a list")
    return tuple(converter.structure(part, kind) for part in value)


def _is_choice(kind: Any) -> bool:
    origin: Any = get_origin(kind)
    return origin is Literal


def _one_of(value: object, known: tuple[str, ...]) -> object:
    # YAML 1.1 reads on and off as booleans.
    if isinstance(value, bool) and {"on", "off"} <= set(known):
        return "on" if value else "off"
    if value not in known:
        raise ValueError(f"{value!r} is no choice, {nearest(str(value), list(known))}")
    return value


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Return the configuration as nested plain values."""
    tree: dict[str, Any] = _converter().unstructure(config)
    return tree


def leaves(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Return the values of a nested mapping by dotted key."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, dict)
        found |= leaves(value, f"{path}{key}.") if inner else {f"{path}{key}": value}
    return found


def to_yaml(config: TrainConfig) -> str:
    """Return the configuration as YAML."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def with_new_names(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Replace keys and values of older versions by their present names, in any part of the tree.

    Returns a new tree, and one sentence for each change.
    """
    tree = {k: dict(part) if isinstance(part, dict) else part for k, part in values.items()}
    changes = []
    for (section, old), new in RENAMED.items():
        part = tree.get(section)
        # If both the old and the new key are given, the old one stays and is refused later.
        if not isinstance(part, dict) or old not in part or (new.key != old and new.key in part):
            continue
        before = part.pop(old)
        now = new.values.get(before, before) if isinstance(before, str | bool) else before
        part[new.key] = now
        if (new.key, now) != (old, before):
            changes.append(f"{section}.{old} {before} is now {section}.{new.key} {now}")
    return tree, changes


def _note(change: str, source: Path | str) -> None:
    say(f"note: {change} (in {source})", to_stderr=True)


def _flags_with_new_names(args: list[str]) -> list[str]:
    """Give the flags' old values their new names, with a note; an old flag is refused by name."""
    args = list(args)
    for (section, old), new in RENAMED.items():
        for i, arg in enumerate(args):
            flag, joined, value = arg.partition("=")
            if True in new.values and flag in (f"--{section}.{old}", f"--{section}.no-{old}"):
                now = " ".join(new.values[flag == f"--{section}.{old}"])
                fix = f"it is now --{section}.{new.key} {now}" if now else "leave it out"
                raise InputError(flag, "no such flag", fix)
            if flag.replace("_", "-") != f"--{section}.{old}".replace("_", "-"):
                continue
            at = i if joined else i + 1
            value = value if joined else "".join(args[at : at + 1])
            now = new.values.get(value, value)
            if new.key != old:
                fix = f"it is now --{section}.{new.key} {now}".replace("_", "-")
                raise InputError(flag, value, fix)
            if now != value:
                args[at] = f"{flag}={now}" if joined else now
                _note(f"{flag} {value} is now {flag} {now}", "the command line")
    return args


def _merge(
    base: dict[str, Any], extra: dict[str, Any], path: str, file: Path | str
) -> dict[str, Any]:
    merged = dict(base)
    for key, value in extra.items():
        name = f"{path}{key}"
        if key not in base:
            raise InputError(name, f"no such key (in {file})", nearest(str(key), list(base)))
        if isinstance(base[key], dict):
            if not isinstance(value, dict):
                raise InputError(name, f"{value!r} (in {file})", "give a mapping of keys")
            merged[key] = _merge(base[key], value, f"{name}.", file)
        else:
            merged[key] = value
    return merged


def apply_yaml(config: TrainConfig, file: Path) -> TrainConfig:
    """Return the configuration, overridden by the values of a YAML file.

    The file is a mapping with the same sections and keys. Raises InputError if it is missing, is
    not YAML, or has an unknown key or a bad value.
    """
    return apply_values(config, _load(file), file)


def _load(file: Path) -> dict[str, Any]:
    text = read_text("config", file, YAML_BYTES)
    try:
        loaded = plain_yaml(text)
    except ValueError as error:
        raise InputError("config", f"{file} is not YAML ({error})", "mend the file") from error
    if not isinstance(loaded, dict | None):
        raise InputError("config", f"{file} is not a mapping", "write `section: {key: value}`")
    return loaded or {}


def apply_values(config: TrainConfig, values: dict[str, Any], source: Path | str) -> TrainConfig:
    """Return the configuration, overridden by nested values: any part of the tree, from `source`.

    Names of older versions are understood, with a note. Raises InputError on an unknown key or a
    bad value.
    """
    renamed, changes = with_new_names(values)
    for change in changes:
        _note(change, source)
    tree = _merge(to_dict(config), renamed, "", source)
    try:
        return _converter().structure(tree, TrainConfig)
    except (cattrs.BaseValidationError, ForbiddenExtraKeysError) as error:
        reason = "; ".join(cattrs.transform_error(error, format_exception=_message))
        raise InputError("config", f"{source}: {reason}", "correct the value") from error


def read_config(file: Path) -> TrainConfig:
    """Read a complete configuration that a run wrote (`config.yaml`), also an older version's."""
    return apply_values(TrainConfig(), with_new_names(_load(file))[0], file)


def _take(args: list[str], flag: str) -> str | None:
    for i, arg in enumerate(args):
        if arg == flag:
            if i + 1 == len(args):
                raise InputError(flag, "has no value", "put one after it")
            value = args[i + 1]
            del args[i : i + 2]
            return value
        if arg.startswith(f"{flag}="):
            del args[i]
            return arg.partition("=")[2]
    return None


# Counts the training part of a store's split, or of the split that needs no choice.
FactsOf = Callable[[Path, str | None], StoreFacts]
# What is trained without a preset: with a store, and without.
BY_STORE, BY_ITSELF = "sjepa-small", "sjepa-demo"

_PROG = "sjepa_fast.train"
_USAGE = """usage: {command} [PRESET] [--config FILE] [--section.key value ...]

Values come from the preset, then the YAML file, then the flags; the later wins. Presets:
{presets}
Without a preset it is {by_store} where a store is given (--data.root), else {by_itself}; with
--continue-from MODEL the one of {by_store} and its like that has the model's objective.

--config FILE       YAML with the same sections and keys, such as a run's config.yaml
--print-config      print the resolved configuration and stop
"""


def parse_train(
    argv: list[str], facts_of: FactsOf | None = None, origin_of: OriginOf | None = None
) -> TrainConfig:
    """Resolve `[PRESET] [--config FILE] [--section.key value ...]`: preset < YAML < flags.

    Without preset and file, `--run DIR --resume auto` uses the run's own configuration.
    Without `--run`, the preset's folder is used, with a number appended if it exists.
    A preset that fits itself to the store is told of it by `facts_of` (`data.facts.facts_of`), and
    what it chose is printed; without `facts_of` such presets are refused. A model that is continued
    is opened by `origin_of` (`training.continuing.origin_of`), and what is taken over is printed.

    Returns the resolved configuration, not yet validated. Raises SystemExit with code 0 after
    `--help` or `--print-config`.
    """
    args = _flags_with_new_names(argv)
    if "--help" in args or "-h" in args:
        abouts = [(name, about) for name, (about, _) in FITTED.items()]
        abouts += [(name, found.about) for name, found in PRESETS.items()]
        presets = "\n".join(f"  {name:<28}{about}" for name, about in abouts)
        command = cli.command(_PROG)
        names = {"by_store": BY_STORE, "by_itself": BY_ITSELF}
        say(_USAGE.format(command=command, presets=presets, **names))
    name = args.pop(0) if args and not args[0].startswith("-") else None
    file = _take(args, "--config")
    show = "--print-config" in args
    if show:
        args.remove("--print-config")
    values = {} if file is None else _load(Path(file))
    base, lines = _base(name, values, file or "", args, facts_of, origin_of)
    config = cli.parse(TrainConfig, args, default=base, prog=_PROG)
    if show:
        say("\n".join([*(f"# {line}" for line in lines), to_yaml(config).rstrip("\n")]))
        raise SystemExit(0)
    # A launcher starts several processes with the same words.
    if lines and os.environ.get("RANK", "0") == "0":
        say("\n".join(lines))
    if not _names(args, "run") and config.resume == "never":
        config = dataclasses.replace(config, run=_free_folder(config.run))
    return config


def _names(args: list[str], key: str) -> bool:
    """Whether a flag for this key is given; that of a switch may say no."""
    section, _, last = key.rpartition(".")
    flags = {f"{section}.{no}{last}".lstrip(".") for no in ("", "no_")}
    given = (arg[2:].partition("=")[0].replace("-", "_") for arg in args if arg.startswith("--"))
    return any(flag in flags for flag in given)


def _base(
    name: str | None,
    values: dict[str, Any],
    source: str,
    args: list[str],
    facts_of: FactsOf | None,
    origin_of: OriginOf | None,
) -> tuple[TrainConfig, list[str]]:
    """Return the configuration that the flags change, and lines on what was chosen."""
    if name is None and not source and ("auto" in args or "--resume=auto" in args):
        own = _own_config(cli.parse(TrainConfig, args, default=preset(BY_ITSELF), prog=_PROG))
        if own is not None:
            return apply_yaml(preset(BY_ITSELF), own), []
    origin = None
    if values.get("continue_from") or _names(args, "continue_from"):
        origin = _origin(values, source, args, origin_of)
    if name is None and origin is not None:
        name = f"{origin.config.objective.kind}-small"
    if name is None:
        rooted = leaves(values).get("data.root") is not None or _names(args, "data.root")
        name = BY_STORE if rooted else BY_ITSELF
    start = unfitted(FITTED[name][1]) if name in FITTED else preset(name)
    start = apply_values(start, values, source)
    if origin is None and name not in FITTED:
        return start, []
    asked = cli.parse(TrainConfig, args, default=start, prog=_PROG)
    in_file = leaves(with_new_names(values)[0])
    now = leaves(to_dict(asked))
    given = {key: value for key, value in now.items() if key in in_file or _names(args, key)}
    lines: list[str] = []
    settled: dict[str, Any] = {}
    if origin is not None:
        choices = taken(origin, start, given)
        settled = {choice.key: choice.value for choice in choices}
        start, lines = with_values(start, settled), describe(origin, choices)
    if name in FITTED:
        start, found = _fitted(name, start, asked, given | settled, facts_of)
        lines += [line for key, line in found if key not in settled]
    return start, lines


def _origin(
    values: dict[str, Any], source: str, args: list[str], origin_of: OriginOf | None
) -> Origin | None:
    """Open the model that a run continues, if there is one."""
    start = apply_values(TrainConfig(), values, source)
    asked = cli.parse(TrainConfig, args, default=start, prog=_PROG)
    if not asked.continue_from:
        return None
    own = _own_config(asked)
    if own is not None:
        # It was opened when the run began, and need not be there any more.
        return Origin(asked.continue_from, read_config(own), str(asked.run), begun=True)
    if origin_of is None:
        raise InputError("continue_from", asked.continue_from, "models are not opened here")
    return origin_of(asked.continue_from)


def _own_config(asked: TrainConfig) -> Path | None:
    """The file of the run that would be resumed, if it has been begun."""
    own = asked.run / "config.yaml"
    return own if asked.resume == "auto" and own.is_file() else None


def _fitted(
    name: str,
    start: TrainConfig,
    asked: TrainConfig,
    given: dict[str, Any],
    facts_of: FactsOf | None,
) -> tuple[TrainConfig, list[tuple[str, str]]]:
    """Fit a preset to the store; what is `given`, or what a run that goes on has, is not chosen.

    Returns lines too, with the keys that they are about.
    """
    if asked.data.root is None:
        fix = f"{name} fits itself to a store: add --data.root STORE (made by sjepa_fast.prepare)"
        raise InputError("data.root", "not given", fix)
    own = _own_config(asked)
    if own is not None:
        begun = leaves(to_dict(read_config(own)))
        given = {key: begun[key] for key in KEYS} | given
    if all(key in given for key in KEYS):
        return with_values(start, {key: given[key] for key in KEYS}), []
    if facts_of is None:
        raise InputError("preset", name, "it fits itself to a store, which is not read here")
    facts = facts_of(asked.data.root, given.get("data.split"))
    choices = fitted(FITTED[name][1], facts, given)[1]
    chosen = with_values(start, {choice.key: choice.value for choice in choices})
    return chosen, [("", f"{name} for {facts}:"), *((c.key, f"  {c}") for c in choices)]


def _free_folder(run: Path) -> Path:
    # A preset's own folder: the demo can be run again and again, and nothing is overwritten.
    tried, number = run, 1
    while tried.exists():
        number += 1
        tried = run.with_name(f"{run.name}-{number}")
    return tried


def check_resumable(now: TrainConfig, before: TrainConfig) -> None:
    """Raise InputError if a run would be resumed with other settings, for the first that differs.

    `now` is the configuration of this start, `before` the one in the run folder.
    """
    began = leaves(to_dict(before))
    for name, value in leaves(to_dict(now)).items():
        free = any(f"{name}.".startswith(f"{key}.") for key in FREE_ON_RESUME)
        # What older versions called off by default.
        free = free or (name, began[name], value) == ("runtime.compile", "off", "auto")
        if not free and value != began[name]:
            fix = "resume with the run's own value, or choose another --run"
            raise InputError(name, f"{value}, but the run began with {began[name]}", fix)
