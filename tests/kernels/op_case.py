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
from _pytest.mark import ParameterSet
from torch import Tensor

from tests.kernels.cases import Outputs, Place, at, places, with_gradients
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
class Use:
    """A function of tensors that calls the op, and tensors for it; what learns is a leaf."""

    call: Callable[..., Outputs]
    inputs: Sequence[Tensor]

    def outcome(self, inputs: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return the outputs, and the gradients for some gradient of each output."""
        inputs = self.inputs if inputs is None else inputs
        return with_gradients(self.call(*inputs), inputs)


# Makes one with random numbers; a small one is for checks that take each number in turn.
MakeUse = Callable[[Place, torch.dtype, bool], Use]


@dataclass(frozen=True)
class Fuzz:
    """What draws and checks one random call, and how many are drawn (fewer where interpreted)."""

    check: Callable[[Draw], None]
    examples: int = 80
    interpreted: int = 15


@dataclass(frozen=True)
class OpCase:
    """A public op and all that the tests common to every op need to know of it.

    Attributes:
        op: The public function or class.
        tests: The files of the op's own tests; they run in the interpreter too.
        arguments: Makes the arguments of a valid call, under the names that errors give them.
        spoils: How each argument may be wrong.
        says: Changes of the arguments, and the words of their errors.
        uses: What is filled with NaN, repeated, compiled, and called in other strides.
        launches: Every kernel at the default and at odd shapes, by the case's name in the table.
        fuzz: Random calls against float64.
        calls: Calls with the arguments; None where they have the names of the op's parameters.
        also_named: What an error may name beside the arguments.
        checked_with: The name under which the self-check has the op; empty for the op's own.
        in_cpp: Whether the op has C++ code.
        in_triton: Whether the op has Triton code.
        learns: Whether it has gradients.
    """

    op: Callable[..., object]
    tests: Sequence[str]
    arguments: Callable[[], Arguments]
    spoils: dict[str, Ways]
    uses: Sequence[MakeUse] | Absent
    launches: dict[str, Launch] | Absent
    fuzz: Fuzz | Absent
    says: Sequence[tuple[Arguments, str]] = ()
    calls: Callable[[Arguments], object] | None = None
    also_named: Sequence[str] = ()
    checked_with: str = ""
    in_cpp: bool = False
    in_triton: bool = True
    learns: bool = True

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


def all_uses(*, of_torch: bool, learning: bool = False) -> list[ParameterSet]:
    """Return `where`, `make` for a test of every use; also `of_torch`, or only what is learning."""
    return [
        at(place, make, name=f"{case.name}{f'-{k}' * (k > 0)}")
        for case in all_cases().values()
        if not isinstance(case.uses, Absent) and (case.learns or not learning)
        for place in places(case.in_cpp)
        if (of_torch or place.impl != "torch")
        if case.in_triton or place.impl == ("cpu" if case.in_cpp else "torch")
        for k, make in enumerate(case.uses)
    ]
