# SPDX-License-Identifier: Apache-2.0
"""What the self-check compares random ops and regularizers with: their definitions.

Nothing here calls an op or its reference: Philox in Python's integers, keys one at a time, and
joints one frame at a time on the CPU, in float64; losses of features in the dtype of these.
"""

import math
from statistics import NormalDist

import torch
from torch import Tensor

from sjepa_kernels.augment.settings import Augmentation

_WORD = 1 << 32


def philox_words(seed: int, counter: tuple[int, int, int, int]) -> list[int]:
    """The four words of Philox4x32-10 (Salmon et al., SC'11)."""
    k0, k1 = seed % _WORD, (seed >> 32) % _WORD
    c0, c1, c2, c3 = (c % _WORD for c in counter)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, _WORD)
        high1, low1 = divmod(0xCD9E8D57 * c2, _WORD)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % _WORD, (k1 + 0xBB67AE85) % _WORD
    return [c0, c1, c2, c3]


def draws(seed: int, step: int, clip: int, purpose: int, count: int) -> list[float]:
    """The first uniform numbers of a clip."""
    words = [
        word
        for block in range((count + 3) // 4)
        for word in philox_words(seed, (block, clip, step, purpose))
    ]
    return [(word >> 8) / 2**24 for word in words[:count]]


def directions(seed: int, step: int, count: int, width: int) -> Tensor:
    """Unit vectors of the normals that Box and Muller's formula makes of pairs of draws."""
    rows = []
    for k in range(count):
        u = draws(seed, step, k, 1 << 17, 4 * ((width + 3) // 4))
        row: list[float] = []
        for near, turn in zip(u[::2], u[1::2], strict=True):
            radius = math.sqrt(-2 * math.log((int(near * 2**24) | 1) / 2**24))
            row += [radius * math.cos(2 * math.pi * turn), radius * math.sin(2 * math.pi * turn)]
        rows.append(row[:width])
    normals = torch.tensor(rows, dtype=torch.float64)
    unit: Tensor = normals / torch.linalg.vector_norm(normals, dim=1, keepdim=True)
    return unit


def visreg_terms(axes_KD: Tensor, z: Tensor) -> Tensor:
    """Center, scale and shape of (V, N, D)."""
    samples = z.shape[1]
    mean, sigma = z.mean(1, keepdim=True), z.std(1, correction=0, keepdim=True) + 1e-6
    quantiles = [NormalDist().inv_cdf((i + 1) / (samples + 1)) for i in range(samples)]
    x = ((z - mean) / sigma.detach()) @ axes_KD.to(z.dtype).mT
    gaps = x.sort(dim=1).values - torch.tensor(quantiles, dtype=torch.float64).to(z)[:, None]
    return torch.stack([part.square().mean() for part in (mean, sigma - 1, gaps)])


def vicreg_terms(z: Tensor) -> Tensor:
    """Variance and covariance of (N, D)."""
    covariance = z.mT.cov()
    variance = torch.relu(1 - (covariance.diag() + 1e-4).sqrt()).mean()
    others = covariance - covariance.diag().diag()
    return torch.stack([variance, others.square().sum() / z.shape[1]])


def koleo_loss(z: Tensor) -> Tensor:
    """Of (N, D), with all products in memory."""
    x = z / torch.linalg.vector_norm(z, dim=1, keepdim=True)
    near = (x @ x.mT).detach().fill_diagonal_(-math.inf).argmax(dim=1)
    distance = torch.linalg.vector_norm(x - x[near] + 1e-8, dim=1)
    loss: Tensor = -(distance + 1e-8).log().mean()
    return loss


def split(keys: list[float], keep: int) -> list[bool]:
    """Whether each is one of the `keep` smallest, earlier ones first among equals."""
    order = sorted(range(len(keys)), key=keys.__getitem__)
    kept = set(order[:keep])
    return [n in kept for n in range(len(keys))]


def mask_ids(visible: list[list[bool]]) -> list[Tensor]:
    """Ids kept, ids masked, and where each token stands in the two together."""
    found: list[list[list[int]]] = [[], [], []]
    for row in visible:
        keep = [n for n, seen in enumerate(row) if seen]
        hide = [n for n, seen in enumerate(row) if not seen]
        both = keep + hide
        places = [both.index(n) for n in range(len(row))]
        for rows, ids in zip(found, (keep, hide, places), strict=True):
            rows.append(ids)
    return [torch.tensor(rows, dtype=torch.int32) for rows in found]


def block_masks(
    clips: int, grid: tuple[int, int], context: tuple[int, int], target: tuple[int, int], keep: int
) -> list[Tensor]:
    """Of `block_mask` with two targets, seed 5: all that it returns, token by token."""
    rows, columns = grid
    visible, targets, free = [], [[], []], []  # type: ignore[var-annotated]
    for clip in range(clips):
        places = 9 + rows * columns
        words = [w for k in range((places + 3) // 4) for w in philox_words(5, (k, clip, 0, 0))]
        covers = []
        for size, first in zip((context, target, target), (0, 3, 6), strict=True):
            top = (grid[0] - size[0] + 1) * words[first + 1] >> 32
            left = (grid[1] - size[1] + 1) * words[first + 2] >> 32
            covers.append(
                [
                    r * columns + c
                    for r in range(top, top + size[0])
                    for c in range(left, left + size[1])
                ]
            )
        keys = []
        for n in range(rows * columns):
            rank = 2 if n in covers[1] + covers[2] else 0 if n in covers[0] else 1
            keys.append((rank << 24) + (words[9 + n] >> 8))
        free.append(sum(key < 1 << 24 for key in keys))
        visible.append(split([float(key) for key in keys], keep))
        for p in range(2):
            targets[p].append(covers[1 + p])
    ids_target = torch.tensor(targets[0] + targets[1], dtype=torch.int32)
    return [*mask_ids(visible), ids_target, torch.tensor(free, dtype=torch.int32)]


def motion_visible(x_SVP: Tensor, u: list[float], keep: int, tau: float) -> list[bool]:
    """Of `motion_aware_mask`: the smallest of log softmax of motion plus Gumbel noise."""
    change = (x_SVP[1:] - x_SVP[:-1]).abs().mean(dim=2)
    motion = [*change[0].tolist(), *change.flatten().tolist()]
    scaled = [m / (max(motion) * tau + 1e-10) for m in motion]
    norm = math.log(sum(map(math.exp, scaled)))
    keys = [
        s - norm - math.log(-math.log(draw + 1e-10) + 1e-10)
        for s, draw in zip(scaled, u, strict=True)
    ]
    return split(keys, keep)


def tube_visible(
    x_SVlC: Tensor, u: list[float], keep: int, length: int, scale: float
) -> list[bool]:
    """Of `tube_mask`: in each tube the joints with the smallest draw plus share of motion."""
    segments, joints = x_SVlC.shape[:2]
    frames_TVC = x_SVlC.transpose(1, 2).flatten(0, 1)
    still = torch.zeros_like(frames_TVC[:1])
    change_TV = torch.cat([frames_TVC.diff(dim=0), still]).abs().mean(dim=2)
    visible: list[bool] = []
    for tube, part in enumerate(change_TV.chunk(segments // length)):
        motion = part.mean(dim=0).tolist()
        own = u[tube * joints : (tube + 1) * joints]
        keys = [d + scale * m / (max(motion) + 1e-6) for d, m in zip(own, motion, strict=True)]
        visible += split(keys, keep) * length
    return visible


def resized(rows: Tensor, u: list[float], a: Augmentation) -> Tensor:
    """The crop of one body's frames that the draws ask for, (T, V, 3)."""
    valid = len(rows)
    length = math.floor((a.crop_min + (1 - a.crop_min) * u[0]) * valid)
    length = min(max(length, a.crop_min_frames), valid)
    start = min(math.floor(u[1] * (valid - length + 1)), valid - length)
    out = []
    for t in range(a.frames):
        s = (t + 0.5) / a.frames
        s += s * (1 - s) * ((2 * u[2] - 1) + (2 * u[3] - 1) * (1 - 2 * s)) * a.time_warp
        at = min(max(s * length - 0.5, 0.0), length - 1.0)
        low = int(at)
        high = min(low + 1, length - 1)
        out.append(rows[start + low] * (low + 1 - at) + rows[start + high] * (at - low))
    return torch.stack(out)


def turned(x: Tensor, axis: Tensor, angle: float) -> Tensor:
    """Rodrigues' formula for vectors."""
    along = (x @ axis)[..., None] * axis
    across = torch.linalg.cross(axis.expand_as(x), x)
    result: Tensor = x * math.cos(angle) + across * math.sin(angle) + along * (1 - math.cos(angle))
    return result


def viewed(
    x_MTVC: Tensor, u: list[float], flip: list[int], center: int, top: int, a: Augmentation
) -> Tensor:
    """The view of form "body" of a clip whose bodies are all there."""
    signed = [2 * draw - 1 for draw in u]
    spine = (x_MTVC[0, :, top] - x_MTVC[0, :, center]).mean(dim=0)
    pivot = x_MTVC[0, :, center].mean(dim=0)
    unit_x, _, unit_z = torch.eye(3, dtype=torch.float64)
    y = turned(x_MTVC - pivot, spine / spine.norm(), signed[0] * a.rotation)
    y = turned(turned(y, unit_x, signed[1] * a.tilt), unit_z, signed[2] * a.tilt)
    y = y * (1 + signed[7] * a.scale)
    h = [s * a.shear for s in signed[8:]]
    rows = [[1, h[0], h[1]], [h[2], 1, h[3]], [h[4], h[5], 1]]
    y = y @ torch.tensor(rows, dtype=torch.float64).mT
    if u[6] < a.flip:
        y = y[:, :, flip] * torch.tensor([-1.0, 1.0, 1.0])
    return y + pivot + torch.tensor(signed[3:6], dtype=torch.float64) * a.translation


def tubelets(x_MTVC: Tensor, length: int) -> Tensor:
    """Tokens of each body, (M, S*V, l*3)."""
    parts = [
        torch.cat([x_MTVC[:, s + t, v] for t in range(length)], dim=1)
        for s in range(0, x_MTVC.shape[1], length)
        for v in range(x_MTVC.shape[2])
    ]
    return torch.stack(parts, dim=1)
