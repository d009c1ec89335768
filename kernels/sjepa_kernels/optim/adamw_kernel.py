# SPDX-License-Identifier: Apache-2.0
"""The Triton form of a step of AdamW: one launch for many weights (see `adamw.py`)."""

import math
import struct
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from sjepa_kernels._triton import TL_DTYPES, compute_dtype, tl, triton
from sjepa_kernels.optim.rows import Addresses, Numbers

# Elements that a program takes at once, and in all.
_CHUNK, _SPAN = 2048, 4096
# In place of the address of a gradient that is not there: as large as one, or the compiler would
# take another type. The kernels have the number itself.
_NO_GRAD = 4611686018427387904


@triton.jit
def _number(word, DTYPE: tl.constexpr):
    """A number in float64: the bits of one, or the address of one of this dtype."""
    word = word.to(tl.int64)
    if DTYPE is None:
        value = word.to(tl.float64, bitcast=True)
    else:
        value = tl.load(word.to(tl.pointer_type(DTYPE))).to(tl.float64)
    return value


@triton.jit
def _chosen(words, k, COUNT: tl.constexpr):
    """Word k of a tuple."""
    found = words[0].to(tl.int64)
    for j in tl.static_range(1, COUNT):
        found = tl.where(k == j, words[j].to(tl.int64), found)
    return found


