# SPDX-License-Identifier: Apache-2.0
"""Which implementation runs: "triton" (CUDA), "cpu" (C++ SIMD), "torch" (the reference) or "auto".

Order of precedence: the op's `impl` argument, then `use(...)`, then the variable `SJEPA_IMPL`.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sjepa_kernels._checks import bad_value
from sjepa_kernels._triton import HAVE_TRITON, INTERPRETED
from sjepa_kernels.native import LIBRARY, warn_missing_library_once

IMPLS = ("auto", "triton", "cpu", "torch")

_default = os.environ.get("SJEPA_IMPL", "auto")
_warned = False


@contextmanager
def use(impl: str) -> Iterator[None]:
    """Set the implementation of every op called inside the block that does not name its own.

    Args:
        impl: "auto", "triton", "cpu" or "torch".

    Yields:
        Nothing.

    Raises:
        ValueError: For another name.
    """
    global _default
    if impl not in IMPLS:
        raise bad_value("impl", repr(impl), f"choose one of {', '.join(IMPLS)}")
    before, _default = _default, impl
    try:
        yield
    finally:
        _default = before


def default_impl() -> str:
    """Return the implementation that `use(...)` or else `SJEPA_IMPL` sets for calls without one."""
    return _default


def choose(impl: str, device: torch.device, *, cpu: bool = False) -> str:
    """Return the implementation to run: "triton", "cpu" or "torch".

    Args:
        impl: The `impl` argument of the op.
        device: Where the tensors are.
        cpu: Whether the op has C++ code for these inputs; where it has none, "cpu" means the
            reference.

    Returns:
        The choice.

    Raises:
        ValueError: The name is unknown, or the implementation cannot run here.
    """
    asked = _default if impl == "auto" else impl
    if asked not in IMPLS:
        raise bad_value("impl", repr(asked), f"choose one of {', '.join(IMPLS)}")
    if asked == "torch":
        return "torch"
    if asked == "triton":
        _check_triton(device)
        return "triton"
    if asked == "cpu":
        if device.type != "cpu":
            raise bad_value("impl", f"'cpu' with tensors on {device}", 'use "auto" or "triton"')
        if LIBRARY is None:
            raise bad_value(
                "impl", "'cpu' without the C++ library", "reinstall with a C++ compiler, or 'torch'"
            )
        return "cpu" if cpu else "torch"
    if device.type == "cuda":
        if HAVE_TRITON:
            return "triton"
        _warn_slow()
    elif device.type == "cpu" and cpu:
        if LIBRARY is not None:
            return "cpu"
        if not torch.compiler.is_compiling():
            warn_missing_library_once()
    return "torch"


def _check_triton(device: torch.device) -> None:
    if not HAVE_TRITON:
        raise bad_value("impl", "'triton' without Triton", 'pip install triton, or use "auto"')
    if device.type != "cuda" and not INTERPRETED:
        raise bad_value(
            "impl",
            f"'triton' with tensors on {device}",
            'move them to a CUDA device, use "auto", or set TRITON_INTERPRET=1 before the import',
        )


def _warn_slow() -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            "Triton is not installed; sjepa_kernels runs its PyTorch reference on CUDA",
            RuntimeWarning,
            stacklevel=4,
        )
