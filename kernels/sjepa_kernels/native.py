# SPDX-License-Identifier: Apache-2.0
"""Loads the optional C++ library that lies beside this file (see csrc/README.md)."""

import ctypes
import logging
import os
from pathlib import Path

ABI_VERSION = 11


SUFFIX = ".dll" if os.name == "nt" else ".so"


def load_library(path: Path, version: str, wanted: int) -> ctypes.CDLL | None:
    """Load a library with a C ABI whose function named `version` returns `wanted`.

    Returns None where it is not built, cannot be loaded or has another version.
    """
    try:
        library = ctypes.CDLL(str(path.with_suffix(SUFFIX)))
        return library if getattr(library, version)() == wanted else None
    except (OSError, AttributeError):
        return None


LIBRARY = load_library(Path(__file__).with_name("_csrc"), "sjepa_abi_version", ABI_VERSION)
_warned = False


def warn_missing_library_once() -> None:
    """Log, once per process, that CPU tensors take the slower PyTorch path."""
    global _warned
    if not _warned:
        _warned = True
        logging.getLogger("sjepa_kernels").warning(
            "the C++ kernels are not built; CPU tensors use the PyTorch reference "
            "(reinstall with a C++ compiler to build them)"
        )
