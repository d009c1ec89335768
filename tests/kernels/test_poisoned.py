"""Fresh memory full of NaN, or of the least integer, shows in no output and in no gradient.

What allocates is patched, so a kernel that leaves an element of its output, or of a partial sum,
unwritten changes the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.cases import Place
from tests.kernels.op_case import Absent, all_cases

HAS_CPP = True
CASES = {
    f"{name}-{k}" if k else name: (call, case.in_cpp)
    for name, case in all_cases().items()
    if not isinstance(case.poison, Absent)
    for k, call in enumerate(case.poison)
}


def poison(x: Tensor) -> Tensor:
    return x.fill_(torch.nan if x.dtype.is_floating_point else torch.iinfo(x.dtype).min)


@pytest.mark.parametrize("name", CASES)
def test_every_element_is_written(place: Place, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, in_cpp = CASES[name]
    if place.impl == "torch" or (place.impl == "cpu" and not in_cpp):
        pytest.skip("plain PyTorch allocates where nobody can look")
    torch.manual_seed(1)
    expected = call(place)
    poisoned: list[Callable[..., Tensor]] = []

    def poisoning(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate(*args: Any, **options: Any) -> Tensor:
            poisoned.append(function)
            return poison(function(*args, **options))

        return allocate

    monkeypatch.setattr(Tensor, "new_empty", poisoning(Tensor.new_empty))
    for function in ("empty", "empty_like"):
        monkeypatch.setattr(torch, function, poisoning(getattr(torch, function)))
    torch.manual_seed(1)
    found = call(place)
    assert poisoned, "nothing was allocated where this test looks"
    for k, (ours, true) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(ours, true), k
