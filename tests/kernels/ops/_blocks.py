"""The definition of block masks, token by token in Python's integers."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch

from sjepa_kernels import BlockMask
from tests.kernels.fuzzing import philox_in_integers


class Truth(NamedTuple):
    """Of one sequence."""

    keep: list[int]
    mask: list[int]
    targets: list[list[int]]
    free: int


def by_definition(
    grid: tuple[int, ...],
    keep: int,
    blocks: tuple[tuple[int, ...], tuple[int, ...], int],
    draws: tuple[int, int, int],
    counters: list[tuple[int, int]],
) -> list[Truth]:
    """Masks of sequences (clip id, body) for (context, target, targets), (seed, step, purpose)."""
    context, target, targets = blocks
    seed, step, purpose = draws
    whole = (1, *grid)[-3:]
    tokens = list(itertools.product(*map(range, whole)))
    found = []
    for clip, body in counters:
        places = 3 * (1 + targets) + len(tokens)
        words = [
            philox_in_integers(seed, [i // 4, clip, step, purpose])[i % 4]
            for i in range(body * places, (body + 1) * places)
        ]
        covers = []
        for place, size in enumerate([context] + [target] * targets):
            sizes = (1, *size)[-3:]
            spans = []
            for axis in range(3):
                first = (whole[axis] - sizes[axis] + 1) * words[3 * place + axis] // 2**32
                spans.append(range(first, first + sizes[axis]))
            covers.append([n for n, at in enumerate(tokens) if all(map(_within, at, spans))])
        hidden = set(itertools.chain(*covers[1:]))
        free = [n for n in covers[0] if n not in hidden]
        keys = {
            n: (2 if n in hidden else int(n not in free), words[3 * (1 + targets) + n] >> 8, n)
            for n in range(len(tokens))
        }
        order = sorted(keys, key=keys.__getitem__)
        found.append(Truth(sorted(order[:keep]), sorted(order[keep:]), covers[1:], len(free)))
    return found


def _within(coordinate: int, span: range) -> bool:
    return coordinate in span


def compare(mask: BlockMask, truth: list[Truth]) -> None:
    """All ids are those of the definition."""
    keep, hide, restore, targets, free = (t.cpu() for t in mask)
    assert all(t.dtype == torch.int32 for t in mask)
    assert keep.tolist() == [row.keep for row in truth]
    assert hide.tolist() == [row.mask for row in truth]
    assert free.tolist() == [row.free for row in truth]
    expected = list(itertools.chain(*zip(*(row.targets for row in truth), strict=True)))
    assert targets.tolist() == expected
    both = torch.cat([keep, hide], dim=1)
    assert torch.equal(both.gather(1, restore.long()), both.sort(dim=1).values)
