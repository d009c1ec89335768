# SPDX-License-Identifier: Apache-2.0
"""The kernel of `augment_clips`.

Shapes: R rows, N clips of the store, B clips, M bodies, T frames, V joints, C = 3, l frames a
segment. A program makes a block of (segment, joint, frame) triples of one body, in token order;
what belongs to the clip (draws, crop, axis, pivot) is computed anew in each, from two joints.
"""

from torch import Tensor

from sjepa_kernels._triton import TL_DTYPES, cdiv, next_power_of_two, tl, triton
from sjepa_kernels.philox import philox4x32_device
from sjepa_kernels.purposes import CROP, MISSING, VIEW

_BLOCK = 1024
_LONGEST_TILE = 128
# Numbers of the registered op, by the kernel's names for them.
SIZES = ("T", "M", "L", "CROP_FRAMES", "CENTER", "TOP")
RANGES = ("CROP_MIN", "WARP", "ROTATION", "TILT", "TRANSLATION", "SCALE", "SHEAR", "FLIP", "DROP")

# Globals of kernels must be constants of the compiler.
_CROP, _VIEW, _MISSING = tl.constexpr(CROP), tl.constexpr(VIEW), tl.constexpr(MISSING)


@triton.jit
def _draw(seed, counter: tl.constexpr, clip, step, purpose: tl.constexpr):
    """Four uniforms of `clip_uniforms`, of index 4 counter and on."""
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    c0 = tl.full((), counter, tl.uint32)
    c3 = tl.full((), purpose, tl.uint32)
    a, b, c, d = philox4x32_device(k0, k1, c0, clip.to(tl.uint32), step.to(tl.uint32), c3)
    unit = 5.9604644775390625e-08
    a = (a >> 8).to(tl.float32) * unit
    b = (b >> 8).to(tl.float32) * unit
    c = (c >> 8).to(tl.float32) * unit
    d = (d >> 8).to(tl.float32) * unit
    return a, b, c, d


