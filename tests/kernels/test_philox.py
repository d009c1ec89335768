"""Philox4x32-10 against the published known answers, in torch and as a Triton device function."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sjepa_kernels import philox4x32, uniform
from sjepa_kernels._triton import tl, triton
from sjepa_kernels.philox import philox4x32_device
from tests.kernels.cases import Place, compiles

# counter words, key words, expected words: the kat_vectors file of Random123.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def seed_of(key: tuple[int, int], device: str = "cpu") -> Tensor:
    value = key[1] << 32 | key[0]
    return torch.tensor(value - (1 << 64) if value >> 63 else value, device=device)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: tuple, key: tuple[int, int], expected: tuple) -> None:
    as_ints = philox4x32(seed_of(key), *counter)
    as_tensors = philox4x32(seed_of(key), *map(torch.tensor, counter))
    negative = philox4x32(seed_of(key), *(c - (1 << 32) for c in counter))
    for words in (as_ints, as_tensors, negative):
        assert tuple(map(int, words)) == expected


@triton.jit
def _words_kernel(seed, counters, out, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    bits = tl.load(seed)
    k0 = bits.to(tl.uint32)
    k1 = (bits >> 32).to(tl.uint32)
    c0 = tl.load(counters + 4 * i).to(tl.uint32)
    c1 = tl.load(counters + 4 * i + 1).to(tl.uint32)
    c2 = tl.load(counters + 4 * i + 2).to(tl.uint32)
    c3 = tl.load(counters + 4 * i + 3).to(tl.uint32)
    x0, x1, x2, x3 = philox4x32_device(k0, k1, c0, c1, c2, c3)
    tl.store(out + 4 * i, x0.to(tl.int64))
    tl.store(out + 4 * i + 1, x1.to(tl.int64))
    tl.store(out + 4 * i + 2, x2.to(tl.int64))
    tl.store(out + 4 * i + 3, x3.to(tl.int64))


def test_device_function_gives_the_same_words(place: Place) -> None:
    if place.impl != "triton":
        pytest.skip("the device function runs inside Triton kernels")
    cases = [(counter, key) for counter, key, _ in KNOWN] + [((7, 1 << 31, 3, 9), (123, 456))]
    for counter, key in cases:
        seed = seed_of(key, place.device)
        counters = torch.tensor(counter, device=place.device)[None] + torch.arange(
            4, device=place.device
        ).view(4, 1)
        out = torch.empty_like(counters)
        _words_kernel[(1,)](seed, counters, out, COUNT=4)
        assert torch.equal(out, torch.stack(philox4x32(seed, *counters.unbind(1)), dim=1))


def test_counters_broadcast_and_do_not_depend_on_each_other() -> None:
    seed = torch.tensor(-5)
    rows, columns = torch.arange(3)[:, None], torch.arange(5)[None]
    words = philox4x32(seed, columns, rows, torch.tensor(2), 1)
    assert all(w.shape == (3, 5) and w.dtype == torch.int64 for w in words)
    alone = philox4x32(seed, 4, 2, 2, 1)
    assert [int(w[2, 4]) for w in words] == [int(w) for w in alone]


def test_uniform_is_even_and_below_one() -> None:
    words = philox4x32(torch.tensor(1), torch.arange(1 << 14), 0, 0, 0)
    drawn = uniform(torch.stack(words))
    assert drawn.dtype == torch.float32
    assert drawn.min() >= 0
    assert drawn.max() < 1
    # Standard errors for 65,536 draws: mean 0.0011, chi-square of 16 bins 15 +- 5.5.
    assert abs(drawn.mean().item() - 0.5) < 0.005
    counts = torch.histc(drawn, bins=16, min=0, max=1)
    assert ((counts - 4096).square() / 4096).sum() < 45
    top = uniform(torch.tensor([0, 255, 256, 0xFFFFFFFF]))
    assert top.tolist() == [0.0, 0.0, 2.0**-24, 1 - 2.0**-24]


@compiles
@pytest.mark.parametrize("count", [1, 5, 9])
def test_compiled_words_equal_eager(count: int) -> None:
    # Small counts are compiled into one loop, where an overflow would be the compiler's to judge.
    def draw(seed: Tensor, step: Tensor) -> tuple[Tensor, ...]:
        words = philox4x32(seed, torch.arange(count)[None], torch.arange(4)[:, None], step, 3)
        return (*words, uniform(words[0]))

    compiled = torch.compile(draw, fullgraph=True, dynamic=False)
    for args in ((-(1 << 62) - 3, 0xFFFFFFFF), (-9, 0)):
        seed, step = map(torch.tensor, args)
        assert all(map(torch.equal, compiled(seed, step), draw(seed, step)))


@compiles
def test_compiled_words_of_one_counter_equal_eager() -> None:
    # One counter for all rows leaves the compiler scalars, where an overflow is undefined.
    def draw(seed: Tensor, ids: Tensor, step: Tensor) -> tuple[Tensor, ...]:
        return philox4x32(seed, 0, ids, step, 0)

    args = torch.tensor(0), torch.arange(128), torch.tensor(0)
    for eager, compiled in zip(draw(*args), torch.compile(draw)(*args), strict=True):
        assert torch.equal(eager, compiled)


def test_bad_input_is_named() -> None:
    with pytest.raises(TypeError, match=r"seed: torch.float32; pass an int64"):
        philox4x32(torch.tensor(1.0), 0, 0, 0, 0)
    with pytest.raises(ValueError, match=r"seed: \(2,\); pass a 0-dim"):
        philox4x32(torch.tensor([1, 2]), 0, 0, 0, 0)
    with pytest.raises(TypeError, match=r"c2: torch.float32"):
        philox4x32(torch.tensor(1), 0, 0, torch.tensor(1.0), 0)
