"""Every kernel, as launched at the default and at odd shapes, compiles for three GPU generations.

Launches are recorded on meta tensors, so what is compiled is what would run: no GPU is needed.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from sjepa_kernels._triton import HAVE_TRITON, INTERPRETED
from tests.kernels import (
    launches_augment,
    launches_fused_mlp,
    launches_masks,
    launches_residual_norm,
    launches_targets,
)

if not HAVE_TRITON or INTERPRETED:
    pytest.skip("needs Triton's compiler", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHITECTURES = [80, 90, 100]
HALF, FULL = torch.bfloat16, torch.float32
NAMES = {HALF: "bf16", torch.float16: "fp16", FULL: "fp32", torch.int64: "i64", torch.int32: "i32"}


class Launch:
    """One recorded launch: a kernel with its arguments."""

    def __init__(self, kernel: Any, args: tuple, options: dict[str, Any]) -> None:
        self.kernel = kernel
        self.values = dict(zip(kernel.arg_names, args, strict=False)) | options
        self.options = {"num_warps": self.values.pop("num_warps", 4)}
        if "num_stages" in self.values:
            self.options["num_stages"] = self.values.pop("num_stages")

    def compile(self, arch: int) -> Any:
        signature, constants, hints = {}, {}, {}
        constexprs = {p.name for p in self.kernel.params if p.is_constexpr}
        for i, name in enumerate(self.kernel.arg_names):
            value = self.values[name]
            if name in constexprs:
                signature[name] = "constexpr"
                constants[(i,)] = value
            elif isinstance(value, Tensor):
                signature[name] = "*" + NAMES[value.dtype]
                hints[(i,)] = [["tt.divisibility", 16]]
            else:
                signature[name] = "i32"
                if value % 16 == 0:
                    hints[(i,)] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, signature, constants, hints)
        target = GPUTarget("cuda", arch, 32)
        return triton.compile(source, target=target, options=self.options)


def record(module: ModuleType, run: Callable[[], Any], patch: pytest.MonkeyPatch) -> list[Launch]:
    """Return what `run` launches of the module's kernels."""
    launches: list[Launch] = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            assert all(size > 0 for size in grid)
            assert all(size <= 65535 for size in grid[1:])
            return lambda *args, **options: launches.append(Launch(self.kernel, args, options))

    for name, value in vars(module).copy().items():
        if isinstance(value, triton.JITFunction) and name.endswith("_kernel"):
            patch.setattr(module, name, Recorder(value))
    run()
    return launches


def meta(*shape: int, dtype: torch.dtype = FULL) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def token_calls(name: str, dtype: torch.dtype, odd: bool) -> Callable[[], Any]:
    module = importlib.import_module(f"sjepa_kernels.tokens_{name}")
    batch, segments, joints, width, kept = (3, 7, 25, 100, 17) if odd else (256, 30, 25, 256, 75)
    tokens = segments * joints
    ids = [meta(batch, n, dtype=torch.int64) for n in (kept, tokens - kept)]
    ids = ids[: 1 if name == "scatter" else 2]
    tables = [meta(n, width, dtype=dtype) for n in (segments, joints)]

    def run() -> None:
        module._forward(
            meta(batch, kept, width, dtype=dtype), meta(width, dtype=dtype), *ids, *tables
        )
        sizes = (True, True) if name == "scatter" else (segments, joints)
        module._sums(meta(batch, tokens, width, dtype=dtype), *ids, *sizes)

    return run


def ce_calls(rows: int, width: int, dtype: torch.dtype, full: bool) -> Callable[[], Any]:
    module = importlib.import_module("sjepa_kernels.centered_ce")
    index = meta(rows, dtype=torch.int64) if full else None
    weights = meta(rows) if full else None
    student, teacher = meta(rows, width, dtype=dtype), meta(rows, width, dtype=dtype)
    return lambda: module._launch(
        student, teacher, meta(width), meta(), meta(), index, weights, full
    )


def ema_calls(shadow: bool, aligned: bool) -> Callable[[], Any]:
    module = importlib.import_module("sjepa_kernels.ema")
    start = 0 if aligned else 1
    targets, sources = torch.zeros(2, 5000)[:, start:4096].unbind()
    shadows = [torch.zeros(5000, dtype=HALF)[start:4096]] if shadow else []
    return lambda: module._launch([targets], [sources], shadows, torch.zeros(()))


CASES = {
    f"{name}-{NAMES[dtype]}{'-odd' * odd}": (f"tokens_{name}", token_calls(name, dtype, odd))
    for name in ("scatter", "pack")
    for dtype in (HALF, FULL)
    for odd in (False, True)
} | {
    f"ce-{rows}x{width}-{NAMES[dtype]}{'-all' * full}": (
        "centered_ce",
        ce_calls(rows, width, dtype, full),
    )
    for rows, width in ((172800, 256), (90112, 1024), (4096, 4096), (8192, 65536), (77, 100))
    for dtype in (HALF, FULL)
    for full in (False, True)
}
CASES |= launches_masks.CASES
CASES |= {
    f"ema{'-shadow' * shadow}{'' if aligned else '-unaligned'}": ("ema", ema_calls(shadow, aligned))
    for shadow in (False, True)
    for aligned in (False, True)
}
CASES |= launches_augment.CASES
CASES |= launches_fused_mlp.CASES
CASES |= launches_residual_norm.CASES
CASES |= launches_targets.CASES


def spilled_bytes(ptx: str, arch: int) -> int | None:
    """Return the bytes a kernel spills, where Triton's wheel brings the assembler."""
    name = "ptxas-blackwell" if arch >= 100 else "ptxas"
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not assembler.exists():
        return None
    target = re.search(r"\.target (\w+)", ptx)
    assert target
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [assembler, "-v", f"-arch={target[1]}", source, "-o", f"{folder}/kernel.cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = re.findall(r"(\d+) bytes spill stores", said)
    assert spills, said
    return sum(map(int, spills))


@pytest.mark.parametrize("case", CASES)
def test_compiles_without_spills(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, run = CASES[case]
    launches = record(importlib.import_module(f"sjepa_kernels.{module}"), run, monkeypatch)
    assert launches
    # One generation for the odd shapes, whose code differs in little but the width of accesses.
    odd = any(word in case for word in ("odd", "77x", "unaligned"))
    for arch in [90] if odd else ARCHITECTURES:
        for launch in launches:
            compiled = launch.compile(arch)
            # What one program may hold on an A100; later generations have more.
            assert compiled.metadata.shared <= 163 * 1024, launch.kernel.__name__
            spilled = spilled_bytes(compiled.asm["ptx"], arch)
            if spilled is not None:
                # Widths no multiple of 16 cost the packed backward a few address registers.
                assert spilled <= (64 if odd else 0), (launch.kernel.__name__, arch, spilled)
            # Rows of V joints of 3 numbers start at no multiple of 16 bytes: nothing to widen.
            if not odd and not case.startswith("augment") and "narrow" not in case:
                wide = r"(ld\.global\S*\.v[48]|cp\.async\S* \[.*\], \[.*\], 0x10)"
                assert re.search(wide, compiled.asm["ptx"]), (launch.kernel.__name__, arch)