@triton.jit
def _draw_of(seed, index, clip, step, purpose: tl.constexpr):
    """The uniform of `clip_uniforms` of each index."""
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    zero = (index - index).to(tl.uint32)
    a, b, c, d = philox4x32_device(
        k0, k1, (index // 4).to(tl.uint32), zero + clip.to(tl.uint32), zero + step.to(tl.uint32),
        zero + purpose,
    )  # fmt: skip
    even = tl.where(index % 4 == 0, a, c)
    odd = tl.where(index % 4 == 1, b, d)
    return (tl.where(index % 2 == 0, even, odd) >> 8).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def _divide(a, b):
    """Correctly rounded; plain division of float32 is not, on a GPU."""
    return a / b if a.dtype == tl.float64 else tl.div_rn(a, b)


@triton.jit
def _root(a):
    return tl.sqrt(a) if a.dtype == tl.float64 else tl.sqrt_rn(a)


@triton.jit
def _times(a, b):
    """Product of two 3 x 3 matrices, row by row in tuples."""
    return (
        a[0] * b[0] + a[1] * b[3] + a[2] * b[6],
        a[0] * b[1] + a[1] * b[4] + a[2] * b[7],
        a[0] * b[2] + a[1] * b[5] + a[2] * b[8],
        a[3] * b[0] + a[4] * b[3] + a[5] * b[6],
        a[3] * b[1] + a[4] * b[4] + a[5] * b[7],
        a[3] * b[2] + a[4] * b[5] + a[5] * b[8],
        a[6] * b[0] + a[7] * b[3] + a[8] * b[6],
        a[6] * b[1] + a[7] * b[4] + a[8] * b[7],
        a[6] * b[2] + a[7] * b[5] + a[8] * b[8],
    )


@triton.jit
def _about(x, y, z, angle):
    """Rodrigues: I + sin(a) K + (1 - cos(a)) K K."""
    s = tl.sin(angle)
    c = 1.0 - tl.cos(angle)
    return (
        1.0 - c * (y * y + z * z),
        c * (x * y) - s * z,
        c * (x * z) + s * y,
        c * (x * y) + s * z,
        1.0 - c * (x * x + z * z),
        c * (y * z) - s * x,
        c * (x * z) - s * y,
        c * (y * z) + s * x,
        1.0 - c * (x * x + y * y),
    )


@triton.jit
def _place(
    first, t, crop, T: tl.constexpr, WIDTH: tl.constexpr, WARP: tl.constexpr, COMPUTE: tl.constexpr
):
    """Addresses of the two rows between which output frame t lies, and the upper one's weight.

    `crop` is its length, and a and b of its time warp.
    """
    length = crop[0]
    ratio = _divide(length.to(COMPUTE), tl.full((), T, COMPUTE))
    source = (t.to(COMPUTE) + 0.5) * ratio - 0.5
    if WARP > 0:
        share = _divide(t.to(COMPUTE) + 0.5, tl.full((), T, COMPUTE))
        bent = share * (1.0 - share) * (crop[1] + crop[2] * (1.0 - 2.0 * share))
        source += length.to(COMPUTE) * bent
    last = (length - 1).to(COMPUTE)
    source = tl.minimum(tl.maximum(source, 0.0), last)
    lower = tl.floor(source)
    upper = tl.minimum(lower + 1.0, last)
    low = (first + lower.to(tl.int64)) * WIDTH
    high = (first + upper.to(tl.int64)) * WIDTH
    return low, high, source - lower


@triton.jit
def _between(joints, low, high, weight, column, mask, COMPUTE: tl.constexpr):
    a = tl.load(joints + low + column, mask=mask, other=0.0).to(COMPUTE)
    b = tl.load(joints + high + column, mask=mask, other=0.0).to(COMPUTE)
    return a + (b - a) * weight


@triton.jit
def _frame(
    joints, low, high, weight, joint, parent, mask, BONE: tl.constexpr, COMPUTE: tl.constexpr
):
    """Three coordinates of a joint, or of the bone that leads to it."""
    x = _between(joints, low, high, weight, joint * 3, mask, COMPUTE)
    y = _between(joints, low, high, weight, joint * 3 + 1, mask, COMPUTE)
    z = _between(joints, low, high, weight, joint * 3 + 2, mask, COMPUTE)
    if BONE:
        x -= _between(joints, low, high, weight, parent * 3, mask, COMPUTE)
        y -= _between(joints, low, high, weight, parent * 3 + 1, mask, COMPUTE)
        z -= _between(joints, low, high, weight, parent * 3 + 2, mask, COMPUTE)
    return x, y, z


@triton.jit
def _features(
    joints, first, t, crop, joint, parent, mask,
    T: tl.constexpr, WIDTH: tl.constexpr, BONE: tl.constexpr, MOTION: tl.constexpr,
    WARP: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Three coordinates of the stream at output frame t."""
    low, high, weight = _place(first, t, crop, T, WIDTH, WARP, COMPUTE)
    x, y, z = _frame(joints, low, high, weight, joint, parent, mask, BONE, COMPUTE)
    if MOTION:
        low, high, weight = _place(first, t + 1, crop, T, WIDTH, WARP, COMPUTE)
        u, v, w = _frame(joints, low, high, weight, joint, parent, mask, BONE, COMPUTE)
        moves = t + 1 < T
        x = tl.where(moves, u - x, 0.0)
        y = tl.where(moves, v - y, 0.0)
        z = tl.where(moves, w - z, 0.0)
    return x, y, z


@triton.jit
def _pose(
    joints, row, crop, count, T: tl.constexpr, WIDTH: tl.constexpr, CENTER: tl.constexpr,
    TOP: tl.constexpr, WARP: tl.constexpr, COMPUTE: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Clip means of the first body's center and of what leads from there to its spine's top."""
    center_x = tl.zeros((BT,), COMPUTE)
    center_y = tl.zeros((BT,), COMPUTE)
    center_z = tl.zeros((BT,), COMPUTE)
    spine_x = tl.zeros((BT,), COMPUTE)
    spine_y = tl.zeros((BT,), COMPUTE)
    spine_z = tl.zeros((BT,), COMPUTE)
    for begin in range(0, T, BT):
        t = begin + tl.arange(0, BT)
        there = (t < T) & (count > 0)
        low, high, weight = _place(row, t, crop, T, WIDTH, WARP, COMPUTE)
        x, y, z = _frame(joints, low, high, weight, CENTER, 0, there, False, COMPUTE)
        u, v, w = _frame(joints, low, high, weight, TOP, 0, there, False, COMPUTE)
        center_x += x
        center_y += y
        center_z += z
        spine_x += u - x
        spine_y += v - y
        spine_z += w - z
    return (
        tl.sum(center_x) / T,
        tl.sum(center_y) / T,
        tl.sum(center_z) / T,
        tl.sum(spine_x) / T,
        tl.sum(spine_y) / T,
        tl.sum(spine_z) / T,
    )


@triton.jit
def _anything(
    joints, first, crop, listed, T: tl.constexpr, V: tl.constexpr, WARP: tl.constexpr,
    COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Whether a listed body is not zero in the whole crop; one look suffices for most."""
    seen = tl.full((), 0, tl.int32)
    begin = tl.full((), 0, tl.int32)
    while listed & (seen == 0) & (begin < T * V):
        p = begin + tl.arange(0, BLOCK)
        low, high, weight = _place(first, p // V, crop, T, V * 3, WARP, COMPUTE)
        x, y, z = _frame(joints, low, high, weight, p % V, 0, p < T * V, False, COMPUTE)
        seen = tl.max(((x != 0) | (y != 0) | (z != 0)).to(tl.int32))
        begin += BLOCK
    return seen > 0


@triton.jit
def _write(out, x, y, z, alive, good, mask):
    """Absent bodies become zero, clips that are not in the store NaN."""
    nan = float("nan")
    tl.store(out, tl.where(good, tl.where(alive, x, 0.0), nan), mask=mask)
    tl.store(out + 1, tl.where(good, tl.where(alive, y, 0.0), nan), mask=mask)
    tl.store(out + 2, tl.where(good, tl.where(alive, z, 0.0), nan), mask=mask)


@triton.jit
def _stream(
    joints, flip, parents, view, clip, first, t, crop, joint, mirrored, matrix, pivot, shift,
    alive, there, good, live, inside,
    T: tl.constexpr, WIDTH: tl.constexpr, WARP: tl.constexpr, FLIP: tl.constexpr,
    BONE: tl.constexpr, MOTION: tl.constexpr, WITH_CLIP: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Write one stream of the clip and of the view."""
    parent = joint
    if BONE:
        parent = tl.load(parents + joint)
    x, y, z = _features(
        joints, first, t, crop, joint, parent, live, T, WIDTH, BONE, MOTION, WARP, COMPUTE
    )
    if WITH_CLIP:
        _write(clip, x, y, z, alive, good, inside)
    if FLIP > 0:
        joint = tl.where(mirrored, tl.load(flip + joint), joint)
        if BONE:
            parent = tl.where(mirrored, tl.load(flip + parent), parent)
        x, y, z = _features(
            joints, first, t, crop, joint, parent, live, T, WIDTH, BONE, MOTION, WARP, COMPUTE
        )
    # Differences of joints and of frames know nothing of pivot and shift.
    if not (BONE or MOTION):
        x -= pivot[0]
        y -= pivot[1]
        z -= pivot[2]
    sign = tl.where(mirrored, -1.0, 1.0)
    u = sign * (matrix[0] * x + matrix[1] * y + matrix[2] * z)
    v = matrix[3] * x + matrix[4] * y + matrix[5] * z
    w = matrix[6] * x + matrix[7] * y + matrix[8] * z
    if not (BONE or MOTION):
        u += shift[0]
        v += shift[1]
        w += shift[2]
    _write(view, u, v, w, there, good, inside)


@triton.jit
def _augment_kernel(
    joints, offsets, frames, bodies, ids, seed, step, flip, parents, view, clip, N, R,
    T: tl.constexpr, V: tl.constexpr, L: tl.constexpr, M: tl.constexpr,
    CENTER: tl.constexpr, TOP: tl.constexpr,
    CROP_FRAMES: tl.constexpr, CROP_MIN: tl.constexpr, WARP: tl.constexpr,
    ROTATION: tl.constexpr, TILT: tl.constexpr, TRANSLATION: tl.constexpr,
    SCALE: tl.constexpr, SHEAR: tl.constexpr, FLIP: tl.constexpr, DROP: tl.constexpr,
    BODY: tl.constexpr, TURN_Z: tl.constexpr, ALL: tl.constexpr, BONE: tl.constexpr,
    MOTION: tl.constexpr, WITH_CLIP: tl.constexpr,
    COMPUTE: tl.constexpr, BT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    WIDTH: tl.constexpr = V * 3
    sequence = tl.program_id(0).to(tl.int64)
    body = sequence % M
    key = tl.load(ids + sequence // M).to(tl.int64)
    good = (key >= 0) & (key < N)
    row = tl.load(offsets + key, mask=good, other=0)
    valid = tl.load(frames + key, mask=good, other=1)
    count = tl.load(bodies + key, mask=good, other=0)
    good = good & (row >= 0) & (valid > 0) & (count >= 0) & (row + count * valid <= R)
    row = tl.where(good, row, 0)
    valid = tl.where(good, valid, 1)
    count = tl.where(good, count, 0)
    random = tl.load(seed)
    now = tl.load(step)

    # The crop is always drawn in float32, as the reference does.
    u, v, a, b = _draw(random, 0, key, now, _CROP)
    share = CROP_MIN + (1 - CROP_MIN) * u
    length = tl.floor(share * valid.to(tl.float32)).to(tl.int64)
    length = tl.minimum(tl.maximum(length, CROP_FRAMES), valid)
    start = tl.floor(v * (valid - length + 1).to(tl.float32)).to(tl.int64)
    row += tl.minimum(start, valid - length)
    crop = (length, (a.to(COMPUTE) * 2 - 1) * WARP, (b.to(COMPUTE) * 2 - 1) * WARP)

    angle, second, third, shift_x = _draw(random, 0, key, now, _VIEW)
    shift_y, shift_z, toss, factor = _draw(random, 1, key, now, _VIEW)
    angle = angle.to(COMPUTE) * 2 - 1
    second = second.to(COMPUTE) * 2 - 1
    third = third.to(COMPUTE) * 2 - 1
    zero = angle * 0.0
    one = zero + 1.0
    pivot_x = zero
    pivot_y = zero
    pivot_z = zero
    if BODY:
        pivot_x, pivot_y, pivot_z, x, y, z = _pose(
            joints, row, crop, count, T, WIDTH, CENTER, TOP, WARP, COMPUTE, BT
        )
        norm = _root(x * x + y * y + z * z)
        flat = norm <= 1e-6
        norm = tl.maximum(norm, 1e-6)
        x = tl.where(flat, 0.0, _divide(x, norm))
        y = tl.where(flat, 1.0, _divide(y, norm))
        z = tl.where(flat, 0.0, _divide(z, norm))
        matrix = _about(x, y, z, angle * ROTATION)
        if TILT > 0:
            tilt_x = _about(one, zero, zero, second * TILT)
            tilt_z = _about(zero, zero, one, third * TILT)
            matrix = _times(_times(tilt_z, tilt_x), matrix)
    else:
        turn_x = _about(one, zero, zero, -angle * ROTATION)
        turn_y = _about(zero, one, zero, -second * ROTATION)
        matrix = _times(turn_y, turn_x)
        if TURN_Z:
            turn_z = _about(zero, zero, one, -third * ROTATION)
            matrix = _times(_times(turn_z, turn_y), turn_x)
    if SCALE > 0:
        factor = 1.0 + (factor.to(COMPUTE) * 2 - 1) * SCALE
        matrix = _times((factor, zero, zero, zero, factor, zero, zero, zero, factor), matrix)
    if SHEAR > 0:
        a, b, c, d = _draw(random, 2, key, now, _VIEW)
        e, f, _, _ = _draw(random, 3, key, now, _VIEW)
        a = (a.to(COMPUTE) * 2 - 1) * SHEAR
        b = (b.to(COMPUTE) * 2 - 1) * SHEAR
        c = (c.to(COMPUTE) * 2 - 1) * SHEAR
        d = (d.to(COMPUTE) * 2 - 1) * SHEAR
        e = (e.to(COMPUTE) * 2 - 1) * SHEAR
        f = (f.to(COMPUTE) * 2 - 1) * SHEAR
        matrix = _times((one, a, b, c, one, d, e, f, one), matrix)
    shift_x = pivot_x + (shift_x.to(COMPUTE) * 2 - 1) * TRANSLATION
    shift_y = pivot_y + (shift_y.to(COMPUTE) * 2 - 1) * TRANSLATION
    shift_z = pivot_z + (shift_z.to(COMPUTE) * 2 - 1) * TRANSLATION
    pivot = (pivot_x, pivot_y, pivot_z)
    shift = (shift_x, shift_y, shift_z)
    mirrored = toss < FLIP

    first = row + body * valid
    listed = body < count
    alive = listed & _anything(joints, first, crop, listed, T, V, WARP, COMPUTE, BLOCK)

    p = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = p < T * V
    live = inside & alive
    joint = (p // L) % V
    t = p // (L * V) * L + p % L
    there = alive
    if DROP > 0:
        there = alive & (_draw_of(random, joint, key, now, _MISSING) >= DROP)
    COORDS: tl.constexpr = 9 if ALL else 3
    out = sequence * (T * V * COORDS) + p * COORDS
    view += out
    clip += out
    if ALL:
        _stream(
            joints, flip, parents, view, clip, first, t, crop, joint, mirrored, matrix,
            pivot, shift, alive, there, good, live, inside,
            T, WIDTH, WARP, FLIP, False, False, WITH_CLIP, COMPUTE,
        )  # fmt: skip
        _stream(
            joints, flip, parents, view + 3, clip + 3, first, t, crop, joint, mirrored, matrix,
            pivot, shift, alive, there, good, live, inside,
            T, WIDTH, WARP, FLIP, True, False, WITH_CLIP, COMPUTE,
        )  # fmt: skip
        _stream(
            joints, flip, parents, view + 6, clip + 6, first, t, crop, joint, mirrored, matrix,
            pivot, shift, alive, there, good, live, inside,
            T, WIDTH, WARP, FLIP, False, True, WITH_CLIP, COMPUTE,
        )  # fmt: skip
    else:
        _stream(
            joints, flip, parents, view, clip, first, t, crop, joint, mirrored, matrix,
            pivot, shift, alive, there, good, live, inside,
            T, WIDTH, WARP, FLIP, BONE, MOTION, WITH_CLIP, COMPUTE,
        )  # fmt: skip


def launch(
    inputs: list[Tensor], view: Tensor, clip: Tensor, sizes: list[int], ranges: list[float],
    form: str, stream: str,
) -> None:  # fmt: skip
    """Fill `view` and, where it has rows, `clip`, the tokens.

    The inputs are the store, ids, seed, step and tables as the op gets them, contiguous; the
    numbers are in the order of `SIZES` and of `RANGES`.
    """
    joints = inputs[0].shape[1]
    cells = sizes[0] * joints
    constants = dict(zip(SIZES + RANGES, [*sizes, *ranges], strict=True))
    _augment_kernel[(view.shape[0], cdiv(cells, _BLOCK))](
        *inputs, view, clip, inputs[1].shape[0], inputs[0].shape[0], V=joints, **constants,
        BODY=form == "body", TURN_Z=form == "axes", ALL=stream == "all",
        BONE=stream.startswith("bone"), MOTION=stream.endswith("motion"),
        WITH_CLIP=clip.shape[0] > 0, COMPUTE=TL_DTYPES[view.dtype],
        BT=min(next_power_of_two(sizes[0]), _LONGEST_TILE),
        BLOCK=min(next_power_of_two(cells), _BLOCK),
        # A fused multiply-add could move a crop by a frame against the reference.
        enable_fp_fusion=False,
        # Bones and motion hold up to four times the rows; more warps keep them out of memory.
        num_warps=4 if stream == "joint" else 8,
    )  # fmt: skip
