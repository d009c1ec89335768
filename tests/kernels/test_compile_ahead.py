"""Every kernel compiles for three GPU generations, as a step launches it and at odd shapes.

Two lists of launches: those of the training steps, recorded on the null GPU with the dtypes,
alignments, integers and options that the JIT saw (`aot_launches.json`), and those of the files in
`ops/`, recorded here on meta tensors. So what is compiled is what would run: no GPU is needed.
`make test` compiles each launch for one of the generations, `make test-all` for all.
What each kernel costs is compared with `aot_table.json`, which has a section for the pinned version
of Triton and one for the oldest that works; after a change that is meant to change it,
`python -m tests.kernels.test_compile_ahead --update` writes the section of the version at hand,
or of that only the cases whose names begin with words given behind it, such as `sigreg`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from types import ModuleType
from typing import Any
from zlib import crc32

import pytest

from sjepa_kernels._triton import HAVE_TRITON, INTERPRETED
from tests.kernels.cases import ALL_CASES
from tests.kernels.op_case import Absent, all_cases

if not HAVE_TRITON or INTERPRETED:
    pytest.skip("needs Triton's compiler", allow_module_level=True)

import triton

from tests.kernels import aot_table, launches
from tests.kernels.launches import Variant, variant_of

ARCHITECTURES = [80, 90, 100]


def record(
    module: ModuleType, run: Callable[[Any], object], patch: pytest.MonkeyPatch
) -> list[Variant]:
    """Return what `run` launches of the module's kernels."""
    found: list[Variant] = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            assert all(size > 0 for size in grid)
            assert all(size <= 65535 for size in grid[1:])
            return lambda *args, **options: found.append(variant_of(self.kernel, args, options))

    for name, value in vars(module).copy().items():
        if isinstance(value, triton.JITFunction) and name.endswith("_kernel"):
            patch.setattr(module, name, Recorder(value))
    run(module)
    return found


OF_STEPS = {variant.key: variant for variant in launches.load()}
OF_OPS = {
    name: launch
    for case in all_cases().values()
    if not isinstance(case.launches, Absent)
    for name, launch in case.launches.items()
}
CASES = [*OF_OPS, *OF_STEPS]


def is_odd(case: str) -> bool:
    """Whether a case has shapes or addresses that forbid 16-byte accesses."""
    return any(word in case for word in ("odd", "77x", "unaligned")) or case.endswith("-1x1")


def is_narrow(case: str) -> bool:
    """Whether nothing can be widened: rows of V joints of 3 numbers, or random numbers alone.

    The sums of SIGReg want a column for each thread; those of a warp lie side by side.
    """
    if case in OF_OPS:
        return case.startswith(("augment", "sigreg-sums")) or "narrow" in case
    variant = OF_STEPS[case]
    joints = variant.kernel.endswith(("_augment_kernel", "_tube_kernel"))
    return joints or variant.constants.get("MOTION") is False


def generations(case: str) -> list[int]:
    """Return what to compile a case for.

    One generation for odd shapes, whose code differs in little but the width of accesses, and for
    kernels that a step launches: those are compiled for all as the step has them.
    """
    launched = {variant.kernel for variant in OF_STEPS.values()}
    twice = case in OF_OPS and {x.kernel for x in variants(case)} <= launched
    return [90] if is_odd(case) or twice else ARCHITECTURES


def chosen(case: str) -> list[int]:
    """Return the generations that a test compiles for: one, unless all are asked for.

    Which one, a checksum of the case says, so that each third of the cases is for another.
    """
    known = generations(case)
    return known if ALL_CASES else [known[crc32(case.encode()) % len(known)]]


@cache
def variants(case: str) -> tuple[Variant, ...]:
    """Return what a case launches."""
    if case in OF_STEPS:
        return (OF_STEPS[case],)
    module, run = OF_OPS[case]
    with pytest.MonkeyPatch.context() as patch:
        found = record(importlib.import_module(f"sjepa_kernels.{module}"), run, patch)
    assert found
    return tuple(found)


@cache
def row_of(key: str, arch: int) -> Future[dict[str, int]]:
    """Compile one variant; steps and files of ops have some in common."""
    return ASSEMBLER.submit(aot_table.resources, BY_KEY[key].compile(arch), arch)


