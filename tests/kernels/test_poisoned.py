"""Fresh memory full of NaN, or of the least integer, shows in no output and in no gradient.

What allocates is patched, so a kernel that leaves an element of its output, or of a partial sum,
unwritten changes the result. Plain PyTorch is left out: it allocates where nobody can look.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.cases import Place
from tests.kernels.op_case import MakeUse, all_uses


def poison(x: Tensor) -> Tensor:
    return x.fill_(torch.nan if x.dtype.is_floating_point else torch.iinfo(x.dtype).min)


@pytest.mark.parametrize(("where", "make"), all_uses(of_torch=False))
def test_every_element_is_written(
    where: Place, make: MakeUse, monkeypatch: pytest.MonkeyPatch
) -> None:
    use = make(where, torch.float32, False)
    expected = use.outcome()
    poisoned: list[Callable[..., Tensor]] = []

    def poisoning(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate(*args: Any, **options: Any) -> Tensor:
            poisoned.append(function)
            return poison(function(*args, **options))

        return allocate

    monkeypatch.setattr(Tensor, "new_empty", poisoning(Tensor.new_empty))
    for function in ("empty", "empty_like"):
        monkeypatch.setattr(torch, function, poisoning(getattr(torch, function)))
    found = use.outcome()
    assert poisoned, "nothing was allocated where this test looks"
    for k, (ours, true) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(ours, true), k
