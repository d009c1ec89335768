# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of many tensors at once."""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from sjepa_kernels._checks import (
    HALVES,
    bad_type,
    bad_value,
    check_float,
    check_fraction,
    check_not_expanded,
    check_once,
    check_shape,
    is_dense,
)
from sjepa_kernels._dispatch import choose
from sjepa_kernels._library import Op
from sjepa_kernels._triton import TL_DTYPES, compute_dtype, device_scalar, tl, triton
from sjepa_kernels.native import LIBRARY

_CHUNK = 4096


class _Group(NamedTuple):
    """Tensors in the order of their targets; the shadows may be missing."""

    targets: list[Tensor]
    sources: list[Tensor]
    shadows: list[Tensor]


def ema_update_ref_(
    targets: list[Tensor], sources: list[Tensor], shadows: list[Tensor], weight: float | Tensor
) -> None:
    """Plain PyTorch form: t <- t + weight (s - t), then shadow <- t, with weight = 1 - momentum."""
    same = [s.to(t.dtype) for t, s in zip(targets, sources, strict=True)]
    if not targets:
        return
    if isinstance(weight, Tensor):
        for target, source in zip(targets, same, strict=True):
            target.lerp_(source, weight.to(target.dtype))
    else:
        torch._foreach_lerp_(targets, same, weight)
    if shadows:
        torch._foreach_copy_(shadows, targets)