@triton.jit
def _place(address, start, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """A pointer to element `start` of a tensor."""
    pointer = address.to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + start


@triton.jit
def _move(
    tensor, grad, start, share1, beta2, share2, eps, decay, rate, root, clip, weight, rest,
    PARAM: tl.constexpr, GRAD: tl.constexpr, HALF: tl.constexpr, COMPUTE: tl.constexpr,
    ALIGNED: tl.constexpr, CHUNK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Update a chunk. What a tensor lacks has the address 0 and is masked as a whole.

    Masks of one value for all leave accesses wide, where branches would not.
    """
    i = tl.arange(0, CHUNK)
    if WHOLE:
        inside = tl.full((CHUNK,), True, tl.int1)
    else:
        # In 32 bits, or every address would take registers of its own.
        inside = i < (tl.load(tensor + 7) - start).to(tl.int32)
    learns = inside & (grad != 4611686018427387904)
    target = tl.load(tensor + 4)
    follows = inside & (target != 0)
    param = _place(tl.load(tensor), start, PARAM, ALIGNED) + i
    grad = _place(grad, start, GRAD, ALIGNED) + i
    exp_avg = _place(tl.load(tensor + 1), start, PARAM, ALIGNED) + i
    exp_avg_sq = _place(tl.load(tensor + 2), start, PARAM, ALIGNED) + i
    target = _place(target, start, PARAM, ALIGNED) + i
    p = tl.load(param, mask=inside, other=0.0).to(COMPUTE)
    g = tl.load(grad, mask=learns, other=0.0).to(COMPUTE) * clip
    m = tl.load(exp_avg, mask=learns, other=0.0).to(COMPUTE)
    v = tl.load(exp_avg_sq, mask=learns, other=0.0).to(COMPUTE)
    t = tl.load(target, mask=follows, other=0.0).to(COMPUTE)
    m = m + share1 * (g - m)
    v = beta2 * v + share2 * (g * g)
    p = tl.where(learns, p * decay - rate * m / (tl.sqrt(v) * root + eps), p)
    t = tl.where(weight < 0.5, t + weight * (p - t), p - (p - t) * rest)
    tl.store(param, p, mask=learns)
    tl.store(exp_avg, m, mask=learns)
    tl.store(exp_avg_sq, v, mask=learns)
    tl.store(target, t, mask=follows)
    if HALF is not None:
        # By way of float32: the interpreter casts float64 to bfloat16 wrongly.
        address = tl.load(tensor + 5)
        shadow = _place(address, start, HALF, ALIGNED) + i
        tl.store(shadow, p.to(tl.float32), mask=inside & (address != 0))
        address = tl.load(tensor + 6)
        shadow = _place(address, start, HALF, ALIGNED) + i
        tl.store(shadow, t.to(tl.float32), mask=inside & (address != 0))


@triton.jit(do_not_specialize=["momentum", "clip", "skip"])
def _adamw_kernel(
    tensors, chunks, settings, tickets, grads, lrs, momentum, clip, skip,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, LR: tl.constexpr, MOMENTUM: tl.constexpr,
    CLIP: tl.constexpr, SKIP: tl.constexpr, PARAM: tl.constexpr, GRAD: tl.constexpr,
    HALF: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """One program per span of a tensor; a row of `tensors` is one of `Addresses.fixed`.

    The addresses of the gradients, which move in every step, come by value: so a captured graph
    needs no copy of them. Groups are rows of `settings`; their rates come like the gradients.
    """
    if _number(skip, SKIP) != 0.0:
        return
    program = tl.program_id(0)
    row = tl.load(chunks + 2 * program)
    start = tl.multiple_of(tl.load(chunks + 2 * program + 1), SPAN)
    grad = _chosen(grads, row, ROWS)
    tensor = tensors + 9 * row
    step = tl.load(tensor + 3).to(tl.pointer_type(tl.float32))
    count = tl.load(tensor + 7)
    group = tl.load(tensor + 8)
    of_group = settings + 6 * group
    # In float64, because 1 - beta^t and 1 - momentum cancel.
    lr = _number(_chosen(lrs, group, GROUPS), LR)
    beta1 = tl.load(of_group)
    beta2 = tl.load(of_group + 1)
    learns = grad != 4611686018427387904
    done = tl.load(step, mask=learns, other=0.0) + 1.0
    rate = lr / (1.0 - tl.exp2(done.to(tl.float64) * tl.load(of_group + 4)))
    root = 1.0 / tl.sqrt(1.0 - tl.exp2(done.to(tl.float64) * tl.load(of_group + 5)))
    rest = _number(momentum, MOMENTUM)
    # From here on in the dtype of the weights.
    weight = (1.0 - rest).to(COMPUTE)
    rest = rest.to(COMPUTE)
    share1 = (1.0 - beta1).to(COMPUTE)
    share2 = (1.0 - beta2).to(COMPUTE)
    beta2 = beta2.to(COMPUTE)
    eps = tl.load(of_group + 2).to(COMPUTE)
    decay = (1.0 - lr * tl.load(of_group + 3)).to(COMPUTE)
    rate = rate.to(COMPUTE)
    root = root.to(COMPUTE)
    scale = _number(clip, CLIP).to(COMPUTE)
    # Unrolled, for a loop takes half as many registers again.
    for part in tl.static_range(SPAN // CHUNK):
        at = start + part * CHUNK
        # A mask of unknown length would forbid vector loads, so whole chunks go without.
        if at + CHUNK <= count:
            _move(
                tensor, grad, at, share1, beta2, share2, eps, decay, rate, root, scale,
                weight, rest, PARAM, GRAD, HALF, COMPUTE, ALIGNED, CHUNK, WHOLE=True,
            )  # fmt: skip
        elif at < count:
            _move(
                tensor, grad, at, share1, beta2, share2, eps, decay, rate, root, scale,
                weight, rest, PARAM, GRAD, HALF, COMPUTE, ALIGNED, CHUNK, WHOLE=False,
            )  # fmt: skip
    if learns:
        # Whoever of the tensor's programs is the last one counts the step, which the others have
        # read by then, and leaves its ticket as it was.
        tl.debug_barrier()
        if tl.atomic_add(tickets + row, 1) == tl.cdiv(count, SPAN) - 1:
            tl.store(tickets + row, 0)
            tl.store(step, done)


class _Tables:
    """What the kernel reads of a list of rows, on their device, beside the gradients' addresses."""

    def __init__(self, rows: Addresses, groups: Sequence[Sequence[float]], like: Tensor) -> None:
        columns = rows.fixed
        chunks = [(k, at) for k, count in enumerate(rows.counts) for at in range(0, count, _SPAN)]
        # All but the steps, which are read one by one.
        wide = [column for column in columns[:7] if column is not rows.steps]
        self.aligned = all(address % 16 == 0 for column in wide for address in column)
        self.programs = len(chunks)
        settings = [
            [beta1, beta2, eps, decay, _log2(beta1), _log2(beta2)]
            for beta1, beta2, eps, decay in groups
        ]
        self.tensors = torch.tensor(list(zip(*columns, strict=True)), device=like.device)
        self.chunks = torch.tensor(chunks, device=like.device)
        self.settings = torch.tensor(settings, dtype=torch.float64, device=like.device)
        self.tickets = torch.zeros(len(columns[0]), dtype=torch.int32, device=like.device)


def _log2(beta: float) -> float:
    return math.log2(beta) if beta > 0 else -math.inf


# Tables of a list by its first weight, as in `ema.py`: as long as that lives, for a captured graph
# keeps their addresses; and by all addresses that they hold, so that none can be stale.
_tables = WeakTensorKeyDictionary()
_MAX_TABLES = 16


def _tables_for(rows: Addresses, groups: Sequence[Sequence[float]], first: Tensor) -> _Tables:
    held: dict[tuple[object, ...], _Tables] = _tables.setdefault(first, {})
    key = (first.device, *map(tuple, rows.fixed), *map(tuple, groups))
    if key not in held:
        if len(held) >= _MAX_TABLES:
            held.pop(next(iter(held)))
        held[key] = _Tables(rows, groups, first)
    return held[key]


def launch(
    rows: Addresses, groups: Sequence[Sequence[float]], numbers: Numbers, first: Tensor
) -> None:
    """Move all rows by one step.

    Args:
        rows: Their addresses.
        groups: beta1, beta2, eps and weight decay of each group.
        numbers: What may be a tensor.
        first: The first weight, which the tables live as long as.
    """
    tables = _tables_for(rows, groups, first)
    grads = tuple(address or _NO_GRAD for address in rows.grads)
    aligned = tables.aligned and all(address % 16 == 0 for address in grads)
    rates = [_word(rate) for rate in numbers.rates]
    words = tuple(word if of_rate else _uniform(word) for word, of_rate in rates)
    (momentum, of_momentum), (clip, of_clip), (skip, of_skip) = map(
        _word, (numbers.momentum, numbers.clip, numbers.skip)
    )
    _adamw_kernel[(tables.programs,)](
        tables.tensors, tables.chunks, tables.settings, tables.tickets, grads,
        words, momentum, clip, skip,
        ROWS=len(grads), GROUPS=len(rates), LR=rates[0][1], MOMENTUM=of_momentum, CLIP=of_clip,
        SKIP=of_skip, PARAM=TL_DTYPES[first.dtype], GRAD=TL_DTYPES[rows.grad_dtype],
        HALF=None if rows.half is None else TL_DTYPES[rows.half],
        COMPUTE=TL_DTYPES[compute_dtype(first.dtype)], ALIGNED=aligned, CHUNK=_CHUNK, SPAN=_SPAN,
        num_warps=8,
    )  # fmt: skip


def _word(value: float | Tensor) -> tuple[int, object]:
    """Return the address and the dtype of a tensor, or the bits of a number and None."""
    if isinstance(value, Tensor):
        return value.data_ptr(), TL_DTYPES[value.dtype]
    (bits,) = struct.unpack("q", struct.pack("d", value))
    return bits, None


def _uniform(word: int) -> int:
    """Return the bits of nearly the same number, for which the compiler needs no other code.

    It makes one for parts of a tuple that are multiples of 16, and one for those of 32 bits: the
    last four bits are dropped, 1e-15 of the number, and zero becomes that with a sign.
    """
    return word & ~15 or -(2**63)
