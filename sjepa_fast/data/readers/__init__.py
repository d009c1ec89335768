# SPDX-License-Identifier: Apache-2.0
"""One reader per file format, and the table of their names.

A reader's open function takes the path of the raw data and, as keywords, the options that it has
among those of `sjepa_fast.prepare`; it returns a `Source` of `Record`s.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

from sjepa_fast.data.readers import ntu, pku, ragged_npz
from sjepa_fast.data.readers.ctrgcn_npz import open_ctrgcn
from sjepa_fast.data.readers.generic import open_generic
from sjepa_fast.data.readers.pyskl import open_pyskl
from sjepa_fast.data.readers.record import Source

READERS: dict[str, Callable[..., Source]] = {
    **{name: partial(ntu.open_ntu, name) for name in ntu.CLASSES},
    **{name: partial(pku.open_pku, name) for name in pku.NAMES},
    **{name: partial(ragged_npz.open_ragged, name) for name in ragged_npz.SETS},
    "ctrgcn": open_ctrgcn,
    "pyskl": open_pyskl,
    "generic": open_generic,
}


def options_of(name: str) -> tuple[str, ...]:
    """Return the options that a reader has: the keyword-only parameters of its open function."""
    parameters = inspect.signature(READERS[name]).parameters.values()
    return tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)
