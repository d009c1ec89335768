# SPDX-License-Identifier: Apache-2.0
"""The self-check behind `python -m sjepa_kernels`: every op that can run here, against float64.

To add an op, write a function like those below, or in `losses.py`, and name it in `CHECKS`. A
function gets `(impl, device)` and returns triples (`triples.py`); the formula in float64 is written
out there or in `truth.py`.
"""

import math
import platform
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from sjepa_kernels import _triton, native
from sjepa_kernels.attention.cpu import PROCESSOR_HAS_CODE, PROCESSOR_HAS_FLOAT_CODE
from sjepa_kernels.attention.op import attention, self_attention
from sjepa_kernels.augment.op import augment_clips
from sjepa_kernels.augment.settings import Augmentation, SkeletonTables
from sjepa_kernels.blocks.fused_mlp import fused_mlp
from sjepa_kernels.blocks.gelu_mlp import gelu_mlp
from sjepa_kernels.blocks.residual_norm import residual_layer_norm
from sjepa_kernels.ema import EmaPlan
from sjepa_kernels.masks.blocks import block_mask
from sjepa_kernels.masks.tokens import motion_aware_mask, random_mask
from sjepa_kernels.masks.tubes import tube_mask
from sjepa_kernels.optim.optimizer import FusedAdamWEma
from sjepa_kernels.philox import philox4x32, uniform
from sjepa_kernels.selfcheck import losses
from sjepa_kernels.selfcheck import truth as definition
from sjepa_kernels.selfcheck.triples import Triple, normals, with_gradients
from sjepa_kernels.targets import ContextualizedTargets
from sjepa_kernels.tokens.pack import pack_tokens
from sjepa_kernels.tokens.positions import add_positions
from sjepa_kernels.tokens.scatter import scatter_mask_tokens

# An error may be twice eager's plus this, in the Euclidean norm relative to the truth.
SLACK = 5e-7
# Upper limit, whatever the error of eager: a larger one means a wrong result.
MOST = 0.05


def _token_inputs(device: str) -> tuple[list[Tensor], Tensor]:
    """Two sequences of 3 segments x 5 joints, 6 of 15 tokens visible, width 24."""
    order = normals(2, 15, seed=9).argsort(dim=1).to(device)
    return [normals(2, 6, 24), normals(24), normals(3, 24, seed=1), normals(5, 24, seed=2)], order


def _packed(order: Tensor, x: Tensor, mask: Tensor, temporal: Tensor, spatial: Tensor) -> Tensor:
    content = torch.cat([x, mask.expand(2, 9, -1)], dim=1)
    return content + (temporal[:, None] + spatial).flatten(0, 1)[order]


def _pack(impl: str, device: str) -> list[Triple]:
    leaves, order = _token_inputs(device)
    keep, hide = order[:, :6], order[:, 6:]

    def ours(x: Tensor, mask: Tensor, *tables: Tensor) -> Tensor:
        return pack_tokens(x, mask, keep, hide, *tables, impl=impl)

    return with_gradients(ours, partial(_packed, order), leaves, device)


def _positions(impl: str, device: str) -> list[Triple]:
    leaves, order = _token_inputs(device)
    keep = order[:, :6]

    def ours(x: Tensor, *tables: Tensor) -> Tensor:
        return add_positions(x, keep, *tables, impl=impl)

    def plain(x: Tensor, temporal: Tensor, spatial: Tensor) -> Tensor:
        return x + (temporal[:, None] + spatial).flatten(0, 1)[keep]

    return with_gradients(ours, plain, [leaves[0], *leaves[2:]], device)


def _scatter(impl: str, device: str) -> list[Triple]:
    leaves, order = _token_inputs(device)
    back = order.argsort(dim=1)[:, :, None].expand(-1, -1, 24)

    def ours(x: Tensor, mask: Tensor, *tables: Tensor) -> Tensor:
        return scatter_mask_tokens(x, mask, order[:, :6], *tables, impl=impl)

    def plain(*inputs: Tensor) -> Tensor:
        return _packed(order, *inputs).gather(1, back)

    return with_gradients(ours, plain, leaves, device)


