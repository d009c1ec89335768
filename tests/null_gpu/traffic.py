"""Counts the bytes that a step moves on a GPU, without one: by pass, by class, launch by launch.

    with Traffic() as traffic, traffic.passes(step.model, step.optimizer):
        step.eager(ids)
    traffic.gigabytes("part"), traffic.gigabytes("group"), traffic.rows, traffic.variants

**Counting rules.** Bytes are those that a kernel with an unlimited cache of its own would move:
each input is read once and each output written once, by shape and element size; dimensions of
stride 0 count once, views and allocations are free, and so are values read by the host. What is
changed in place counts twice (read and written), unless the operation only writes (`copy_`,
`fill_`, `out=`). Operations that gather or scatter count the elements that they touch, and their
indices. Fused attention is one operation: q, k, v and what it returns, each once, and in the
backward the gradients too. A kernel that Inductor made counts the tensors among its launch
arguments, those called `in_out` twice; a Triton kernel of ours the tensors among its arguments,
each address once, corrected by `RULES` where it touches only a part or changes something in place.
Sorts count as one pass over their input. A convolution is counted as the product of matrices that
it is.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._inductor.runtime.triton_heuristics import CachingAutotuner
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime import JITFunction

from sjepa_fast.training.profiling import PassClock
from tests.kernels.launches import Variant, variant_of

FREE = {
    "_unsafe_view", "_reshape_alias", "detach", "lift_fresh", "set_", "empty", "empty_like",
    "empty_strided", "new_empty", "new_empty_strided", "is_pinned", "record_stream",
    "_local_scalar_dense", "sym_size", "sym_stride", "sym_numel", "_assert_async",
}  # fmt: skip
# Operations in place that do not read what they overwrite.
ONLY_WRITE = {
    "copy_", "fill_", "zero_", "uniform_", "normal_", "random_", "bernoulli_", "exponential_",
    "trunc_normal_", "_foreach_copy_", "_foreach_zero_",
}  # fmt: skip
GATHERS = {"index_select", "gather", "embedding", "index", "take", "take_along_dim"}
SCATTERS = {"index_put_", "_index_put_impl_", "index_copy_", "index_add_", "scatter_"}
SCATTERS |= {"scatter_add_"}
GEMMS = {"mm", "addmm", "bmm", "baddbmm", "_addmm_activation", "mv", "addmv", "dot"}
CONVOLUTIONS = {"convolution", "convolution_backward"}
COPIES = {"_to_copy", "copy_", "clone", "cat", "stack", "repeat", "slice_backward"}
COPIES |= {"contiguous", "_foreach_copy_"}
REDUCTIONS = {"sum", "mean", "amax", "amin", "max", "min", "_foreach_norm", "linalg_vector_norm"}
REDUCTIONS |= {"any", "all", "prod", "argmax", "cumsum", "var", "var_mean"}

POINTWISE = {"gelu_backward", "silu_backward", "threshold_backward", "floor_divide"}


@dataclass(frozen=True)
class Row:
    """One operation or launch.

    Attributes:
        part: The pass of the step.
        group: Its class: "gemm", "attention", "norm", "pointwise", "reduction", "copy", "other",
            "inductor" or "ours".
        name: Of the operation or kernel.
        bytes: What it moves.
        sizes: Of a GEMM, or of one in a kernel of ours, (batch, m, n, k); of attention (sequences x
            heads, queries, keys, width of a head, 1 if it is the backward).
    """

    part: str
    group: str
    name: str
    bytes: int
    sizes: tuple[int, ...] = ()


def size_of(tensor: Tensor) -> int:
    """Return the bytes of a tensor's distinct elements; expanded dimensions count once."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return prod(n for n, stride in pairs if stride != 0) * tensor.element_size()


def _on_gpu(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor) and x.is_cuda]


