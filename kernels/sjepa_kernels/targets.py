# SPDX-License-Identifier: Apache-2.0
"""Running mean of normalised hidden states: the targets of Skeleton2vec and data2vec.

Shapes: B sequences, N tokens, Q masked, D width.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from sjepa_kernels._checks import (
    bad_type,
    bad_value,
    check_float,
    check_ids,
    check_number,
    check_same_device,
    check_shape,
)
from sjepa_kernels._dispatch import choose
from sjepa_kernels._library import Op
from sjepa_kernels._triton import (
    TL_DTYPES,
    cdiv,
    compute_dtype,
    device_scalar,
    row_block,
    row_tile,
    tl,
    triton,
)

NORMS = ("instance", "layer", "none")
_EPS = 1e-5
# Whole rows stay in registers.
_WIDEST_ROW = 8192
# Numbers of a tile of whole rows.
_TILE = 1024


def accumulate_normalized_ref_(
    total_BND: Tensor, hidden_BND: Tensor, weight: Tensor, norm: str
) -> None:
    """Plain PyTorch form of `accumulate_normalized_`."""
    x = hidden_BND.to(total_BND.dtype)
    if norm == "instance":
        var, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        total_BND.addcmul_(x - mean, weight * torch.rsqrt(var + _EPS))
    else:
        total_BND.addcmul_(layer_norm(x, x.shape[-1:]) if norm == "layer" else x, weight)


def finish_targets_ref(total_BND: Tensor, ids_mask_BQ: Tensor | None, final_norm: bool) -> Tensor:
    """Plain PyTorch form of the finishing op: masked rows, normalised over channels."""
    rows = total_BND
    if ids_mask_BQ is not None:
        index = ids_mask_BQ.long()[:, :, None].expand(-1, -1, rows.shape[2])
        rows = rows.gather(1, index)
    return layer_norm(rows, rows.shape[-1:]) if final_norm else rows


@triton.jit
def _normalized_rows(x, in_d, D, EPS: tl.constexpr):
    """LayerNorm of whole rows held in registers, without affine."""
    mean = tl.sum(x, axis=1) / D
    x = tl.where(in_d, x - mean[:, None], 0.0)
    return x * tl.rsqrt(tl.sum(x * x, axis=1) / D + EPS)[:, None]


@triton.jit
def _instance_kernel(
    total, hidden, weight, N, D,
    COMPUTE: tl.constexpr, EPS: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One sequence, one tile of channels: statistics over all tokens, then the addition."""
    first = tl.program_id(0).to(tl.int64) * N * D
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    in_d = (d < D)[None, :]
    n = tl.arange(0, BN).to(tl.int64)
    mean = tl.zeros((BD,), COMPUTE)
    squares = tl.zeros((BD,), COMPUTE)
    for start in range(0, N, BN):
        inside = (start + n < N)[:, None] & in_d
        place = first + (start + n)[:, None] * D + d[None, :]
        x = tl.load(hidden + place, mask=inside, other=0.0).to(COMPUTE)
        # Means and sums of squared deviations of tiles are merged, so nothing large cancels.
        count = tl.minimum(N - start, BN).to(COMPUTE)
        tile_mean = tl.sum(x, axis=0) / count
        away = tl.where(inside, x - tile_mean[None, :], 0.0)
        gap = tile_mean - mean
        share = count / (count + start)
        mean += gap * share
        squares += tl.sum(away * away, axis=0) + gap * gap * share * start
    scale = tl.load(weight).to(COMPUTE) * tl.rsqrt(squares / N + EPS)
    for start in range(0, N, BN):
        inside = (start + n < N)[:, None] & in_d
        place = first + (start + n)[:, None] * D + d[None, :]
        x = tl.load(hidden + place, mask=inside, other=0.0).to(COMPUTE)
        t = tl.load(total + place, mask=inside, other=0.0)
        tl.store(total + place, t + (x - mean[None, :]) * scale[None, :], mask=inside)


