"""What the file of an op in `ops/` declares, and how the tests that loop over the folder load it.

A name with a leading underscore is no op's file: it holds what a family of ops shares.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.kernels.cases import Place
from tests.kernels.fuzzing import Draw
from tests.kernels.spoils import Ways

FOLDER = Path(__file__).with_name("ops")

Arguments = dict[str, Any]
# A module of `sjepa_kernels`, and what launches its kernels, given the module, on meta tensors.
Launch = tuple[str, Callable[[Any], object]]


@dataclass(frozen=True)
class Absent:
    """Why an op lacks a part that others have."""

    because: str


@dataclass(frozen=True)
class Fuzz:
    """What draws and checks one random call, and how many are drawn (fewer where interpreted)."""

    check: Callable[[Draw], None]
    examples: int = 80
    interpreted: int = 40


@dataclass(frozen=True)
class OpCase:
    """A public op and all that the tests common to every op need to know of it.

    Attributes:
        op: The public function or class.
        tests: The files of the op's own tests; they run in the interpreter too.
        arguments: Makes the arguments of a valid call, under the names that errors give them.
        spoils: How each argument may be wrong.
        poison: Calls that return every output and gradient, for fresh memory full of NaN.
        launches: Every kernel at the default and at odd shapes, by the case's name in the table.
        fuzz: Random calls against float64.
        calls: Calls with the arguments; None where they have the names of the op's parameters.
        also_named: What an error may name beside the arguments.
        checked_with: The name under which the self-check has the op; empty for the op's own.
        in_cpp: Whether the op has C++ code.
        in_triton: Whether the op has Triton code.
    """

    op: Callable[..., object]
    tests: Sequence[str]
    arguments: Callable[[], Arguments]
    spoils: dict[str, Ways]
    poison: Sequence[Callable[[Place], list[Tensor]]] | Absent
    launches: dict[str, Launch] | Absent
    fuzz: Fuzz | Absent
    calls: Callable[[Arguments], object] | None = None
    also_named: Sequence[str] = ()
    checked_with: str = ""
    in_cpp: bool = False
    in_triton: bool = True

    @property
    def name(self) -> str:
        """The op's public name."""
        return self.op.__name__

    def call(self, arguments: Arguments) -> object:
        """Call the op, each argument passed as the parameter of its name without the axes."""
        if self.calls is not None:
            return self.calls(arguments)
        parameters = {
            re.sub(r"_[A-Z]\w*$", "", p): p for p in inspect.signature(self.op).parameters
        }
        return self.op(**{parameters[name]: value for name, value in arguments.items()})


def normals(**shapes: tuple[int, ...]) -> Arguments:
    """Return arguments of these shapes, filled with normal numbers."""
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def file_of(name: str) -> Path:
    """Return where the case of a public op belongs."""
    return FOLDER / (re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower() + ".py")


@cache
def all_cases() -> dict[str, OpCase]:
    """Return the `CASE` of every file of the folder by the op's public name."""
    stems = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))
    cases = [importlib.import_module(f"tests.kernels.ops.{stem}").CASE for stem in stems]
    return {case.name: case for case in cases}
