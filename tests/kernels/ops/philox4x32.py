"""Random words that depend on a key and a counter alone."""

from __future__ import annotations

from typing import Any

import torch

from sjepa_kernels import philox4x32
from tests.kernels.fuzzing import Draw, laid_out, philox_in_integers
from tests.kernels.op_case import Absent, Arguments, Fuzz, OpCase
from tests.kernels.spoils import KEYS, NOT_INTEGERS, PLACES, Ways


def arguments() -> Arguments:
    return {"seed": torch.tensor(5), **{f"c{i}": torch.arange(3) for i in range(4)}}


def random_call(draw: Draw) -> None:
    """Counters of any sign, shape, stride and integer dtype, broadcast against each other."""
    seed = draw.int64()
    shape = (draw.size(0, 3), draw.size(0, 3))
    counters: list[Any] = []
    for _ in range(4):
        if draw.flag():
            counters.append(draw.integer(-(2**70), 2**70))
            continue
        dtype = draw.one_of(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
        torch.manual_seed(draw.size(0, 99))
        info = torch.iinfo(dtype)
        values = torch.randint(info.min, info.max, shape[draw.size(0, 2) :], dtype=dtype)
        values = values.to(draw.device)
        counters.append(laid_out(values, draw.one_of("dense", "turned", "expanded")))
    words = philox4x32(torch.tensor(seed, device=draw.device), *counters)
    tensors = [
        torch.tensor(c & 2**32 - 1) if isinstance(c, int) else c.long().cpu() for c in counters
    ]
    full = torch.broadcast_tensors(*tensors)
    expected = [
        philox_in_integers(seed, list(c))
        for c in zip(*(f.flatten().tolist() for f in full), strict=True)
    ]
    assert all(word.shape == full[0].shape and word.dtype == torch.int64 for word in words)
    assert torch.stack([word.flatten() for word in words], -1).tolist() == expected


COUNTER: Ways = NOT_INTEGERS | PLACES | {"other lengths": lambda x: x[:2]}
CASE = OpCase(
    op=philox4x32,
    tests=["test_philox.py"],
    arguments=arguments,
    spoils={"seed": KEYS["seed"], **{f"c{i}": COUNTER for i in range(4)}},
    uses=Absent("a device function of the masks and augment_clips, without memory of its own"),
    launches=Absent("a device function, compiled in the kernels of the masks and augment_clips"),
    fuzz=Fuzz(random_call),
)
