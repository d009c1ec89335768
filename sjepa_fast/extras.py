# SPDX-License-Identifier: Apache-2.0
"""What is not installed with the package: which extra has it, and the command that installs it."""

from __future__ import annotations

from importlib.util import find_spec

from sjepa_fast.errors import InputError

# By module: the distribution, and the extra of sjepa-fast that it is in.
EXTRAS = {
    "matplotlib": ("matplotlib", "viz"),
    "PIL": ("pillow", "viz"),
    "sklearn": ("scikit-learn", "viz"),
    "umap": ("umap-learn", "viz"),
    "tensorboard": ("tensorboard", "log"),
    "wandb": ("wandb", "log"),
    "trackio": ("trackio", "log"),
    "huggingface_hub": ("huggingface_hub", "hub"),
    "onnx": ("onnx", "export"),
    "onnxscript": ("onnxscript", "export"),
    "onnxruntime": ("onnxruntime", "export"),
    "pybvh": ("pybvh", "mocap"),
    "c3d": ("c3d", "mocap"),
}
# What draws a picture.
DRAWING = ("matplotlib", "PIL")


def _missing(modules: tuple[str, ...]) -> list[tuple[str, str]]:
    return [EXTRAS[name] for name in modules if find_spec(name) is None]


def how_to_install(*modules: str) -> str:
    """Return the command that installs those of some modules that are missing; empty if none is."""
    missing = _missing(modules)
    if not missing:
        return ""
    names = " ".join(distribution for distribution, _ in missing)
    extras = ",".join(dict.fromkeys(extra for _, extra in missing))
    return f"pip install {names} (or: pip install 'sjepa-fast[{extras}]')"


def require(argument: str, wanted: object, *modules: str) -> None:
    """Raise InputError, with the command that installs them, if modules are missing.

    `argument` and `wanted` are what was asked for: `format`, `onnx`.
    """
    if missing := _missing(modules):
        names = ", ".join(distribution for distribution, _ in missing)
        value = f"{wanted} needs {names}, not installed here"
        raise InputError(argument, value, f"run: {how_to_install(*modules)}")
