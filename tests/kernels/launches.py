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
        signature: The type of each argument, "constexpr" for those that are compiled in; of a tuple
            those of its parts.
        constants: The values of these.
        aligned: Arguments known to be multiples of 16.
        options: Of the launch, such as warps, where they are given.
    """

    kernel: str
    signature: dict[str, Any]
    constants: dict[str, Any]
    aligned: list[str]
    options: dict[str, Any]

    @cached_property
    def key(self) -> str:
        """The kernel, the dtypes of its pointers, and a digest of all there is."""
        kinds = [x for x in self.signature.values() if isinstance(x, str)]
        pointers = [x[1:] for x in kinds if x.startswith("*")]
        short = [x for k, x in enumerate(pointers) if k == 0 or x != pointers[k - 1]]
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        name = ".".join(self.kernel.split(".")[-2:])
        return f"step:{name}:{','.join(short)}:{digest[:6]}"

    def compile(self, arch: int) -> Any:
        """Compile it for a GPU generation, such as 90."""
        module, _, name = self.kernel.rpartition(".")
        kernel = getattr(importlib.import_module(module), name)
        places = {x: (k,) for k, x in enumerate(self.signature)}
        # JSON has no tuples.
        kinds = {x: tuple(k) if isinstance(k, list) else k for x, k in self.signature.items()}
        known = []
        for x in self.aligned:
            parts = len(kinds[x]) if isinstance(kinds[x], tuple) else 0
            known += [(*places[x], part) for part in range(parts)] or [places[x]]
        source = ASTSource(
            kernel,
            kinds,
            {places[x]: _from_text(value) for x, value in self.constants.items()},
            {path: [["tt.divisibility", 16]] for path in known},
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
    known_kind = {"tt.divisibility", 16}
    assert all(set(hint) <= known_kind for found in hints.values() for hint in found), hints
    # Of a tuple there is a hint for each part: all of them are aligned, or none.
    parts = {
        name: [bool(hint) for path, hint in hints.items() if path[0] == k]
        for k, name in enumerate(names)
    }
    assert all(any(known) == all(known) for known in parts.values() if known), hints
    given = {x: value for x, value in options.items() if x not in signature}
    return Variant(
        f"{kernel.__module__}.{kernel.__name__}",
        signature,
        {names[k]: _to_text(value) for (k,), value in constants.items()},
        [name for name, known in parts.items() if any(known)],
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