def _masks(impl: str, device: str) -> list[Triple]:
    """The ids themselves, which must be those that follow from the keys in float64."""
    seed, tubelets = torch.tensor(5, device=device), normals(4, 30, 12)

    x = tubelets.to(device)
    ours = [
        *random_mask(4, 30, 7, seed, impl=impl),
        *motion_aware_mask(x, 7, seed, joints=5, impl=impl),
        *tube_mask(x, 2, seed, joints=5, tube_length=2, impl=impl),
    ]
    drawn = [definition.draws(5, 0, clip, 0, 30) for clip in range(4)]
    grids = tubelets.double().view(4, 6, 5, 12)
    pairs = list(zip(grids, drawn, strict=True))
    truth = [
        *definition.mask_ids([definition.split(u, 7) for u in drawn]),
        *definition.mask_ids([definition.motion_visible(x, u, 7, 0.8) for x, u in pairs]),
        *definition.mask_ids(
            [definition.tube_visible(x.unflatten(2, (4, 3)), u, 2, 2, 0.1) for x, u in pairs]
        ),
    ]
    truth = [ids.to(device) for ids in truth]
    return list(zip(ours, truth, truth, strict=True))


def _block_masks(impl: str, device: str) -> list[Triple]:
    grid, context, target = (4, 7), (4, 6), (2, 3)
    seed = torch.tensor(5, device=device)
    options = {"target": target, "targets": 2, "context": context}
    ours = block_mask(3, grid, 9, seed, **options, impl=impl)  # type: ignore[arg-type]
    truth = [ids.to(device) for ids in definition.block_masks(3, grid, context, target, 9)]
    return list(zip(ours, truth, truth, strict=True))


def _augment(impl: str, device: str) -> list[Triple]:
    """Three clips of five joints, with everything that a view can do."""
    frames, bodies = torch.tensor([9, 20, 14]), torch.tensor([1, 2, 2])
    rows, flip, order = frames * bodies, [0, 1, 2, 4, 3], [2, 0, 1]
    first = rows.cumsum(0) - rows
    skeleton = SkeletonTables.of(flip, [0, 0, 1, 1, 1], 0, 2, device)
    a = Augmentation(
        frames=12, crop_min_frames=4, tilt=0.1, translation=0.1, scale=0.1, shear=0.1, flip=0.5,
        time_warp=0.3, joint_drop=0.4,
    )  # fmt: skip
    joints = normals(int(rows.sum()), 5, 3)
    seed, step = (torch.tensor(n, device=device) for n in (3, 7))
    there, at, length, count = (x.to(device) for x in (joints, first, frames, bodies))
    ids = torch.tensor(order, device=device)
    ours = augment_clips(there, at, length, count, ids, seed, step, skeleton, a, impl=impl)
    truth: list[list[Tensor]] = [[], []]
    for clip in order:
        purposes = 0, 1, (1 << 17) + 2
        crop, view, missing = (definition.draws(3, 7, clip, purpose, 14) for purpose in purposes)
        packed = joints[int(first[clip]) :][: int(rows[clip])].double()
        x = torch.stack([definition.resized(b, crop, a) for b in packed.split(int(frames[clip]))])
        absent = torch.zeros(2 - len(x), 15, 12, dtype=torch.float64)
        seen = definition.viewed(x, view, flip, 0, 2, a)
        seen[:, :, [joint for joint in range(5) if missing[joint] < a.joint_drop]] = 0
        for kind, made in zip(truth, (seen, x), strict=True):
            kind.append(torch.cat([definition.tubelets(made, 4), absent]))
    exact = [torch.cat(kind).to(device) for kind in truth]
    # Plain PyTorch is the op's own reference here, so its error must not set the budget.
    return [(mine, true.float(), true) for mine, true in zip(ours, exact, strict=True)]


