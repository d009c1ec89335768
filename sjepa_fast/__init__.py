"""Fast training of skeleton joint-embedding predictive architectures (S-JEPA)."""

import os
from importlib.util import find_spec

from sjepa_fast._version import __version__
from sjepa_fast._waiting import let_threads_sleep
from sjepa_fast.errors import InputError

let_threads_sleep(os.environ)

if find_spec("sjepa_kernels") is None:
    raise ImportError(
        "sjepa_fast needs its second package, sjepa_kernels, which is not importable; install both "
        "with `pip install -e .` in the repository, or put the repository's kernels/ folder on "
        "PYTHONPATH"
    )

__all__ = ["InputError", "__version__"]
