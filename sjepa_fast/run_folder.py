"""What a run folder says of itself from its first moment on: its configuration and its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sjepa_fast.config.files import read_config, to_yaml
from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.config.validation import validate
from sjepa_fast.data.store import Store
from sjepa_fast.errors import InputError
from sjepa_fast.runtime.files import write_json, write_text


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


def read_run(run: Path) -> TrainConfig:
    """Read the configuration that a run folder holds; raises InputError if it cannot work."""
    file = run / "config.yaml"
    if not file.is_file():
        raise InputError("run", f"{run} is not a run folder", "name a folder with a run")
    config = read_config(file)
    validate(config)
    return config