def _ema(impl: str, device: str) -> list[Triple]:
    # One chunk of the kernel and a bit, and a transposed matrix.
    targets = [normals(4099).to(device), normals(6, 8).to(device).t()]
    sources = [normals(4099, seed=1).to(device), normals(6, 8, seed=1).to(device).t()]
    eager = [torch.lerp(t, s, 0.04) for t, s in zip(targets, sources, strict=True)]
    truth = [0.96 * t.double() + 0.04 * s.double() for t, s in zip(targets, sources, strict=True)]
    EmaPlan(targets, sources, impl=impl).update_(0.96)
    return list(zip(targets, eager, truth, strict=True))


def _adamw(impl: str, device: str) -> list[Triple]:
    """Three clipped steps of a span of the kernel and a bit, and of a transposed matrix."""
    start = [normals(4099), normals(6, 8).t()]
    grads = [[normals(*x.shape, seed=k + 1).to(device) for x in start] for k in range(3)]

    def plain(dtype: torch.dtype) -> list[Tensor]:
        params, targets = ([x.to(device, dtype) for x in start] for _ in range(2))
        moments = [(torch.zeros_like(x), torch.zeros_like(x)) for x in params]
        for t, of_step in enumerate(grads, start=1):
            for k, grad in enumerate(of_step):
                g, (m, v) = 0.5 * grad.to(dtype), moments[k]
                m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
                moments[k] = m, v
                under = (v / (1 - 0.99**t)).sqrt() + 1e-8
                params[k] = params[k] * (1 - 0.02 * 0.1) - 0.02 * m / (1 - 0.9**t) / under
                targets[k] = 0.96 * targets[k] + 0.04 * params[k]
        return params + targets

    weights = [torch.nn.Parameter(x.to(device, copy=True)) for x in start]
    targets = [x.to(device, copy=True) for x in start]
    betas = (0.9, 0.99)
    optimizer = FusedAdamWEma(
        weights, lr=0.02, betas=betas, weight_decay=0.1, targets=targets, impl=impl
    )
    for of_step in grads:
        for weight, grad in zip(weights, of_step, strict=True):
            weight.grad = grad
        optimizer.step(momentum=0.96, clip=0.5)
    ours = [x.detach() for x in (*weights, *targets)]
    return list(zip(ours, plain(torch.float32), plain(torch.float64), strict=True))


def _attention(impl: str, device: str, dtype: torch.dtype) -> list[Triple]:
    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.mT / 4, dim=-1) @ v

    leaves = [normals(2, 3, n, 16, seed=n) for n in (37, 41, 41)]
    return with_gradients(partial(attention, impl=impl), plain, leaves, device, dtype)


