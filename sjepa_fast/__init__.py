"""Fast training of skeleton joint-embedding predictive architectures (S-JEPA)."""

import os

from sjepa_fast._version import __version__
from sjepa_fast._waiting import let_threads_sleep
from sjepa_fast.errors import InputError

let_threads_sleep(os.environ)

__all__ = ["InputError", "__version__"]
