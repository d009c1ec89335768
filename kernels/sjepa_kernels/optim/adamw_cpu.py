# SPDX-License-Identifier: Apache-2.0
"""Calls the C++ form of a step of AdamW (csrc/adamw.cpp)."""

import ctypes
from collections.abc import Sequence

import torch

from sjepa_kernels.native import LIBRARY
from sjepa_kernels.optim.rows import Addresses, Numbers, Rows, half_of


def has_cpu_code(rows: Rows) -> bool:
    """Whether the C++ code takes rows: float32 with float32 gradients and bfloat16 copies."""
    floats = (*rows.params, *rows.grads)
    all_float = all(x is None or x.dtype == torch.float32 for x in floats)
    return all_float and half_of(rows) in (None, torch.bfloat16)


def run_cpp(rows: Addresses, groups: Sequence[Sequence[float]], numbers: Numbers) -> None:
    """Move all rows by one step; arguments as those of `adamw_kernel.launch`."""
    assert LIBRARY is not None
    if float(numbers.skip) != 0:
        return
    order = (
        rows.params, rows.grads, rows.exp_avgs, rows.exp_avg_sqs, rows.steps, rows.targets,
        rows.shadows, rows.target_shadows, rows.counts, rows.groups,
    )  # fmt: skip
    table = [x for row in zip(*order, strict=True) for x in row]
    rates = map(float, numbers.rates)
    settings = [x for rate, rest in zip(rates, groups, strict=True) for x in (rate, *rest)]
    status = LIBRARY.sjepa_adamw_f32(
        (ctypes.c_int64 * len(table))(*table),
        ctypes.c_int64(len(rows.params)),
        (ctypes.c_double * len(settings))(*settings),
        ctypes.c_double(float(numbers.momentum)),
        ctypes.c_double(float(numbers.clip)),
        ctypes.c_int(torch.get_num_threads()),
    )
    if status != 0:
        raise MemoryError("adamw_ema_: no memory for the table of chunks")
