# SPDX-License-Identifier: Apache-2.0
"""What a GPU, its driver or its compiler cannot do, found in a second before a run begins.

Each lack is one line: the run goes on without what is lacking, or stops if it was asked for.
"""

from __future__ import annotations

import contextlib
import re
import warnings

import torch

from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.errors import InputError
from sjepa_fast.runtime.device import wants_compile
from sjepa_fast.runtime.dist import ALONE, World
from sjepa_fast.runtime.graph import StepGraph
from sjepa_kernels import random_mask, use

# The first NCCL whose collectives PyTorch captures.
_NCCL_NEEDS = (2, 9, 6)
# Triton's own minimum, and that of the tables that the kernels are compiled for ahead of time.
_TRITON_NEEDS = (8, 0)
# For the rest of the process, as `torch.compiler.set_stance` is.
_chosen = contextlib.ExitStack()


def preflight(
    config: TrainConfig, device: torch.device, dtype: torch.dtype, world: World = ALONE
) -> TrainConfig:
    """Return the configuration without what this GPU cannot do, after a warning for each.

    Where Triton does not work, all ops run as their PyTorch references for the rest of the process.
    Several processes capture a CUDA graph only if it is asked for. Raises InputError if PyTorch has
    no code for the GPU, or if a CUDA graph or our attention is asked for and refused.
    """
    if device.type != "cuda":
        return config
    check_code(device)
    capability = torch.cuda.get_device_capability(device)
    if dtype == torch.bfloat16 and capability < (8, 0):
        _warn(f"{_named(device)} has no native bfloat16 and is slow in it; use dtype float32")
    if reason := triton_refused(device):
        if config.runtime.attention == "triton":
            raise InputError("runtime.attention", f"triton, but {reason}", "leave it on auto")
        goes_on = "our ops run as their slower PyTorch references"
        if wants_compile(config.runtime.compile, device):
            goes_on += ", and nothing is compiled"
            config = replace(config, runtime={"compile": "off"})
        _warn(f"{reason}; {goes_on}")
        _chosen.enter_context(use("torch"))
    if world.size > 1 and config.runtime.cuda_graph == "auto":
        if world.leads:
            _warn(
                f"{world.size} processes replay no CUDA graph: with NCCL it has never been tried; "
                "--cuda-graph on tries it"
            )
        config = replace(config, runtime={"cuda_graph": "off"})
    if config.runtime.cuda_graph == "off":
        return config
    if reason := (nccl_refused() if world.size > 1 else None) or graph_refused(device):
        if config.runtime.cuda_graph == "on":
            fix = "leave it on auto, which goes on without"
            raise InputError("cuda-graph", f"on, but {_named(device)} refuses: {reason}", fix)
        _warn(f"{_named(device)} refuses CUDA graphs, going on without: {reason}")
        config = replace(config, runtime={"cuda_graph": "off"})
    return config


def check_code(device: torch.device) -> None:
    """Raise InputError if this build of PyTorch has no code that can run on the GPU."""
    built = [re.fullmatch(r"(?:sm|compute)_(\d+)(\d)[a-z]?", a) for a in torch.cuda.get_arch_list()]
    known = [(int(found[1]), int(found[2])) for found in built if found]
    if known and torch.cuda.get_device_capability(device) < min(known):
        value = f"{_named(device)} is older than this build of PyTorch ({_dotted(min(known))})"
        fix = "use --runtime.device cpu, or a build of PyTorch for this GPU"
        raise InputError("runtime.device", value, fix)


def triton_refused(device: torch.device) -> str | None:
    """Return why our Triton kernels cannot run on the GPU, or None; it launches one of them."""
    if torch.cuda.get_device_capability(device) < _TRITON_NEEDS:
        return f"{_named(device)} is too old for Triton, which needs {_dotted(_TRITON_NEEDS)}"
    seed = torch.zeros((), dtype=torch.int64, device=device)
    try:
        random_mask(1, 8, 2, seed, impl="triton")
    except Exception as error:
        # No Triton, no C compiler for its launchers, no ptxas, ...
        return f"Triton does not work: {_first_line(error)}"
    return None


def graph_refused(device: torch.device) -> str | None:
    """Return why the driver cannot capture even an addition as a CUDA graph, or None."""
    ones = torch.ones(8, dtype=torch.int64, device=device)
    trial = StepGraph(lambda ids: ones + ids, required=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            while trial.graph is None and trial.usable:
                trial(ones)
        except RuntimeError as error:
            return _first_line(error)
    return None if trial.usable else str(said[-1].message).partition(": ")[2]


def nccl_refused() -> str | None:
    """Return why collectives of several processes cannot be captured, or None."""
    if not torch.distributed.is_nccl_available():
        return "this build of PyTorch has no NCCL"
    version = torch.cuda.nccl.version()
    if version < _NCCL_NEEDS:
        return f"NCCL {_dotted(version)} is older than {_dotted(_NCCL_NEEDS)}"
    return None


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=3)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _named(device: torch.device) -> str:
    capability = _dotted(torch.cuda.get_device_capability(device))
    return f"{torch.cuda.get_device_name(device)} (compute capability {capability})"
