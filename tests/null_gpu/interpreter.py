"""Runs the launches of Triton kernels in Triton's interpreter, on the addresses of their tensors.

A launch still goes to the null driver, which checks it; then the same function runs program by
program with NumPy. Triton's own switch for that, `TRITON_INTERPRET`, replaces the compiler for the
whole process; here both run, in turns.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction

from tests.null_gpu.device_memory import DeviceMemory, StaleAddress, extent
from tests.null_gpu.interpreter_builder import LIBDEVICE, Builder


@dataclass
class KernelLaunch:
    """One launch of a kernel, on addresses; it keeps no memory alive."""

    kernel: JITFunction[Any]
    arguments: dict[str, Any]
    grid: tuple[int, ...]
    stretches: list[tuple[int, int]]

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__)

    def run(self) -> None:
        """Compute all programs of the launch."""
        builder = Builder()
        grid = (*self.grid, 1, 1)[:3]
        with _interpreting(builder, self.name):
            function = _rewritten(self.kernel)
            builder.set_grid_dim(*grid)
            for place in np.ndindex(*grid):
                builder.set_grid_idx(*place)
                function(**self.arguments)


@contextlib.contextmanager
def kernels_wrapped(then: Callable[[KernelLaunch], None]) -> Iterator[None]:
    """Hand every launch inside to `then` once the driver has accepted it."""
    launch = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        compiled = launch(self, *args, grid=grid, warmup=warmup, **kwargs)
        if not warmup:
            then(bound(self, args, kwargs, grid))
        return compiled

    with patch.object(JITFunction, "run", run):
        yield


def bound(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any], grid: Any) -> KernelLaunch:
    """Give each parameter its argument; what is left of the keywords are compiler options."""
    named = {key: value for key, value in kwargs.items() if key in kernel.arg_names}
    bound = kernel.signature.bind(*args, **named)
    bound.apply_defaults()
    constant = {p.name for p in kernel.params if p.is_constexpr}
    arguments = {
        name: value if name in constant else interpreter._implicit_cvt(value)
        for name, value in bound.arguments.items()
    }
    tensors = [x for x in bound.arguments.values() if isinstance(x, Tensor)]
    chosen = grid(bound.arguments) if callable(grid) else grid
    return KernelLaunch(kernel, arguments, tuple(chosen), [extent(x) for x in tensors])


def _rewritten(function: Any) -> Callable[..., Any]:
    """The Python function of a kernel, or of what it calls, in the form that is interpreted."""
    found: Callable[..., Any] = interpreter.InterpretedFunction(function.fn).rewrite()
    return found


class _Checked:
    """The interpreter's access to memory, refused outside of what the allocator holds."""

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel
        self.memory = DeviceMemory()
        self.real = interpreter._interpreter

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def load(self, places: Any, mask: Any, other: Any, dtype: Any) -> Any:
        self._check("reads", places, mask, np.dtype(dtype).itemsize)
        return self.real.load(places, mask, other, dtype)

    def store(self, places: Any, value: Any, mask: Any) -> Any:
        self._check("writes", places, mask, value.itemsize)
        return self.real.store(places, value, mask)

    def atomic_rmw(self, op: Any, places: Any, value: Any, mask: Any, order: Any) -> Any:
        self._check("changes", places, mask, value.itemsize)
        return self.real.atomic_rmw(op, places, value, mask, order)

    def atomic_cas(self, places: Any, expected: Any, value: Any, order: Any) -> Any:
        self._check("changes", places, np.ones_like(places, dtype=bool), value.itemsize)
        return self.real.atomic_cas(places, expected, value, order)

    def _check(self, verb: str, places: Any, mask: Any, size: int) -> None:
        used = np.asarray(places)[np.broadcast_to(np.asarray(mask, dtype=bool), np.shape(places))]
        strays = self.memory.strays(used.astype(np.uint64), size)
        if strays.size:
            raise StaleAddress(f"{self.kernel} {verb} {int(strays[0]):#x}, no device memory")


@contextlib.contextmanager
def _interpreting(builder: Builder, kernel: str) -> Iterator[None]:
    """Make the words of Triton's language compute, until the end of a launch."""
    with (
        _language_patched(),
        patch.object(interpreter.interpreter_semantic, "builder", builder),
        patch.object(interpreter, "_interpreter", _Checked(kernel)),
        patch.object(JITFunction, "__call__", lambda self, *a, **k: _rewritten(self)(*a, **k)),
        # NumPy warns of what GPUs do silently: wrap integers, divide by zero, compare NaN.
        np.errstate(all="ignore"),
        warnings.catch_warnings(action="ignore", category=RuntimeWarning),
    ):
        yield


_changes: list[tuple[Any, str, Any]] = []


@contextlib.contextmanager
def _language_patched() -> Iterator[None]:
    """Triton's own patches of its language, found once: to find them takes longer than a launch."""

    class Everything:
        """Stands for a function whose module sees both names of the language."""

        __globals__ = {"tl": tl, "core": tl.core}  # noqa: RUF012 (no class to be shared)

    if not _changes:
        scope = interpreter._patch_lang(Everything)
        seen = {(id(target), name): target for target, name, _ in scope._changes}
        _changes.extend((t, name, getattr(t, name)) for (_, name), t in seen.items())
        scope.restore()
        _changes.extend((libdevice, name, function) for name, function in LIBDEVICE.items())
    before = [(target, name, target.__dict__.get(name)) for target, name, _ in _changes]
    try:
        for target, name, value in _changes:
            setattr(target, name, value)
        yield
    finally:
        for target, name, value in before:
            if value is None:
                delattr(target, name)
            else:
                setattr(target, name, value)