@triton.jit
def _layer_kernel(
    total, hidden, weight, R, D,
    NORM: tl.constexpr, COMPUTE: tl.constexpr, EPS: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Whole rows: statistics over channels (or none), and the addition."""
    r = tl.program_id(0) * BR + tl.arange(0, BR)
    d = tl.arange(0, BD)
    in_d = (d < D)[None, :]
    inside = (r < R)[:, None] & in_d
    place = r.to(tl.int64)[:, None] * D + d[None, :]
    x = tl.load(hidden + place, mask=inside, other=0.0).to(COMPUTE)
    if NORM:
        x = _normalized_rows(x, in_d, D, EPS)
    t = tl.load(total + place, mask=inside, other=0.0)
    tl.store(total + place, t + x * tl.load(weight).to(COMPUTE), mask=inside)


@triton.jit
def _finish_kernel(
    total, ids, out, N, Q, D,
    HAS_IDS: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Whole rows of one sequence: selected, then normalised over channels."""
    b = tl.program_id(0).to(tl.int64)
    q = tl.program_id(1) * BR + tl.arange(0, BR)
    d = tl.arange(0, BD)
    in_d = (d < D)[None, :]
    token = q.to(tl.int64)
    if HAS_IDS:
        token = tl.load(ids + b * Q + q, mask=q < Q, other=0).to(tl.int64)
    good = (token >= 0) & (token < N)
    known = ((q < Q) & good)[:, None] & in_d
    x = tl.load(total + (b * N + token)[:, None] * D + d[None, :], mask=known, other=0.0)
    if NORM:
        x = _normalized_rows(x, in_d, D, EPS)
    x = tl.where(good[:, None], x, float("nan"))
    tl.store(out + (b * Q + q)[:, None] * D + d[None, :], x, mask=(q < Q)[:, None] & in_d)


def _accumulate(total_BND: Tensor, hidden_BND: Tensor, weight: Tensor, norm: str) -> None:
    batch, tokens, width = total_BND.shape
    inputs = total_BND, hidden_BND.contiguous(), weight
    numbers: dict[str, Any] = {"COMPUTE": TL_DTYPES[total_BND.dtype], "EPS": _EPS}
    if norm == "instance":
        columns = min(row_block(width), 64)
        grid = (batch, cdiv(width, columns))
        _instance_kernel[grid](*inputs, tokens, width, BN=32, BD=columns, **numbers)
    else:
        rows, columns, warps = row_tile(width, _TILE)
        _layer_kernel[(cdiv(batch * tokens, rows),)](
            *inputs, batch * tokens, width, NORM=norm == "layer", BR=rows, BD=columns, **numbers,
            num_warps=warps,
        )  # fmt: skip


def _finish(total_BND: Tensor, ids_mask_BQ: Tensor | None, final_norm: bool) -> Tensor:
    batch, tokens, width = total_BND.shape
    out = _finish_fake(total_BND, ids_mask_BQ, final_norm)
    if out.numel():
        rows, columns, warps = row_tile(width, _TILE)
        # The pointer that HAS_IDS switches off still needs a tensor to stand for it.
        ids = total_BND if ids_mask_BQ is None else ids_mask_BQ.contiguous()
        _finish_kernel[(batch, cdiv(out.shape[1], rows))](
            total_BND.contiguous(), ids, out, tokens, out.shape[1], width,
            HAS_IDS=ids_mask_BQ is not None, NORM=final_norm, EPS=_EPS, BR=rows, BD=columns,
            num_warps=warps,
        )  # fmt: skip
    return out


def _finish_fake(total_BND: Tensor, ids_mask_BQ: Tensor | None, final_norm: bool) -> Tensor:
    rows = total_BND.shape[1] if ids_mask_BQ is None else ids_mask_BQ.shape[1]
    return total_BND.new_empty(total_BND.shape[0], rows, total_BND.shape[2])


_accumulate_op = Op("accumulate_normalized_", _accumulate, None, mutates=("total_BND",))
_finish_op = Op("finish_targets", _finish, _finish_fake)


def accumulate_normalized_(
    total_BND: Tensor,
    hidden_BND: Tensor,
    weight: float | Tensor,
    *,
    norm: str = "instance",
    impl: str = "auto",
) -> None:
    """Add one layer's normalised hidden states to a running total, in place.

    total <- total + weight (h - mean) / sqrt(var + 1e-5), with the mean and the population
    variance over the N tokens of each sequence and channel ("instance", method 4.3), or over the
    D channels of each token ("layer", data2vec); "none" adds weight h. No affine, no gradient.

    Args:
        total_BND: Contiguous float32 total (float64 for float64 hidden states).
        hidden_BND: Output of a block, in any floating-point dtype.
        weight: A float or a 0-dim tensor, 1 / K for the mean of K layers.
        norm: "instance", "layer" or "none".
        impl: "auto", "triton", "cpu" or "torch".

    Raises:
        TypeError: A dtype is not usable.
        ValueError: A shape, device, layout, `norm` or `impl` is not usable.
    """
    _check_norm(norm)
    _check_total(total_BND)
    check_float("hidden", hidden_BND)
    check_shape("hidden", hidden_BND, tuple(total_BND.shape), "(B, N, D)")
    check_same_device(total_BND.device, hidden=hidden_BND)
    if hidden_BND.dtype == torch.float64 != total_BND.dtype:
        raise bad_type("total", total_BND.dtype, "pass a float64 total for float64 hidden states")
    check_number("weight", weight, math.isfinite, "pass a finite number")
    if total_BND.numel() == 0:
        return
    with torch.no_grad():
        scalar = device_scalar(weight, total_BND)
        if choose(impl, total_BND.device) == "torch":
            accumulate_normalized_ref_(total_BND, hidden_BND.detach(), scalar, norm)
            return
        if norm != "instance":
            _check_width(total_BND)
        _accumulate_op(total_BND, hidden_BND.detach(), scalar, norm)


class ContextualizedTargets:
    """The mean of K layers' normalised hidden states, formed while the teacher runs.

    Call `add_` on the output of each of the last K blocks and `finish` after the last: one float32
    total lives instead of K layers. `finish` leaves the object ready for the next batch. Nothing
    here carries a gradient. Method 4.3: instance norm, mean, LayerNorm, masked tokens.

    Args:
        layers: K.
        norm: What normalises each layer: "instance", "layer" or "none".
        final_norm: Whether a LayerNorm over channels without affine follows the mean.
        impl: "auto", "triton", "cpu" or "torch".

    Raises:
        ValueError: `layers` or `norm` is not usable.
    """

    def __init__(
        self, layers: int, norm: str = "instance", *, final_norm: bool = True, impl: str = "auto"
    ) -> None:
        _check_norm(norm)
        if layers < 1:
            raise bad_value("layers", layers, "pass the number of layers to average, at least 1")
        self.layers = layers
        self.norm = norm
        self.final_norm = final_norm
        self.impl = impl
        self._added = 0
        self._total: Tensor | None = None
        self._weight: Tensor | None = None

    def add_(self, hidden_BND: Tensor) -> None:
        """Add one layer.

        Args:
            hidden_BND: Output of a block, the same shape for each layer of a batch.

        Raises:
            TypeError: The dtype is not usable.
            ValueError: The shape is not usable, or K layers were added before.
        """
        if self._added == self.layers:
            raise bad_value("hidden", f"layer {self._added + 1} of {self.layers}", "call finish")
        if self._total is None or self._weight is None:
            check_float("hidden", hidden_BND)
            if hidden_BND.ndim != 3 or hidden_BND.shape[2] == 0:
                fix = "expected (B, N, D) with D at least 1"
                raise bad_value("hidden", tuple(hidden_BND.shape), fix)
            self._total = torch.zeros(
                hidden_BND.shape, dtype=compute_dtype(hidden_BND.dtype), device=hidden_BND.device
            )
            self._weight = device_scalar(1 / self.layers, self._total)
        accumulate_normalized_(
            self._total, hidden_BND, self._weight, norm=self.norm, impl=self.impl
        )
        self._added += 1

    def finish(self, ids_mask_BQ: Tensor | None = None) -> Tensor:
        """Return the targets and forget the layers.

        Args:
            ids_mask_BQ: int32 or int64 ids of the tokens to return; all tokens without it.

        Returns:
            (B, Q, D), or (B, N, D) without ids, in float32 (float64 for float64 layers).

        Raises:
            TypeError: The ids' dtype is not usable.
            ValueError: Fewer than K layers were added, or the ids are not usable.
        """
        total = self._total
        if self._added != self.layers or total is None:
            raise bad_value("layers", f"{self._added} of {self.layers} added", "add the others")
        if ids_mask_BQ is not None:
            columns = ids_mask_BQ.shape[-1] if ids_mask_BQ.ndim else 0
            check_shape("ids_mask", ids_mask_BQ, (total.shape[0], columns), "(B, Q)")
            check_same_device(total.device, ids_mask=ids_mask_BQ)
            check_ids("ids_mask", ids_mask_BQ, total.shape[1])
        self._added, self._total, self._weight = 0, None, None
        if ids_mask_BQ is None and not self.final_norm:
            return total
        with torch.no_grad():
            if choose(self.impl, total.device) == "torch":
                return finish_targets_ref(total, ids_mask_BQ, self.final_norm)
            _check_width(total)
            out: Tensor = _finish_op(total, ids_mask_BQ, self.final_norm)
        return out


def _check_norm(norm: str) -> None:
    if norm not in NORMS:
        raise bad_value("norm", repr(norm), f"choose one of {', '.join(NORMS)}")


def _check_total(total: Tensor) -> None:
    if total.ndim != 3 or total.shape[2] == 0:
        raise bad_value("total", tuple(total.shape), "expected (B, N, D) with D at least 1")
    if total.dtype not in (torch.float32, torch.float64):
        raise bad_type("total", total.dtype, "a sum of layers needs float32 or float64")
    if total.requires_grad:
        raise bad_value("total", "requires a gradient", "the targets are constants; detach it")
    if not total.is_contiguous():
        raise bad_value("total", f"strides {total.stride()}", "pass a contiguous tensor")


def _check_width(total: Tensor) -> None:
    if total.shape[2] > _WIDEST_ROW:
        raise bad_value(
            "hidden", f"width {total.shape[2]}", f'up to {_WIDEST_ROW}, or impl="torch"'
        )
