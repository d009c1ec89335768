# SPDX-License-Identifier: Apache-2.0
"""PyTorch's attention backends by name, and the table of which one was measured to be fastest.

`backends.json` holds one entry for each card, Triton version, dtype, head width and number of
tokens that was measured: the fastest backend of the forward alone and of forward and backward.
It is empty until a GPU fills it, and what it does not hold takes PyTorch's own choice.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sjepa_kernels._checks import bad_value
from sjepa_kernels._triton import HAVE_TRITON, triton

# Names of `torch.nn.attention.SDPBackend`, by the names that `impl` takes.
BACKENDS = {
    "flash": "FLASH_ATTENTION",
    "cudnn": "CUDNN_ATTENTION",
    "efficient": "EFFICIENT_ATTENTION",
}
PATH = Path(__file__).with_name("backends.json")

# Earlier ones gave wrong values where the number of keys is no multiple of 128 (PyTorch #169849).
_GOOD_CUDNN = 91501
_TRITON = str(triton.__version__) if HAVE_TRITON else ""

# Card, Triton, dtype, head width, tokens -> the fastest forward, and forward with backward.
Table = dict[tuple[str, str, str, int, int], tuple[str, str]]


def load_table(path: Path = PATH) -> Table:
    """Read a table that `save_table` wrote."""
    return _table(json.loads(path.read_text())["entries"])


def _table(entries: Iterable[Mapping[str, Any]]) -> Table:
    return {
        (e["card"], e["triton"], e["dtype"], e["width"], e["tokens"]): (e["forward"], e["training"])
        for e in entries
    }


_TABLE = load_table()


def take_over(entries: Iterable[Mapping[str, Any]]) -> None:
    """Let `impl="auto"` follow these entries of `table_entries`, too, until the process ends."""
    _TABLE.update(_table(entries))


def table_entries(rows: Iterable[Mapping[str, Any]], card: str) -> list[dict[str, Any]]:
    """Return the table's entries for rows that were measured on this machine's Triton.

    Args:
        rows: `backend` (a name that `impl` takes), `dtype` ("bfloat16"), `width`, `tokens`,
            `forward_ms` and `ms` of forward and backward. Rows without times are left out.
        card: What `torch.cuda.get_device_name` calls the card.

    Returns:
        An entry for each dtype, width and number of tokens, with the two fastest backends.
    """
    shapes: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if "ms" in row:
            shapes.setdefault((row["dtype"], row["width"], row["tokens"]), []).append(row)
    return [
        {
            "card": card, "triton": _TRITON, "dtype": dtype, "width": width, "tokens": tokens,
            "forward": min(found, key=lambda row: row["forward_ms"])["backend"],
            "training": min(found, key=lambda row: row["ms"])["backend"],
        }
        for (dtype, width, tokens), found in sorted(shapes.items())
    ]  # fmt: skip


def save_table(entries: list[dict[str, Any]], path: Path) -> None:
    """Write a table, one entry a line."""
    lines = ",".join(f"\n  {json.dumps(entry)}" for entry in entries)
    path.write_text(f'{{\n "entries": [{lines}{chr(10) * bool(lines)}{" " * bool(lines)}]\n}}\n')


def _card(index: int | None) -> str:
    # The properties, not `get_device_name`: a compiler takes them for a constant.
    if index not in _CARDS:
        _CARDS[index] = torch.cuda.get_device_properties(index).name
    return _CARDS[index]


_CARDS: dict[int | None, str] = {}


def measured_backend(q_BHNd: Tensor, k_BHMd: Tensor) -> str:
    """Return the fastest backend by the table, or "sdpa" where nothing was measured.

    A look-up in memory: it costs a microsecond, and nothing while the table is empty.
    """
    if not _TABLE or q_BHNd.device.type != "cuda":
        return "sdpa"
    dtype, (tokens, width) = str(q_BHNd.dtype)[6:], k_BHMd.shape[2:]
    found = _TABLE.get((_card(q_BHNd.device.index), _TRITON, dtype, width, tokens))
    if found is None:
        return "sdpa"
    learns = torch.is_grad_enabled() and (q_BHNd.requires_grad or k_BHMd.requires_grad)
    name = found[learns]
    return "sdpa" if name == "cudnn" and cudnn_is_wrong(tokens) else name


def cudnn_is_wrong(keys: int) -> bool:
    """Whether the cuDNN of this machine gives wrong values for so many keys."""
    return keys % 128 != 0 and (torch.backends.cudnn.version() or 0) < _GOOD_CUDNN


def by_backend(name: str, q_BHNd: Tensor, k_BHMd: Tensor, v_BHMd: Tensor) -> Tensor:
    """Return PyTorch's attention by one backend of `BACKENDS`, on CUDA.

    Raises ValueError off CUDA and for a cuDNN that gives wrong values; where the backend does not
    take the inputs, PyTorch raises RuntimeError.
    """
    if q_BHNd.device.type != "cuda":
        raise bad_value("impl", f"{name!r} on {q_BHNd.device}", 'it needs CUDA; use "auto"')
    if name == "cudnn" and cudnn_is_wrong(k_BHMd.shape[2]):
        found = f"'cudnn' {torch.backends.cudnn.version()} with {k_BHMd.shape[2]} keys"
        raise bad_value("impl", found, 'no multiple of 128 needs 9.15.1 or later; use "flash"')
    # Imported where it is needed: it loads the compiler's modules, which takes seconds and 70 MiB.
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(getattr(SDPBackend, BACKENDS[name])):
        return scaled_dot_product_attention(q_BHNd, k_BHMd, v_BHMd)
