# SPDX-License-Identifier: Apache-2.0
"""A saved model: `model.safetensors`, `config.json` and a card, in one folder.

`config.json` has size and SHA-256 of the weights, so a byte that has changed is found; nothing in
the folder can run code.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import safetensors.torch

from sjepa_fast._version import __version__
from sjepa_fast.config.files import apply_values, to_dict
from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.config.validation import validate
from sjepa_fast.embedding.card import model_card
from sjepa_fast.embedding.content import Content
from sjepa_fast.errors import InputError
from sjepa_fast.opening import check_fields, open_regular, read_json
from sjepa_fast.runtime.files import new_folder, write_json, write_text
from sjepa_fast.runtime.manifest import WEIGHTS, as_entry, entry_of, read_checked
from sjepa_fast.skeletons import SkeletonLayout

CONFIG, CARD = "config.json", "README.md"
FORMAT = 1
_LIBRARY = "sjepa_fast"
_FIELDS: dict[str, tuple[type, ...]] = {
    "weights": (dict,),
    "encoder": (str,),
    "step": (int,),
    "dtype": (str,),
    "trained_on": (dict,),
    "layout": (dict,),
    "config": (dict,),
    "results": (list,),
}


def write_model(content: Content, folder: Path) -> None:
    """Write a model; the folder appears when it is whole.

    Raises InputError if it exists and is not empty, or cannot be written.
    """
    config = dataclasses.replace(
        content.config,
        run=TrainConfig().run,
        continue_from="",
        data=dataclasses.replace(content.config.data, root=None),
    )
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError("folder", f"{folder} is not empty", "choose a new folder")
        with new_folder(folder) as new:
            dense = {name: tensor.contiguous() for name, tensor in content.weights.items()}
            safetensors.torch.save_file(dense, new / WEIGHTS, {"format": "pt"})
            values = {
                "library_name": _LIBRARY,
                "format": FORMAT,
                "version": __version__,
                "weights": entry_of(new / WEIGHTS)._asdict(),
                "encoder": content.encoder,
                "step": content.step,
                "dtype": content.dtype,
                "trained_on": content.trained_on,
                "layout": content.layout.to_dict(),
                "config": to_dict(config),
                "results": content.results,
            }
            write_json(new / CONFIG, values)
            write_text(new / CARD, model_card(content))
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        value = f"{folder} cannot be written ({reason})"
        raise InputError("folder", value, "choose another folder") from error


def read_model(folder: Path) -> Content:
    """Read what `write_model` wrote.

    Raises InputError if it is damaged, of another version, or no model of this library.
    """
    file = folder / CONFIG
    values = read_json("model", file)
    if values.get("library_name") != _LIBRARY:
        fix = "use a folder that save_pretrained wrote"
        raise InputError("model", f"{file} is of no {_LIBRARY} model", fix)
    if values.get("format") != FORMAT:
        fix = f"this version reads {FORMAT}; use the version of sjepa_fast that wrote it"
        by = f"{values.get('format')!r:.20}, written by version {values.get('version')!r:.40}"
        raise InputError("model", f"{folder} has the format {by}", fix)
    check_fields("model", file, values, _FIELDS)
    entry = as_entry(values["weights"])
    if entry is None:
        raise InputError("model", f"{file} has no size and sha256 of its weights", "fetch it again")
    config = apply_values(TrainConfig(), values["config"], file)
    validate(config)
    path = folder / WEIGHTS
    refuse_pickle(path)
    weights, _ = read_checked(path, entry)
    return Content(
        origin=folder.name,
        path=path,
        config=config,
        layout=SkeletonLayout.from_dict(values["layout"]),
        weights=weights,
        encoder=values["encoder"],
        step=values["step"],
        dtype=values["dtype"],
        trained_on=_plain(values["trained_on"]),
        results=[_plain(result) for result in values["results"] if isinstance(result, dict)],
    )


def refuse_pickle(path: Path) -> None:
    """Raise InputError if a file is a pickle, bare or in torch.save's zip, whatever its name."""
    with open_regular("model", path) as file:
        begin = file.read(4)
    if begin[:1] == b"\x80" or begin == b"PK\x03\x04":
        fix = "use model.safetensors; for MAMP: python -m sjepa_fast.convert mamp FILE OUT"
        raise InputError("model", f"{path} is a pickle, which can run code", fix)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in values.items()}
