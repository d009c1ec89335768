"""Loads the optional C++ library that lies beside this file (see csrc/README.md)."""

import ctypes
import logging
from pathlib import Path

ABI_VERSION = 6


def _load() -> ctypes.CDLL | None:
    here = Path(__file__).parent
    built = [*here.glob("_csrc*.so"), *here.glob("_csrc*.pyd")]
    for path in sorted(built, key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            library = ctypes.CDLL(str(path))
            if library.sjepa_abi_version() == ABI_VERSION:
                return library
        except (OSError, AttributeError):
            continue
    return None


LIBRARY = _load()
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
