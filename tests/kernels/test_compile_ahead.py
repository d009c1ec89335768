"""Every kernel, as launched at the default and at odd shapes, compiles for three GPU generations.

Launches are recorded on meta tensors, so what is compiled is what would run: no GPU is needed.
What each kernel costs is compared with `aot_table.json`; after a change that is meant to change
it, `python -m tests.kernels.test_compile_ahead --update` writes the table anew, for review.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from sjepa_kernels._triton import HAVE_TRITON, INTERPRETED
from tests.kernels.op_case import Absent, all_cases

if not HAVE_TRITON or INTERPRETED:
    pytest.skip("needs Triton's compiler", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tests.kernels import aot_table

ARCHITECTURES = [80, 90, 100]
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
NAMES |= {torch.int64: "i64", torch.int32: "i32"}


class Launch:
    """One recorded launch: a kernel with its arguments."""

    def __init__(self, kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
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


def record(
    module: ModuleType, run: Callable[[Any], object], patch: pytest.MonkeyPatch
) -> list[Launch]:
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
    run(module)
    return launches


CASES = {
    name: launch
    for case in all_cases().values()
    if not isinstance(case.launches, Absent)
    for name, launch in case.launches.items()
}


def is_odd(case: str) -> bool:
    """Whether a case has shapes or addresses that forbid 16-byte accesses."""
    return any(word in case for word in ("odd", "77x", "unaligned"))


@cache
def measured(case: str) -> aot_table.Rows:
    """Compile what a case launches and return its rows of the table."""
    module, run = CASES[case]
    with pytest.MonkeyPatch.context() as patch:
        launches = record(importlib.import_module(f"sjepa_kernels.{module}"), run, patch)
    assert launches
    named: dict[str, tuple[Launch, int]] = {}
    # One generation for the odd shapes, whose code differs in little but the width of accesses.
    for arch in [90] if is_odd(case) else ARCHITECTURES:
        for launch in launches:
            name = f"{case} {launch.kernel.__name__} sm_{arch}"
            again = sum(other.split(" again")[0] == name for other in named)
            named[name + f" again {again}" * (again > 0)] = launch, arch
    # Only the assembler beside it: parsing in two threads at once breaks Python 3.11's `ast`.
    with ThreadPoolExecutor(1) as pool:
        rows = {
            name: pool.submit(aot_table.resources, launch.compile(arch), arch)
            for name, (launch, arch) in named.items()
        }
        return {name: row.result() for name, row in rows.items()}


@pytest.mark.parametrize("case", CASES)
def test_compiles_without_spills(case: str) -> None:
    for name, row in measured(case).items():
        # What one program may hold on an A100; later generations have more.
        assert row["shared"] <= 163 * 1024, name
        # Widths no multiple of 16 cost the packed backward a few address registers.
        assert row.get("spills", 0) <= (64 if is_odd(case) else 0), name
        # Rows of V joints of 3 numbers start at no multiple of 16 bytes: nothing to widen.
        narrow = is_odd(case) or case.startswith("augment") or "narrow" in case
        assert row["wide"] or narrow, name


@pytest.mark.parametrize("case", CASES)
def test_costs_no_more_than_the_table(case: str) -> None:
    table = aot_table.load()
    if triton.__version__ != table["triton"]:
        pytest.skip(f"the table is for Triton {table['triton']}, this is {triton.__version__}")
    rows = measured(case)
    if not all("registers" in row for row in rows.values()):
        pytest.skip("this build of Triton does not bring the assembler")
    problems = aot_table.worse(rows, table["rows"])
    assert not problems, "\n".join([*problems, f"if this is meant: {aot_table.UPDATE}"])


def test_table_is_of_the_pinned_version_and_of_these_cases() -> None:
    table = aot_table.load()
    assert table["triton"] == aot_table.pinned_triton()
    assert {name.split()[0] for name in table["rows"]} == set(CASES), aot_table.UPDATE
    names = list(table["rows"])
    assert names == sorted(names)
    assert len(aot_table.PATH.read_text().splitlines()) == len(names) + 5


ROW = {"registers": 64, "spills": 0, "shared": 512, "wide": 4, "narrow": 2}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"registers": 72}, "registers 64 -> 72"),
        ({"spills": 4}, "spills 0 -> 4"),
        ({"shared": 1024}, "shared 512 -> 1024"),
        ({"narrow": 6}, "narrow 2 -> 6"),
        ({"wide": 0}, "no 16-byte access is left of 4"),
        ({"registers": 71, "wide": 2, "shared": 0}, None),
    ],
    ids=str,
)
def test_what_counts_as_worse(change: dict[str, int], words: str | None) -> None:
    problems = aot_table.worse({"kernel": ROW | change}, {"kernel": ROW})
    assert problems == ([f"kernel: {words}"] if words else [])
    assert aot_table.worse({"new": ROW}, {"kernel": ROW}) == ["new: not in the table"]


def test_accesses_are_counted_by_their_bytes() -> None:
    ptx = """
    @%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
    ld.global.L1::evict_last.v2.b64 { %rd2, %rd3 }, [ %rd1 + 0 ];
    ld.global.v4.b16 { %rs1, %rs2, %rs3, %rs4 }, [ %rd1 + 0 ];
    st.global.b32 [ %rd1 + 0 ], { %r1 };
    ld.shared.v4.b32 {%r1, %r2, %r3, %r4}, [%r5];
    cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;
    cp.async.ca.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x4, %r2;
    """
    assert aot_table.accesses(ptx) == (3, 3)


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"] or triton.__version__ != aot_table.pinned_triton():
        sys.exit(f"usage, with Triton {aot_table.pinned_triton()}: {aot_table.UPDATE}")
    aot_table.save({name: row for case in CASES for name, row in measured(case).items()})
