# SPDX-License-Identifier: Apache-2.0
"""What a run folder says of itself from its first moment on: its configuration and its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sjepa_fast.config.files import read_config, to_yaml
from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.config.validation import validate
from sjepa_fast.data.store import Store
from sjepa_fast.errors import InputError
from sjepa_fast.opening import read_text
from sjepa_fast.runtime.files import write_json, write_text

# What the weights that a run began with are, and the clips that those have seen.
CONTINUED, EARLIER_IDS = "continued_from.json", "earlier_train_ids.txt"
_TRAIN_IDS = "train_ids.txt"


def describe_run(config: TrainConfig, store: Store) -> None:
    """Write `config.yaml` and `data.json` into the run's folder, which exists."""
    write_text(config.run / "config.yaml", to_yaml(config))
    data: dict[str, Any] = {
        "store": store.name,
        "fingerprint": store.fingerprint,
        "split": config.data.split,
        "layout": store.layout.to_dict(),
    }
    if store.sets:
        data["sets"] = {found.name: found.split for found in store.sets}
    write_json(config.run / "data.json", data)


def describe_origin(config: TrainConfig, record: dict[str, Any]) -> None:
    """Write down which model a run continues, and the clips that it has seen, where they are known.

    They are if it is a run folder; a saved model does not say.
    """
    write_json(config.run / CONTINUED, record)
    source = Path(config.continue_from)
    if (source / _TRAIN_IDS).is_file():
        write_text(config.run / EARLIER_IDS, "\n".join(sorted(clips_seen(source))) + "\n")


def clips_seen(run: Path) -> set[str]:
    """Return the names of all clips that a run's encoder was trained on; empty if not known.

    Raises InputError if the run has no list of them that can be read.
    """
    names = read_text("run", run / _TRAIN_IDS).splitlines()
    if (run / EARLIER_IDS).is_file():
        names += read_text("run", run / EARLIER_IDS).splitlines()
    return {name for name in names if name}


def read_run(run: Path) -> TrainConfig:
    """Read the configuration that a run folder holds; raises InputError if it cannot work."""
    file = run / "config.yaml"
    if not file.is_file():
        raise InputError("run", f"{run} is not a run folder", "name a folder with a run")
    config = read_config(file)
    validate(config)
    return config
