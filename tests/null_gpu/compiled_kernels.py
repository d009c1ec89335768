"""Hands the launches of kernels that Inductor wrote to the interpreter too."""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

from torch._inductor.runtime.triton_heuristics import CachingAutotuner

from tests.null_gpu.interpreter import KernelLaunch, bound

_reloaded: dict[str, Any] = {}


def _kernel(tuner: Any) -> Any:
    """The kernel as Python has it; one that came out of Inductor's cache has lost that."""
    if tuner.fn.fn is not None:
        return tuner.fn
    name = tuner.inductor_meta["kernel_name"]
    if tuner.filename not in _reloaded:
        spec = importlib.util.spec_from_file_location(name, tuner.filename)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        _reloaded[tuner.filename] = getattr(module, name).fn
    return _reloaded[tuner.filename]


@contextlib.contextmanager
def compiled_kernels_wrapped(then: Callable[[KernelLaunch], None]) -> Iterator[None]:
    """Hand every launch of a compiled kernel to `then` once the driver has accepted it."""
    launch = CachingAutotuner.run

    def run(self: Any, *args: Any, stream: Any, **kwargs: Any) -> Any:
        result = launch(self, *args, stream=stream, **kwargs)
        (launcher,) = self.launchers
        own, grid = self._interpret_args_grid(args, launcher.config)
        then(bound(_kernel(self), own, launcher.config.kwargs, grid))
        return result

    def choose_fewest_programs(self: Any, *args: Any, **kwargs: Any) -> None:
        # Times mean nothing here, and the interpreter takes as long for a program of any size.
        self.launchers = [max(self.launchers, key=lambda x: math.prod(x.config.kwargs.values()))]

    with (
        patch.object(CachingAutotuner, "run", run),
        patch.object(CachingAutotuner, "autotune_to_one_config", choose_fewest_programs),
    ):
        yield
