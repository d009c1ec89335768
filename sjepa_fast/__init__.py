# SPDX-License-Identifier: Apache-2.0
"""Fast training of skeleton joint-embedding predictive architectures (S-JEPA)."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from sjepa_fast._version import __version__
from sjepa_fast._waiting import let_threads_sleep
from sjepa_fast.errors import InputError

if TYPE_CHECKING:
    from sjepa_fast.embedding.loading import load
    from sjepa_fast.embedding.model import Model

let_threads_sleep(os.environ)

__all__ = ["InputError", "Model", "__version__", "load"]

# Imported at their first use, because they import torch, which takes a second.
_LATER = {"load": "sjepa_fast.embedding.loading", "Model": "sjepa_fast.embedding.model"}


def __getattr__(name: str) -> Any:
    """Import what is imported at its first use."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LATER[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, also those that are not imported yet."""
    return sorted({*globals(), *__all__})
