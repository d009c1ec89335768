# SPDX-License-Identifier: Apache-2.0
"""`sjepa_fast.load`: a model from a run, a saved folder, the Hub, or the package itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal, get_args

from sjepa_fast.embedding.content import Content, run_content
from sjepa_fast.embedding.hub import fetch_model, is_hub_id
from sjepa_fast.embedding.model import Model
from sjepa_fast.embedding.saved import CONFIG, read_model, refuse_pickle
from sjepa_fast.errors import InputError, nearest

# Comes with the package; docs/embedding.md says how it was made and what it is worth.
TINY = Path(__file__).parent / "tiny"
Encoder = Literal["target", "view"]
_FIX = "name a run folder, a saved model, owner/name on the Hub, or tiny"


def load(
    source: str | Path,
    *,
    encoder: Encoder = "target",
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
) -> Model:
    """Return a trained model, ready to embed clips.

    >>> import sjepa_fast
    >>> sjepa_fast.load("tiny", device="cpu")
    Model(tiny: kinect22, width 64, 3 blocks, 32 frames, cpu)

    Args:
        source: A run folder, a folder that `Model.save_pretrained` wrote, the name of one on the
            Hugging Face Hub (owner/name), or "tiny", a small model that comes with the package.
        encoder: Of a run: target, the EMA encoder, or the view encoder where there is none; or
            view. The others hold one.
        device: auto, cpu, cuda or cuda:0.
        dtype: Compute precision, float32 or bfloat16; auto: bfloat16 on a GPU that has it, else
            that of the training.
        revision: Of a model on the Hub: branch, tag or commit.

    Returns:
        The model.

    Raises:
        InputError: There is no such model, or it is damaged or of another version.
    """
    if encoder not in get_args(Encoder):
        raise InputError("encoder", encoder, nearest(str(encoder), list(get_args(Encoder))))
    return Model(open_content(source, encoder, revision), device=device, dtype=dtype)


def open_content(
    source: str | Path, encoder: Encoder = "target", revision: str | None = None
) -> Content:
    """Open what `load` takes, with the same arguments and errors, without making a model of it."""
    path = Path(source)
    if not str(source):
        raise InputError("model", "an empty name", _FIX)
    if path.is_dir():
        if (path / CONFIG).exists():
            return read_model(path)
        if (path / "config.yaml").exists():
            return run_content(path, encoder)
        for file in sorted(path.iterdir()):
            if file.is_file() and file.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt"):
                refuse_pickle(file)
        fix = "name a run folder, or one that save_pretrained wrote"
        raise InputError("model", f"{path} has neither config.yaml nor {CONFIG}", fix)
    if path.exists():
        if path.is_file():
            refuse_pickle(path)
        raise InputError("model", f"{path} is no folder", "name the folder of the model")
    if source == "tiny":
        return dataclasses.replace(read_model(TINY), origin="tiny")
    # A folder that was meant lies beside others; a name on the Hub does not.
    if is_hub_id(str(source)) and not path.parent.is_dir():
        return dataclasses.replace(
            read_model(fetch_model(str(source), revision)), origin=str(source)
        )
    raise InputError("model", f"{source} does not exist", _FIX)
