"""Lets a step on the null GPU compute: every op and kernel also runs on the CPU, at its addresses.

The null GPU accepts allocations, launches and captures by the driver's rules, but no kernel
computes. Inside `compute_values` each op on CUDA tensors first runs as it is, so that the rules
hold, and then once more on CPU tensors over the same memory. During a capture nothing is computed:
what would be becomes a host function of the graph, which knows addresses alone, and runs at each
replay between the graph's copies. So a replay reads whatever lies at an address by then, and an
address whose tensor has died is seen as wrong values: free memory is filled with NaN before each
replay, and by `poison_free_memory` at any other time.

Not seen are an order that only the host gives (a missing wait between streams) and the roundings of
GPU kernels.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.null_gpu.compiled_kernels import compiled_kernels_wrapped
from tests.null_gpu.device_memory import DeviceMemory, alias, check_all_held, extent, poison
from tests.null_gpu.interpreter import KernelLaunch, kernels_wrapped
from tests.null_gpu.op_rules import EMPTY, NOTHING_TO_COMPUTE, RULES

_HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@dataclass
class Work:
    """What one op or kernel computes, on addresses; it keeps no memory alive."""

    name: str
    run: Callable[[], None]
    # Memory that must exist when it runs; what a kernel reaches by pointers it checks itself.
    stretches: list[tuple[int, int]]


class Values:
    """Computes works now or, during a capture, at each replay; counts them by name."""

    def __init__(self) -> None:
        self.computed: dict[str, int] = {}
        self.captured: list[Work] = []
        self.error: Exception | None = None
        self.memory: DeviceMemory | None = None
        self.host_function = _HostFunction(self._run_captured)

    def do(self, work: Work) -> None:
        """Compute now, or let the graph that is being captured do it."""
        self.computed[work.name] = self.computed.get(work.name, 0) + 1
        if not torch.cuda.is_current_stream_capturing():
            work.run()
            return
        self.captured.append(work)
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        number = ctypes.c_void_p(len(self.captured))
        status = ctypes.CDLL(None).cudaLaunchHostFunc(stream, self.host_function, number)
        if status != 0:
            raise RuntimeError(f"{work.name} cannot be captured: CUDA error {status}")

    def replayed(self, replay: Callable[[], None]) -> None:
        """Replay a graph, and raise what its host functions could not."""
        self.memory = DeviceMemory()
        self.memory.poison_free()
        try:
            replay()
        finally:
            error, self.error, self.memory = self.error, None, None
        if error is not None:
            raise error

    def _run_captured(self, number: int) -> None:
        if self.error is not None:
            return
        work = self.captured[number - 1]
        try:
            assert self.memory is not None, "a graph was launched by something else than replay()"
            check_all_held(self.memory, work.name, work.stretches)
            with _disable_current_modes(), torch.no_grad():
                work.run()
        except Exception as error:
            self.error = error


class NoRule(NotImplementedError):
    """An op whose values cannot be computed as its CPU form; `op_rules.py` needs a line."""


@contextlib.contextmanager
def compute_values() -> Iterator[Values]:
    """Compute values on the null GPU; also in backward passes and in captures begun inside."""
    values = Values()
    replay = torch.cuda.CUDAGraph.replay

    def launch(found: KernelLaunch) -> None:
        with _disable_current_modes():
            values.do(Work(found.name, found.run, found.stretches))

    with (
        patch.object(
            torch.cuda.CUDAGraph, "replay", lambda self: values.replayed(lambda: replay(self))
        ),
        kernels_wrapped(launch),
        compiled_kernels_wrapped(launch),
        _OpValues(values),
    ):
        yield values


def poison_free_memory() -> None:
    """Make every read of freed memory give NaN; to be called before an eager step."""
    DeviceMemory().poison_free()


# Other kinds of tensors, a compiler's, have no memory.
_REAL = (Tensor, torch.nn.Parameter)


class _OpValues(TorchDispatchMode):
    """Computes ATen ops on CUDA tensors, also those that autograd's threads run."""

    def __init__(self, values: Values) -> None:
        super().__init__()
        self.values = values

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let blocks be compiled inside; what they launch is seen when it runs."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        used = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if not all(type(x) in _REAL and not x.is_meta for x in used):
            return func(*args, **kwargs)
        if func.namespace != "aten":
            return self._run_custom(func, args, kwargs)
        # Inside of a custom op, what consists of other ops arrives whole; some, as contiguous(),
        # return their argument or a copy.
        if func._can_decompose():
            with self:
                return func.decompose(*args, **kwargs)
        written = _written(func, args, kwargs)
        out = func(*args, **kwargs)
        if func in EMPTY:
            self._fill_empty(func, out)
        elif func not in NOTHING_TO_COMPUTE and not _is_view(func):
            made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
            on_gpu = any(x.is_cuda for x in [*made, *used])
            if on_gpu and (made or written):
                self.values.do(_work(func, args, kwargs, out, [*made, *used]))
        return out

    def _run_custom(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the body of a custom op under this mode, so that the ops in it are seen."""
        definition = OPDEFS.get(func._schema.name)
        if definition is None:
            return func(*args, **kwargs)
        with self:
            return definition._init_fn(*args, **kwargs)

    def _fill_empty(self, func: Any, out: Tensor) -> None:
        if out.is_cuda and out.numel():
            seen = alias(out)
            self.values.do(Work(str(func), lambda: poison(seen), [extent(out)]))


def _is_view(func: Any) -> bool:
    aliases = [r.alias_info for r in func._schema.returns if r.alias_info is not None]
    return bool(aliases) and not any(found.is_write for found in aliases)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """CUDA tensors that the op changes in place."""
    found: list[Tensor] = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            found += [x for x in tree_leaves(value) if isinstance(x, Tensor) and x.is_cuda]
    return found


def _seen_by_work(x: Tensor) -> Tensor:
    """The tensor as its work will find it when it runs."""
    if x.is_cuda or x.is_pinned():
        return alias(x)
    # A capture keeps the value that a number has now, and refuses copies of pageable memory.
    return x.clone() if torch.cuda.is_current_stream_capturing() else x


def _work(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, tensors: list[Tensor]
) -> Work:
    """The op's computation on CPU tensors over the memory of its arguments and outputs."""
    name = str(func)
    args, kwargs = tree_map_only(Tensor, _seen_by_work, (args, kwargs))
    kwargs = _for_cpu(kwargs)
    outputs = [_output(value, result) for value, result in _returned(func, out)]
    rule = RULES.get(func)

    def run() -> None:
        try:
            if rule is None:
                _store(name, func(*args, **kwargs), outputs)
            else:
                rule(args, kwargs, outputs)
        except (RuntimeError, NotImplementedError, TypeError) as error:
            raise NoRule(f"{name} on the CPU: {error}; it needs a rule in op_rules.py") from error

    return Work(name, run, [extent(x) for x in tensors if x.is_cuda])


def _returned(func: Any, out: Any) -> list[tuple[Any, Any]]:
    """The op's returned values, each with its entry in the schema; a returned list has one."""
    results = list(func._schema.returns)
    if not results:
        return []
    values = out if isinstance(out, (tuple, list)) else [out]
    return list(zip(values, results if len(results) > 1 else results * len(values), strict=True))


def _output(value: Any, result: Any) -> Any:
    """Where a returned value's numbers go; None where that is an argument."""
    if result.alias_info is not None:
        return None
    return tree_map_only(Tensor, alias, value) if not isinstance(value, int) else None


def _for_cpu(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments for tensors on the CPU; random numbers come from its generator."""
    changed = dict(kwargs)
    if changed.get("device") is not None:
        changed["device"] = torch.device("cpu")
    changed.pop("pin_memory", None)
    if changed.get("generator") is not None:
        changed["generator"] = None
    return changed


def _store(name: str, found: Any, outputs: list[Any]) -> None:
    """Copy what the CPU found into the outputs; None is an output that has been written."""
    if not outputs:
        return
    values = found if isinstance(found, (tuple, list)) else [found]
    for value, output in zip(values, outputs, strict=True):
        if isinstance(output, list):
            _store(name, value, output)
        elif output is not None:
            if value.shape != output.shape:
                raise RuntimeError(f"shape {tuple(value.shape)}, on CUDA {tuple(output.shape)}")
            output.copy_(value)