@triton.jit
def _ema_kernel(
    tensors, chunks, weight,
    TARGET: tl.constexpr, SOURCE: tl.constexpr, SHADOW: tl.constexpr, HAS_SHADOW: tl.constexpr,
    COMPUTE: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One program per chunk. A row of `tensors` is (target, source, shadow, count)."""
    program = tl.program_id(0)
    tensor = tensors + 4 * tl.load(chunks + 2 * program)
    start = tl.load(chunks + 2 * program + 1)
    target = tl.load(tensor).to(tl.pointer_type(TARGET))
    source = tl.load(tensor + 1).to(tl.pointer_type(SOURCE))
    if HAS_SHADOW:
        shadow = tl.load(tensor + 2).to(tl.pointer_type(SHADOW))
    count = tl.load(tensor + 3)
    if ALIGNED:
        target = tl.multiple_of(target, 16)
        source = tl.multiple_of(source, 16)
        if HAS_SHADOW:
            shadow = tl.multiple_of(shadow, 16)
    w = tl.load(weight).to(COMPUTE)
    start = tl.multiple_of(start, CHUNK)
    i = start + tl.arange(0, CHUNK)
    # A mask of unknown length would forbid vector loads, so whole chunks go without.
    if start + CHUNK <= count:
        t = tl.load(target + i).to(COMPUTE)
        s = tl.load(source + i).to(COMPUTE)
        t = tl.where(w < 0.5, t + w * (s - t), s - (s - t) * (1.0 - w))
        tl.store(target + i, t)
        if HAS_SHADOW:
            # By way of float32: the interpreter casts float64 to bfloat16 wrongly.
            tl.store(shadow + i, t.to(tl.float32))
    else:
        inside = i < count
        t = tl.load(target + i, mask=inside, other=0.0).to(COMPUTE)
        s = tl.load(source + i, mask=inside, other=0.0).to(COMPUTE)
        t = tl.where(w < 0.5, t + w * (s - t), s - (s - t) * (1.0 - w))
        tl.store(target + i, t, mask=inside)
        if HAS_SHADOW:
            tl.store(shadow + i, t.to(tl.float32), mask=inside)


# Addresses of a target, its source and its shadow (or 0), and how many elements they have.
_Row = tuple[int, int, int, int]


class _Tables:
    """Addresses and chunks of a group of tensors with the same dtypes, on their device."""

    def __init__(self, rows: list[_Row], device: torch.device) -> None:
        chunks = [(k, start) for k, row in enumerate(rows) for start in range(0, row[3], _CHUNK)]
        self.aligned = all(address % 16 == 0 for row in rows for address in row[:3])
        self.programs = len(chunks)
        self.tensors = torch.tensor(rows, dtype=torch.int64, device=device)
        self.chunks = torch.tensor(chunks, dtype=torch.int64, device=device)


class _Arrays:
    """The same addresses as C arrays, for a group on the CPU."""

    def __init__(self, rows: list[_Row], device: torch.device) -> None:
        count = len(rows)
        *columns, lengths = zip(*rows, strict=True)
        addresses = [(ctypes.c_void_p * count)(*column) for column in columns]
        self.arguments = *addresses, (ctypes.c_int64 * count)(*lengths), ctypes.c_int64(count)


# Tables of a group by its first target, as long as that lives: a captured graph keeps the addresses
# of tables, not the tables. With the addresses they hold, so that one can never be stale: a tensor
# that moved asks for another. A few are kept, for sources that are new in every call.
_tables = WeakTensorKeyDictionary()
_MAX_TABLES = 16


def _tables_for(kind: type[_Tables] | type[_Arrays], group: _Group) -> Any:
    targets, sources, shadows = group
    addresses = [x.data_ptr() for tensors in group for x in tensors]
    key = (kind, targets[0].device, *addresses, *[t.numel() for t in targets])
    held: dict[tuple[object, ...], Any] = _tables.setdefault(targets[0], {})
    if key not in held:
        rows = [
            (t.data_ptr(), s.data_ptr(), shadows[k].data_ptr() if shadows else 0, t.numel())
            for k, (t, s) in enumerate(zip(targets, sources, strict=True))
        ]
        if len(held) >= _MAX_TABLES:
            held.pop(next(iter(held)))
        held[key] = kind(rows, targets[0].device)
    return held[key]


def _launch(*args: Any) -> None:
    """Run the kernel on the arguments of `_body` but its last."""
    *group, weight = args
    tables = _tables_for(_Tables, _Group(*group))
    target, source, shadow = (TL_DTYPES[x[0].dtype] if x else None for x in group)
    _ema_kernel[(tables.programs,)](
        tables.tensors, tables.chunks, weight,
        TARGET=target, SOURCE=source, SHADOW=shadow, HAS_SHADOW=shadow is not None,
        COMPUTE=TL_DTYPES[compute_dtype(group[0][0].dtype)],
        ALIGNED=tables.aligned, CHUNK=_CHUNK, num_warps=8,
    )  # fmt: skip


def _run_cpp(*args: Any) -> None:
    """Run the C++ code on the arguments of `_body` but its last."""
    assert LIBRARY is not None
    *group, weight = args
    status = LIBRARY.sjepa_ema_f32(
        *_tables_for(_Arrays, _Group(*group)).arguments,
        ctypes.c_void_p(weight.data_ptr()),
        ctypes.c_int(torch.get_num_threads()),
    )
    if status != 0:
        raise MemoryError("ema_update_: no memory for the table of chunks")


def _body(
    targets: list[Tensor], sources: list[Tensor], shadows: list[Tensor], weight: Tensor, impl: str
) -> None:
    """Update one group: non-empty tensors, dense in the same order, of the same dtypes."""
    (_run_cpp if impl == "cpu" else _launch)(targets, sources, shadows, weight)


_op = Op("ema_update_", _body, None, mutates=("targets", "shadows"))


def _groups(tensors: _Group) -> list[tuple[str, _Group]]:
    """Return (kind, group): "fused" groups of equal dtypes, and a "plain" one for the rest."""
    fused: dict[tuple[torch.dtype, ...], list[int]] = {}
    plain: list[int] = []
    for k, target in enumerate(tensors.targets):
        others = [tensors.sources[k], *tensors.shadows[k : k + 1]]
        if target.numel() == 0:
            continue
        if is_dense(target) and all(other.stride() == target.stride() for other in others):
            fused.setdefault((target.dtype, *(o.dtype for o in others)), []).append(k)
        else:
            plain.append(k)
    kinds = [*(("fused", positions) for positions in fused.values()), ("plain", plain)]
    return [
        (kind, _Group(*([of[k] for k in positions] if of else [] for of in tensors)))
        for kind, positions in kinds
        if positions
    ]


class EmaPlan:
    """Moves target tensors towards source tensors: t <- m t + (1 - m) s.

    Checks the lists once and keeps what the fused update needs, so that a step is one call.

    Args:
        targets: Tensors to update in place, e.g. the target encoder's parameters. Keep them in
            float32: in half precision a momentum near 1 rounds every change away.
        sources: Tensors to move towards, in the same order and shapes.
        shadows: Optional half-precision copies of the targets, written in the same pass.
        impl: "auto", "triton", "cpu" or "torch".

    Raises:
        TypeError: A tensor is not floating point.
        ValueError: The lists do not pair up, a target or shadow appears twice or is expanded, or
            devices differ.
    """

    def __init__(
        self,
        targets: Sequence[Tensor],
        sources: Sequence[Tensor],
        shadows: Sequence[Tensor] | None = None,
        *,
        impl: str = "auto",
    ) -> None:
        tensors = _Group(list(targets), list(sources), list(shadows or []))
        self.targets, self.sources, self.shadows = tensors
        self.impl = impl
        _check_lists(*tensors)
        self.half = [(i, t.dtype) for i, t in enumerate(self.targets) if t.dtype in HALVES]
        self.groups = _groups(tensors)

    def update_(self, momentum: float | Tensor) -> None:
        """Update every target, and its shadow, once.

        Args:
            momentum: m in [0, 1]; a 0-dim tensor is read on the device, so that a captured graph
                follows its schedule.

        Raises:
            ValueError: The momentum is outside [0, 1], or a half-precision target is asked to
                follow a momentum of 0.99 or more, or one that is a tensor.
        """
        _check_momentum(momentum, self.half)
        with torch.no_grad():
            for kind, group in self.groups:
                first = group.targets[0]
                chosen = choose(self.impl, first.device, cpu=_has_cpu_code(group))
                if kind == "plain" or chosen == "torch":
                    ema_update_ref_(*group, 1 - momentum)
                else:
                    _op(*group, device_scalar(1 - momentum, first), chosen)


def ema_update_(
    targets: Sequence[Tensor],
    sources: Sequence[Tensor],
    momentum: float | Tensor,
    *,
    shadows: Sequence[Tensor] | None = None,
    impl: str = "auto",
) -> None:
    """Update targets once: t <- m t + (1 - m) s, in place; a loop should hold an `EmaPlan`.

    Arguments and errors are those of `EmaPlan` and of its `update_`.
    """
    EmaPlan(targets, sources, shadows, impl=impl).update_(momentum)


def _has_cpu_code(group: _Group) -> bool:
    """Whether the C++ code takes a group: float32, with bfloat16 shadows if any."""
    wanted = torch.float32, torch.float32, torch.bfloat16
    pairs = zip(group, wanted, strict=True)
    return all(not tensors or tensors[0].dtype == dtype for tensors, dtype in pairs)


def _check_momentum(momentum: float | Tensor, half: list[tuple[int, torch.dtype]]) -> None:
    check_fraction("momentum", momentum)
    if half and (isinstance(momentum, Tensor) or momentum >= 0.99):
        i, dtype = half[0]
        fix = "its changes would round away; keep a float32 target and pass the "
        fix += "half-precision tensor as a shadow"
        raise bad_value(f"targets[{i}]", f"{dtype} with momentum {momentum}", fix)


def _check_lists(targets: list[Tensor], sources: list[Tensor], shadows: list[Tensor]) -> None:
    for name, others in (("sources", sources), ("shadows", shadows)):
        if len(others) != len(targets) and (name == "sources" or others):
            raise bad_value(name, f"{len(others)} tensors", f"expected {len(targets)}")
        for i, other in enumerate(others):
            check_shape(f"{name}[{i}]", other, tuple(targets[i].shape), f"targets[{i}].shape")
            if other.device != targets[0].device:
                raise bad_value(f"{name}[{i}]", other.device, f"move it to {targets[0].device}")
    seen: set[int] = set()
    for i, target in enumerate(targets):
        check_float(f"targets[{i}]", target)
        check_float(f"sources[{i}]", sources[i])
        if target.device != targets[0].device:
            raise bad_value(f"targets[{i}]", target.device, f"move it to {targets[0].device}")
        check_not_expanded(f"targets[{i}]", target)
        check_once(f"targets[{i}]", target, seen)
    for i, shadow in enumerate(shadows):
        if shadow.dtype not in HALVES:
            raise bad_type(f"shadows[{i}]", shadow.dtype, "pass bfloat16 or float16")
        check_not_expanded(f"shadows[{i}]", shadow)
        check_once(f"shadows[{i}]", shadow, seen)
