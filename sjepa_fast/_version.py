# SPDX-License-Identifier: Apache-2.0
"""The version: that of sjepa_kernels, which is read and not imported, because it imports torch."""

from importlib.util import find_spec
from pathlib import Path
from runpy import run_path

_kernels = find_spec("sjepa_kernels")
if _kernels is None or _kernels.origin is None:
    raise ImportError(
        "sjepa_fast needs its second package, sjepa_kernels, which is not importable; install both "
        "with `pip install ./kernels .` in the repository, or put the repository's kernels/ folder "
        "on PYTHONPATH"
    )

__version__: str = run_path(str(Path(_kernels.origin).with_name("_version.py")))["__version__"]