def _sides(func: Any, args: tuple[Any, ...], kwargs: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Return the arguments that `func` reads and those that it writes; some are both."""
    read, written = [], []
    for k, spec in enumerate(func._schema.arguments):
        by_place = k < len(args) and not spec.kwarg_only
        tensors = _on_gpu(args[k] if by_place else kwargs.get(spec.name))
        changes = spec.alias_info is not None and spec.alias_info.is_write
        if changes:
            written += tensors
        if not (changes and (spec.is_out or func.overloadpacket.__name__ in ONLY_WRITE)):
            read += tensors
    return read, written


def bytes_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Return what one aten operation moves, by the rules above."""
    name, returns = func.overloadpacket.__name__, func._schema.returns
    read, written = _sides(func, args, kwargs)
    results = result if len(returns) > 1 else (result,)
    for spec, value in zip(returns, results, strict=False):
        if spec.alias_info is None:
            written = written + _on_gpu(value)
    if name in GATHERS:
        return 2 * sum(map(size_of, written)) + sum(size_of(x) for x in read[1:])
    if name in SCATTERS:
        # Index and source; the places written, read too where values are added.
        added = "add" in name or (len(args) > 3 and args[3] is True)
        return sum(size_of(x) for x in read[1:]) + size_of(read[-1]) * (2 if added else 1)
    total = sum(map(size_of, read)) + sum(map(size_of, written))
    if name == "_fused_adamw_":
        # The schema lets it change the gradients, for a loss scale that is not used.
        total -= sum(map(size_of, args[1]))
    return total


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(
        spec.alias_info is not None and not spec.alias_info.is_write for spec in returns
    )


def group_of(func: Any) -> str:
    """Return the class of an aten operation."""
    name = func.overloadpacket.__name__
    if name in GEMMS or name in CONVOLUTIONS:
        return "gemm"
    if "attention" in name:
        return "attention"
    if "norm" in name and name not in REDUCTIONS:
        return "norm"
    if name in COPIES:
        return "copy"
    if name in REDUCTIONS:
        return "reduction"
    # The tag is missing from gradients of element-wise functions.
    tagged = torch.Tag.pointwise in func.tags or name in POINTWISE
    return "pointwise" if tagged else "other"


def _sizes_of(func: Any, args: tuple[Any, ...], result: Any) -> tuple[int, ...]:
    """Return the sizes of `Row` for a GEMM or for attention."""
    name = func.overloadpacket.__name__
    if "attention" in name:
        backward = "backward" in name
        q, k = args[backward : backward + 2]
        return (prod(q.shape[:-2]), q.shape[-2], k.shape[-2], q.shape[-1], int(backward))
    if name == "convolution":
        weight = args[1]
        return (1, result.numel() // weight.shape[0], weight.shape[0], weight[0].numel())
    if name == "convolution_backward":
        grad, _, weight = args[:3]
        products = sum(x is not None for x in result[:2])
        return (products, grad.numel() // weight.shape[0], weight.shape[0], weight[0].numel())
    a, b = [x for x in args if isinstance(x, Tensor) and x.ndim >= 1][-2:]
    batch = a.shape[0] if a.ndim == 3 else 1
    return (batch, a.shape[-2] if a.ndim > 1 else 1, b.shape[-1] if b.ndim > 1 else 1, a.shape[-1])


Arguments = dict[str, Any]


def _ema(arguments: Arguments, _: int) -> int:
    # The kernel gets a table of addresses; its last column has the lengths.
    count = sum(row[-1] for row in arguments["tensors"].tolist())
    target, source = (arguments[x].primitive_bitwidth // 8 for x in ("TARGET", "SOURCE"))
    shadow = arguments["SHADOW"].primitive_bitwidth // 8 if arguments["HAS_SHADOW"] else 0
    return int(count * (2 * target + source + shadow))


def _adamw(arguments: Arguments, _: int) -> int:
    # As above, but the addresses of the gradients are arguments, of which 2^62 is none.
    wide, grad = (arguments[x].primitive_bitwidth // 8 for x in ("PARAM", "GRAD"))
    half = arguments["HALF"].primitive_bitwidth // 8 if arguments["HALF"] is not None else 0
    total = 0
    rows = zip(arguments["tensors"].tolist(), arguments["grads"], strict=True)
    for (*_, target, shadow, target_shadow, count, _), address in rows:
        learns = address != 1 << 62
        # Weight and both moments, read and written; or the weight alone, read.
        each = 6 * wide + grad if learns else wide
        each += 2 * wide * (target != 0) + half * ((shadow != 0) + (target_shadow != 0))
        total += count * each
    return int(total)


def _loss(arguments: Arguments, total: int) -> int:
    # With an index, only the teacher's rows that it names are read.
    if arguments["HAS_INDEX"]:
        teacher = arguments["teacher"]
        total += arguments["R"] * arguments["D"] * teacher.element_size() - size_of(teacher)
    return total


def _mlp(columns: str, depth: str) -> Callable[[Arguments], tuple[int, ...]]:
    return lambda arguments: (1, *(int(arguments[name]) for name in ("R", columns, depth)))


def _attention(*, backward: bool) -> Callable[[Arguments], tuple[int, ...]]:
    def sizes(arguments: Arguments) -> tuple[int, ...]:
        heads, tokens = arguments["qkv"].shape[0] * arguments["H"], arguments["N"]
        queries = tokens - arguments["first"]
        return (heads, queries, tokens, arguments["WIDTH"], int(backward))

    return sizes


def _augment(arguments: Arguments, total: int) -> int:
    # Of the store of all clips, two frames for each frame of the view.
    store, view = arguments["joints"], arguments["view"]
    return total - size_of(store) + 2 * view.numel() * store.element_size()


def _finish(arguments: Arguments, total: int) -> int:
    if arguments["HAS_IDS"]:
        source = arguments["total"]
        total += arguments["out"].numel() * source.element_size() - size_of(source)
    return total


def _writes(name: str, part: int, of: int) -> Callable[[Arguments, int], int]:
    """A rule for a kernel that writes a part of an argument."""
    return lambda arguments, count: count - size_of(arguments[name]) * (of - part) // of


def _adds(name: str) -> Callable[[Arguments, int], int]:
    return lambda arguments, total: total + size_of(arguments[name])


# By module and kernel: the bytes it moves, from its arguments and the sum of their tensors.
RULES: dict[str, Callable[[Arguments, int], int]] = {
    # Of the packed gradient one writes a third, the other the rest.
    "attention.kernel._attention_queries_kernel": _writes("grad", 1, 3),
    "attention.kernel._attention_keys_kernel": _writes("grad", 2, 3),
    "augment.kernel._augment_kernel": _augment,
    "blocks.gelu_mlp._gelu_slope_kernel": _adds("grad"),
    "ema._ema_kernel": _ema,
    "losses.centered_ce._ce_rows_kernel": _loss,
    "losses.centered_ce._ce_stats_kernel": _loss,
    # It reads one number, and the rest only where the gradient of the loss is not 1.
    "losses.scale._scale_kernel": lambda arguments, _: 4,
    "optim.adamw_kernel._adamw_kernel": _adamw,
    "targets._finish_kernel": _finish,
    "targets._instance_kernel": _adds("total"),
    "targets._layer_kernel": _adds("total"),
}
# Kernels with products of matrices in them: their sizes, as of a GEMM or of attention. Attention's
# backward may be two kernels, of which one has the sizes.
PRODUCTS: dict[str, Callable[[Arguments], tuple[int, ...]]] = {
    "attention.kernel._attention_forward_kernel": _attention(backward=False),
    "attention.kernel._attention_keys_kernel": _attention(backward=True),
    "attention.kernel._attention_whole_kernel": _attention(backward=True),
    "blocks.gelu_mlp._gelu_product_kernel": _mlp("D", "H"),
    "blocks.gelu_mlp._gelu_slope_product_kernel": _mlp("H", "D"),
}


class _Operations(TorchDispatchMode):
    """Hands aten operations, also those of compiled code, to the traffic."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let compiled code run under this mode; by default it is run eagerly instead."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        own = OPDEFS.get(func._schema.name) if func.namespace == "sjepa" else None
        if own is not None:
            # An op of ours in a compiled graph: what its body runs counts, not the call.
            with self:
                return own._init_fn(*args, **kwargs)
        if func._can_decompose():
            # Such as `linear` in the body of an op, which autograd would have taken apart before.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name not in FREE and not _is_view(func) and _on_gpu((args, kwargs, result)):
            group = group_of(func)
            sizes = _sizes_of(func, args, result) if group in ("gemm", "attention") else ()
            self.traffic.add(group, name, bytes_of(func, args, kwargs, result), sizes)
        return result


class Traffic:
    """A block of code in which what reaches the GPU is written down; see the file's top."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.part = "data"
        self.variants: dict[str, Variant] = {}
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Traffic:
        self._open.enter_context(_patched(JITFunction, self._ours))
        self._open.enter_context(_patched(CachingAutotuner, self._inductor))
        self._open.enter_context(_Operations(self))
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def add(self, group: str, name: str, count: int, sizes: tuple[int, ...] = ()) -> None:
        """Note what one operation or launch moves."""
        self.rows.append(Row(self.part, group, name, count, sizes))

    def _ours(self, kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not kernel.__module__.startswith("sjepa_kernels") or kwargs.get("warmup"):
            return
        with _disable_current_modes():
            variant = variant_of(kernel, args, kwargs)
            self.variants.setdefault(variant.key, variant)
            arguments = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
            tensors = {x.data_ptr(): x for x in arguments.values() if isinstance(x, Tensor)}
            count = sum(map(size_of, tensors.values()))
            name = f"{kernel.__module__}.{kernel.__name__}".removeprefix("sjepa_kernels.")
            if name in RULES:
                count = RULES[name](arguments, count)
            sizes = PRODUCTS[name](arguments) if name in PRODUCTS else ()
        self.add(
            "attention" if name.startswith("attention.kernel.") else "ours", name, count, sizes
        )

    def _inductor(self, kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = kernel.fn.arg_names
        count = sum(
            size_of(x) * (2 if name.startswith("in_out") else 1)
            for name, x in zip(names, args, strict=False)
            if isinstance(x, Tensor)
        )
        self.add("inductor", kernel.fn.__name__, count)

    @contextlib.contextmanager
    def passes(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Note the pass of each row, as `--profile` divides a step of ours."""
        clock = _Passes(self, model, optimizer)
        self.part = "data"
        with clock.hooks():
            yield

    def gigabytes(self, by: str) -> dict[str, float]:
        """Return GB (1e9 bytes) by "part", "group" or "name"."""
        total: Counter[str] = Counter()
        for row in self.rows:
            total[getattr(row, by)] += row.bytes
        return {name: count / 1e9 for name, count in total.most_common()}


class _Passes(PassClock):
    """Hooks of the profile's clock that tell the traffic where a pass begins."""

    def __init__(self, traffic: Traffic, model: Any, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(model, optimizer, torch.device("cpu"))
        self.traffic = traffic

    def _mark(self, name: str) -> None:
        self.traffic.part = name


@contextlib.contextmanager
def _patched(owner: Any, note: Callable[..., None]) -> Iterator[None]:
    """Let `owner.run` call `note(kernel, args, kwargs)` before it runs."""
    run = owner.run

    def noting(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        note(kernel, args, kwargs)
        return run(kernel, *args, **kwargs)

    owner.run = noting
    try:
        yield
    finally:
        owner.run = run
