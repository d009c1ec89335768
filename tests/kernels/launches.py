"""A kernel as one launch specialises it: what the compiler gets, in a form that can be committed.

Recorded by Triton's own rules, which differ between calls of one kernel: by the dtype of each
pointer, whether its address is a multiple of 16, whether an integer is one or is 1, and by the
options of the launch.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.language.core import dtype as TritonType
from triton.runtime.jit import create_function_from_signature

PATH = Path(__file__).with_name("aot_launches.json")
UPDATE = "python -m tests.null_gpu.ledger --update"
TABLE_UPDATE = "python -m tests.kernels.test_compile_ahead --update"

_DTYPE = "dtype "


@dataclass(frozen=True)
class Variant:
    """One specialisation of a kernel.

    Attributes:
        kernel: Its module and name.
        signature: The type of each argument, "constexpr" for those that are compiled in.
        constants: The values of these.
        aligned: Arguments known to be multiples of 16.
        options: Of the launch, such as warps, where they are given.
    """

    kernel: str
    signature: dict[str, str]
    constants: dict[str, Any]
    aligned: list[str]
    options: dict[str, Any]

    @cached_property
    def key(self) -> str:
        """The kernel, the dtypes of its pointers, and a digest of all there is."""
        pointers = [x[1:] for x in self.signature.values() if x.startswith("*")]
        short = [x for k, x in enumerate(pointers) if k == 0 or x != pointers[k - 1]]
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        name = ".".join(self.kernel.split(".")[-2:])
        return f"step:{name}:{','.join(short)}:{digest[:6]}"

    def compile(self, arch: int) -> Any:
        """Compile it for a GPU generation, such as 90."""
        module, _, name = self.kernel.rpartition(".")
        kernel = getattr(importlib.import_module(module), name)
        places = {x: (k,) for k, x in enumerate(self.signature)}
        source = ASTSource(
            kernel,
            self.signature,
            {places[x]: _from_text(value) for x, value in self.constants.items()},
            {places[x]: [["tt.divisibility", 16]] for x in self.aligned},
        )
        return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=self.options)


def variant_of(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Variant:
    """Specialise a launch `kernel[grid](*args, **options)` as it would be compiled on a GPU."""
    backend = make_backend(GPUTarget("cuda", 90, 32))
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    options = {x: value for x, value in options.items() if x not in ("grid", "warmup")}
    bound, specialization, rest = binder(*args, **options)
    _, signature, constants, hints = kernel._pack_args(
        backend, options, bound, specialization, rest
    )
    names = list(signature)
    known = {"tt.divisibility", 16}
    assert all(set(hint) <= known for found in hints.values() for hint in found), hints
    given = {x: value for x, value in options.items() if x not in signature}
    return Variant(
        f"{kernel.__module__}.{kernel.__name__}",
        signature,
        {names[k]: _to_text(value) for (k,), value in constants.items()},
        [names[k] for (k,), found in hints.items() if found],
        {x: given[x] for x in sorted(given)},
    )


def _to_text(value: Any) -> Any:
    if isinstance(value, TritonType):
        return _DTYPE + value.name
    assert value is None or isinstance(value, bool | int | float | str), value
    return value


def _from_text(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_DTYPE):
        return TritonType(value.removeprefix(_DTYPE))
    return value


def load() -> list[Variant]:
    """Return the committed launches of the training steps."""
    return [Variant(**row) for row in json.loads(PATH.read_text())]


def save(variants: list[Variant]) -> None:
    """Write launches, sorted by their keys, one a line."""
    rows = [json.dumps(asdict(x)) for x in sorted(variants, key=lambda x: x.key)]
    PATH.write_text("[\n " + ",\n ".join(rows) + "\n]\n")