def _self_attention(impl: str, device: str, dtype: torch.dtype) -> list[Triple]:
    """Of the tokens from the sixth on, from a packed tensor; of a bias in it, the gradient."""

    def ours(qkv: Tensor, bias: Tensor) -> Tensor:
        packed = qkv + bias.detach().view(3, 3, 16)
        return self_attention(packed, first=5, impl=impl, added_bias=bias)

    def plain(qkv: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (qkv + bias.view(3, 3, 16)).permute(2, 0, 3, 1, 4)
        mixed: Tensor = torch.softmax(q[:, :, 5:] @ k.mT / 4, dim=-1) @ v
        return mixed.transpose(1, 2)

    leaves = [normals(2, 141, 3, 3, 16), normals(144, seed=1)]
    return with_gradients(ours, plain, leaves, device, dtype)


def _residual_norm(impl: str, device: str) -> list[Triple]:
    """Both outputs, side by side."""

    def plain(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        total = x + residual
        return torch.cat([layer_norm(total, (24,), weight, bias), total])

    leaves = [normals(9, 24), normals(9, 24, seed=1), normals(24), normals(24, seed=1)]
    return with_gradients(
        lambda *inputs: torch.cat(residual_layer_norm(*inputs, impl=impl)), plain, leaves, device
    )


def _fused_mlp(impl: str, device: str) -> list[Triple]:
    def plain(x: Tensor, *parameters: Tensor) -> Tensor:
        weight, bias, w1, b1, w2, b2 = parameters
        hidden = gelu(layer_norm(x, (16,), weight, bias) @ w1.mT + b1)
        return x + hidden @ w2.mT + b2

    shapes = (9, 16), (16,), (16,), (64, 16), (64,), (16, 64), (16,)
    leaves = [normals(*shape, seed=k) for k, shape in enumerate(shapes)]
    return with_gradients(partial(fused_mlp, impl=impl), plain, leaves, device)


def _gelu_mlp(impl: str, device: str, dtype: torch.dtype) -> list[Triple]:
    """In half precision by the kernels, and in float32 around them."""

    def plain(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        return gelu(x @ w1.mT + b1) @ w2.mT + b2

    shapes = (9, 16), (64, 16), (64,), (16, 64), (16,)
    leaves = [normals(*shape, seed=k) for k, shape in enumerate(shapes)]
    return with_gradients(partial(gelu_mlp, impl=impl), plain, leaves, device, dtype)


def _targets(impl: str, device: str) -> list[Triple]:
    """Three layers, each normalised over its tokens; a LayerNorm of their mean at some tokens."""
    layers = [normals(2, 15, 24, seed=k).to(device) for k in range(3)]
    ids = normals(2, 15, seed=9).argsort(dim=1)[:, :6].to(device)

    def plain(dtype: torch.dtype) -> Tensor:
        x = torch.stack(layers).to(dtype)
        x = (x - x.mean(2, keepdim=True)) / (x.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
        chosen = x.mean(0).gather(1, ids[:, :, None].expand(-1, -1, 24))
        return layer_norm(chosen, (24,))

    ours = ContextualizedTargets(3, norm="instance", final_norm=True, impl=impl)
    for layer in layers:
        ours.add_(layer)
    return [(ours.finish(ids), plain(torch.float32), plain(torch.float64))]


def _philox(impl: str, device: str) -> list[Triple]:
    """The known answer for an all-zero counter and key, as bits and as uniform numbers."""
    seed = torch.zeros((), dtype=torch.int64, device=device)
    words = torch.stack(philox4x32(seed, 0, 0, 0, 0))
    known = torch.tensor([0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8], device=device)
    draws = uniform(known).double(), known.double() / 2**32
    return [(words, known, known), (uniform(words), draws[0].float(), draws[0])]


class Check(NamedTuple):
    """The function that runs an op, and which code it has beside plain PyTorch."""

    run: Callable[[str, str], list[Triple]]
    impls: tuple[str, ...] = ()


# Elsewhere "cpu" is the reference, which has its line already.
_ATTENTION = ("cpu",) if PROCESSOR_HAS_CODE else ()
_FLOAT_ATTENTION = ("cpu",) if PROCESSOR_HAS_FLOAT_CODE else ()
CHECKS = {
    "adamw_ema_, FusedAdamWEma": Check(_adamw, ("cpu", "triton")),
    "add_positions": Check(_positions, ("triton",)),
    "attention": Check(partial(_attention, dtype=torch.float32), _FLOAT_ATTENTION),
    "attention (bfloat16)": Check(partial(_attention, dtype=torch.bfloat16), _ATTENTION),
    "augment_clips": Check(_augment, ("triton",)),
    "centered_crop_cross_entropy": Check(losses.centered_crops_triples, ("cpu", "triton")),
    "centered_softmax_cross_entropy": Check(losses.centered_ce_triples, ("cpu", "triton")),
    "ContextualizedTargets": Check(_targets, ("triton",)),
    "EmaPlan, ema_update_": Check(_ema, ("cpu", "triton")),
    "fused_mlp": Check(_fused_mlp, ("triton",)),
    "gelu_mlp": Check(partial(_gelu_mlp, dtype=torch.float32), ("triton",)),
    "gelu_mlp (float16)": Check(partial(_gelu_mlp, dtype=torch.float16), ("triton",)),
    "block_mask": Check(_block_masks, ("triton",)),
    "koleo": Check(losses.koleo_triples, ("triton",)),
    "motion_aware_mask, random_mask, tube_mask": Check(_masks, ("triton",)),
    "pack_tokens": Check(_pack, ("triton",)),
    "philox4x32, uniform": Check(_philox),
    "residual_layer_norm": Check(_residual_norm, ("triton",)),
    "scatter_mask_tokens": Check(_scatter, ("triton",)),
    "self_attention": Check(
        partial(_self_attention, dtype=torch.float32), (*_FLOAT_ATTENTION, "triton")
    ),
    "self_attention (bfloat16)": Check(partial(_self_attention, dtype=torch.bfloat16), _ATTENTION),
    # The interpreter cuts bfloat16 off where a GPU rounds it.
    "self_attention (float16)": Check(partial(_self_attention, dtype=torch.float16), ("triton",)),
    "sigreg": Check(losses.sigreg_triples, ("cpu", "triton")),
    "sinkhorn_center": Check(losses.sinkhorn_triples, ("cpu", "triton")),
    "soft_cross_entropy": Check(losses.soft_ce_triples, ("cpu", "triton")),
    "update_center_": Check(losses.update_center_triples),
    "vicreg": Check(losses.vicreg_triples),
    "visreg": Check(losses.visreg_triples, ("cpu", "triton")),
}


def _places() -> list[tuple[str, str]]:
    """Return the (impl, device) pairs of this machine."""
    places = [("torch", "cpu")]
    if native.LIBRARY is not None:
        places.append(("cpu", "cpu"))
    if _triton.INTERPRETED:
        places.append(("triton", "cpu"))
    if torch.cuda.is_available():
        places.append(("torch", "cuda"))
        if _triton.HAVE_TRITON:
            places.append(("triton", "cuda"))
    return places


def _error(x: Tensor, truth: Tensor) -> float:
    """Return |x - truth| / |truth| in the Euclidean norm, infinite for NaN."""
    distance = torch.linalg.vector_norm(x.double() - truth.double())
    error = float(distance / torch.linalg.vector_norm(truth.double()).clamp_min(1e-30))
    return math.inf if math.isnan(error) else error


def _worst(triples: list[Triple]) -> tuple[float, float]:
    """Return (error, budget) of the tensor that uses most of its budget; integers must be equal."""
    pairs = []
    for ours, eager, truth in triples:
        slack = SLACK if ours.is_floating_point() else 0.0
        pairs.append((_error(ours, truth), min(2 * _error(eager, truth) + slack, MOST)))
    return max(pairs, key=lambda pair: pair[0] / max(pair[1], 1e-30))


def planned(device: str | None = None) -> list[tuple[str, str, str]]:
    """Return all checks of this machine as (op, impl, device), or those on one device's type."""
    return [
        (op, impl, place)
        for op, known in CHECKS.items()
        for impl, place in _places()
        if (impl == "torch" or impl in known.impls) and device in (None, place)
    ]


def check(op: str, impl: str, device: str) -> tuple[float, float]:
    """Run one check and return its (error, budget).

    Both are relative, in the Euclidean norm, of the tensor that uses most of its budget. The result
    is right if the error is at most the budget. An infinite error, as of NaN, never is: budgets are
    `MOST` at most.
    """
    return _worst(CHECKS[op].run(impl, device))


def main() -> int:
    """Print one line for each op and implementation; return 1 if one is over its budget."""
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    triton = getattr(_triton.triton, "__version__", "") if _triton.HAVE_TRITON else "absent"
    library = "absent" if native.LIBRARY is None else "built"
    interpreted = ", interpreted" if _triton.INTERPRETED else ""
    print(f"python {platform.python_version()}, torch {torch.__version__}")
    print(f"Triton {triton}{interpreted}; C++ library {library}; CUDA device {cuda}\n")
    print(f"{'op':44}{'impl':8}{'device':8}{'error':>9}{'budget':>9}")
    failures = 0
    for op, impl, device in planned():
        start = f"{op:44}{impl:8}{device:8}"
        try:
            error, budget = check(op, impl, device)
        except Exception as problem:
            failures += 1
            print(f"{start}  FAILED: {type(problem).__name__}: {problem}")
            continue
        over = not error <= budget
        failures += over
        print(f"{start}{error:9.1e}{budget:9.1e}  {'OVER BUDGET' if over else 'ok'}")
    print(f"\n{failures} of the lines above failed" if failures else "\nall within budget")
    return 1 if failures else 0