# Only the assembler beside it: parsing in two threads at once breaks Python 3.11's `ast`.
ASSEMBLER = ThreadPoolExecutor(1)
BY_KEY: dict[str, Variant] = {}


@cache
def measured(case: str, *, everywhere: bool = False) -> aot_table.Rows:
    """Compile what a case launches and return its rows of the table."""
    named: dict[str, Future[dict[str, int]]] = {}
    for arch in generations(case) if everywhere else chosen(case):
        for variant in variants(case):
            BY_KEY[variant.key] = variant
            name = f"{case} {variant.kernel.rpartition('.')[2]} sm_{arch}"
            again = sum(other.split(" again")[0] == name for other in named)
            named[name + f" again {again}" * (again > 0)] = row_of(variant.key, arch)
    return {name: row.result() for name, row in named.items()}


@pytest.mark.parametrize("case", CASES)
def test_compiles_without_spills(case: str) -> None:
    for name, row in measured(case).items():
        # What one program may hold on an A100; later generations have more.
        assert row["shared"] <= 163 * 1024, name
        # Widths no multiple of 16 cost registers for addresses: with the pinned version a few.
        odd = 64 if triton.__version__ == aot_table.versions()[1] else 176
        assert row.get("spills", 0) <= (odd if is_odd(case) else 0), name
        assert row["wide"] or is_odd(case) or is_narrow(case), name


@pytest.mark.parametrize("case", CASES)
def test_costs_no_more_than_the_table(case: str) -> None:
    committed = aot_table.load().get(triton.__version__)
    if committed is None:
        pytest.skip(f"the table has no section for Triton {triton.__version__}")
    rows = measured(case)
    if not all("registers" in row for row in rows.values()):
        pytest.skip("this build of Triton does not bring the assembler")
    problems = aot_table.worse(rows, committed)
    assert not problems, "\n".join([*problems, f"if this is meant: {aot_table.UPDATE}"])


def test_table_is_of_the_pinned_version_and_of_these_cases() -> None:
    table = aot_table.load()
    assert set(table) == set(aot_table.versions())
    for rows in table.values():
        assert {name.split()[0] for name in rows} == set(CASES), aot_table.UPDATE
        assert list(rows) == sorted(rows)
    lines = len(aot_table.PATH.read_text().splitlines())
    assert lines == 2 + sum(len(rows) + 2 for rows in table.values())


def test_variants_are_what_the_jit_would_compile() -> None:
    """A one is compiled in, alignment is known of addresses and integers, options are kept."""
    seen = [x for case in CASES for x in variants(case)]
    augment = [x for x in seen if x.kernel.endswith("_augment_kernel")]
    assert augment
    assert all(x.options["enable_fp_fusion"] is False for x in augment)
    masks = [x for x in seen if x.kernel.endswith("tokens._mask_kernel")]
    # Random masks are drawn without joints: V is 1.
    assert "constexpr" in {x.signature["V"] for x in masks}
    for variant in seen:
        assert set(variant.constants) == {
            name for name, kind in variant.signature.items() if kind == "constexpr"
        }
        assert not set(variant.aligned) & set(variant.constants)


def test_steps_launch_mixed_dtypes() -> None:
    """The files of the ops cannot know with what a step mixes their inputs."""
    losses = [x for x in OF_STEPS.values() if x.kernel.endswith("_ce_rows_kernel")]
    types = {(x.signature["student"], x.signature["teacher"], x.signature["index"]) for x in losses}
    assert ("*bf16", "*fp32", "*i64") in types


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
    if sys.argv[1:2] != ["--update"] or triton.__version__ not in aot_table.versions():
        sys.exit(f"usage, with Triton {' or '.join(aot_table.versions())}: {aot_table.UPDATE}")
    begins = tuple(sys.argv[2:]) or ("",)
    old = aot_table.load()[triton.__version__].items()
    rows = {name: row for name, row in old if not name.startswith(begins)}
    again = [case for case in CASES if case.startswith(begins)]
    found = [measured(case, everywhere=True).items() for case in again]
    aot_table.save(rows | {name: row for named in found for name, row in named})
