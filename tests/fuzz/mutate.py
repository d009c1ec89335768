"""Mutations of bytes, trees, arrays, archives and files, all drawn from one generator."""

from __future__ import annotations

import io
import json
import os
import random
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.sandbox import CANARY

# Pieces of text that trip readers: numbers out of range, other words for numbers, escapes, marks
# that turn the direction of writing, names that leave a folder, and what YAML gives a meaning.
TEXTS = [
    *("nan", "-inf", "1e999", "-0", "0x1F", "1_000", "0b1", "٣", "1e8", "99999999999999999999"),
    *("-1", "0", "1.5", "true", "null", "~", "../../../OWNED", "/../../../OWNED", "/etc/passwd"),
    *(".", "..", "con", "CON.txt", "a/b", "a\\b", "*x", "&x", "<<:", "!!int", "{}", "[]"),
    *("[[[[", "}}}}", ":", "-", "|", ">", "%", "$", "$x^", "${HOME}", "`id`", "$(id)", ";"),
    *("'", '"', ","),
    "\x1b[2J\x1b]0;OWNED\x07",
    "\x9b31m",
    "\u202egnp.exe",
    "\u2066x\u2069",
    "\u2028",
    "\ufeff",
    "\u0000",
    "\r\n",
    "\r",
    "\t",
    "",
    " ",
    "x" * 300,
    "é" * 130,
    "💀",
    "!!python/object/apply:os.system ['" + CANARY + "']",
    "__import__('os').system('" + CANARY + "')",
]
NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2, 3, 7, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -(2**31), 2**32, 2**63 - 1, 2**63,
    -(2**63), 2**64, 10**30, 0.0, -0.0, 0.5, 1e-320, 1e8, 1e308, -1e308, float("nan"),
    float("inf"), float("-inf"), True, False,
)  # fmt: skip
_INTERESTING = bytes([0, 1, 9, 10, 13, 32, 34, 39, 44, 45, 46, 47, 58, 91, 92, 93, 123, 125, 127])
_INTERESTING += bytes([128, 0xC0, 0xED, 0xFE, 0xFF])


def mutate_bytes(rng: random.Random, data: bytes, tokens: Sequence[bytes] = ()) -> bytes:
    """Change one to four places: bits, bytes, blocks, ends, and tokens put in or over."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        at = rng.randrange(len(changed) + 1)
        size = min(rng.choice((1, 1, 2, 4, 8, 16, 64, 512)), len(changed) - at)
        kind = rng.randrange(9)
        if kind == 0 and size:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and size:
            changed[at] = rng.choice(_INTERESTING)
        elif kind == 2:
            del changed[at : at + size]
        elif kind == 3:
            changed[at:at] = rng.randbytes(size or 1)
        elif kind == 4:
            start = rng.randrange(len(changed) + 1)
            changed[at:at] = changed[start : start + size]
        elif kind == 5:
            del changed[at:]
        elif kind == 6 and size >= 4:
            number = int(rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**16, 255, 10**6)))
            changed[at : at + 4] = struct.pack("<I", number)
        elif kind == 7 and size >= 8:
            number = int(rng.choice((0, 1, 2**63 - 1, 2**63, 2**64 - 1, 2**40, 2**32, 10**9)))
            changed[at : at + 8] = struct.pack("<Q", number)
        elif tokens:
            token = rng.choice(tokens)
            changed[at : at + rng.choice((0, len(token)))] = token
        else:
            token = rng.choice(TEXTS).encode("utf-8", "surrogatepass")
            changed[at : at + rng.choice((0, len(token)))] = token
    return bytes(changed)


def mutate_text(rng: random.Random, text: str, tokens: Sequence[str] = ()) -> bytes:
    """Change fields and lines of a text, or its bytes."""
    if rng.random() < 0.3:
        every = [token.encode("utf-8", "surrogatepass") for token in (*tokens, *TEXTS)]
        return mutate_bytes(rng, text.encode("utf-8"), every)
    lines = text.split("\n")
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(lines))
        kind = rng.randrange(6)
        if kind == 0:
            lines.insert(at, lines[rng.randrange(len(lines))])
        elif kind == 1 and len(lines) > 1:
            del lines[at : at + rng.choice((1, 1, 2, 10))]
            lines = lines or [""]
        elif kind == 2:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        else:
            fields = lines[at].split(" ")
            place = rng.randrange(len(fields))
            token = rng.choice((*tokens, *TEXTS, *map(str, NUMBERS)))
            if kind == 3:
                fields[place] = token
            elif kind == 4:
                fields.insert(place, token)
            else:
                del fields[place]
            lines[at] = " ".join(fields)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def nasty(rng: random.Random) -> Any:
    """Return a plain value that few readers expect."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(((), {}, None, [[]], {"": {}}, [None], {"a": 1}, [1, "a"]))
    if kind == 1:
        deep: Any = 0
        for _ in range(rng.choice((3, 30, 300))):
            deep = [deep] if rng.random() < 0.5 else {"k": deep}
        return deep
    if kind == 2:
        return [rng.choice(NUMBERS)] * rng.choice((0, 1, 2, 100))
    return rng.choice(NUMBERS) if kind in (3, 4) else rng.choice(TEXTS)


def mutate_tree(rng: random.Random, tree: Any) -> Any:
    """Return a copy of nested mappings and lists with one to three places changed."""
    changed = tree
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        changed = _change_one(rng, changed)
    return changed


def _change_one(rng: random.Random, tree: Any) -> Any:
    # Down with a chance at each level, so that leaves and sections are both reached.
    if isinstance(tree, Mapping) and tree and rng.random() < 0.9:
        copy = dict(tree)
        key = rng.choice(list(copy))
        kind = rng.random()
        if kind < 0.08:
            del copy[key]
        elif kind < 0.16:
            copy[rng.choice(TEXTS)] = copy.pop(key)
        elif kind < 0.24:
            copy[rng.choice((*TEXTS, "x"))] = nasty(rng)
        else:
            copy[key] = _change_one(rng, copy[key])
        return copy
    if isinstance(tree, list | tuple) and tree and rng.random() < 0.9:
        items = list(tree)
        at = rng.randrange(len(items))
        kind = rng.random()
        if kind < 0.1:
            del items[at]
        elif kind < 0.25:
            items.insert(at, rng.choice((items[rng.randrange(len(items))], nasty(rng))))
        else:
            items[at] = _change_one(rng, items[at])
        return items
    if isinstance(tree, bool) or tree is None:
        return nasty(rng)
    if isinstance(tree, int | float) and rng.random() < 0.6:
        return rng.choice((tree + 1, tree - 1, -tree, tree * 2, tree / 2, *NUMBERS))
    if isinstance(tree, str) and rng.random() < 0.6:
        at = rng.randrange(len(tree) + 1)
        return tree[:at] + rng.choice(TEXTS) + tree[at + rng.randrange(2) :]
    return nasty(rng)


def mutate_json(rng: random.Random, tree: Any) -> bytes:
    """Return JSON of a changed tree; sometimes its text is changed instead, or too."""
    kind = rng.random()
    if kind < 0.02:
        depth = rng.choice((100, 2000, 100_000))
        return rng.choice((b"[" * depth, b"[" * depth + b"]" * depth, b'{"a":' * depth))
    if kind < 0.03:
        return b'{"a": ' + b"9" * rng.choice((400, 5000, 100_000)) + b"}"
    changed = mutate_tree(rng, tree) if kind < 0.8 else tree
    text = json.dumps(changed, ensure_ascii=rng.random() < 0.5)
    data = text.encode("utf-8", "surrogatepass")
    if kind < 0.7:
        return data
    if kind < 0.75 and data.startswith(b"{"):
        # A key twice.
        return b"{" + data[1:-1] + b", " + data[1:-1] + b"}"
    return mutate_bytes(rng, data)


def npy_bytes(array: np.ndarray) -> bytes:
    """Return an array as the bytes of a `.npy` file; no objects."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


# What a header may claim of the data.
_DTYPES = ("<f4", "<f8", ">f4", "<f2", "<i8", "<u4", "|b1", "<U3", "|S5", "|O", "<M8[s]", "<c8", "")
_DTYPES += ("<f4,<i4", "|V7", "<U2147483647", "|V0", "<f16")


def mutate_npy(rng: random.Random, array: np.ndarray) -> bytes:
    """Return a `.npy` file with another header, other values, or changed bytes."""
    data = npy_bytes(array)
    kind = rng.randrange(6)
    if kind == 0:
        return mutate_bytes(rng, data)
    if kind in (1, 2):
        flat = np.array(array).reshape(-1).copy()
        if flat.size and flat.dtype.kind in "fiu":
            for _ in range(rng.choice((1, 2, flat.size))):
                number = rng.choice(NUMBERS)
                with np.errstate(all="ignore"):
                    try:
                        flat[rng.randrange(flat.size)] = number
                    except (OverflowError, ValueError):
                        flat[rng.randrange(flat.size)] = 0
            return npy_bytes(flat.reshape(array.shape))
        return mutate_bytes(rng, data)
    shape: list[Any] = list(array.shape)
    if kind == 3:
        for _ in range(rng.choice((1, 1, 2))):
            sizes = (0, 1, -1, 2**31, 2**40, 2**62, 10**9, 1.5, None, "3", *array.shape)
            if shape and rng.random() < 0.7:
                shape[rng.randrange(len(shape))] = rng.choice(sizes)
            elif shape and rng.random() < 0.5:
                shape.pop()
            else:
                shape.append(rng.choice(sizes))
    descr = rng.choice(_DTYPES) if kind == 4 else array.dtype.str
    order = rng.random() < (0.5 if kind == 5 else 0.05)
    header = f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {tuple(shape)!r}, }}"
    if rng.random() < 0.05:
        header = mutate_bytes(rng, header.encode()).decode("latin1")
    return npy_header(header, rng.choice((1, 1, 1, 2, 3, 9))) + data[128:]


def npy_header(header: str, version: int = 1) -> bytes:
    """Return what precedes the data of a `.npy` file, for any text as the header."""
    text = header.encode("latin1") + b"\n"
    size = struct.pack("<H", len(text) % 2**16) if version == 1 else struct.pack("<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text


def zip_bytes(members: Mapping[str, bytes], compress: bool = True) -> bytes:
    """Return an archive."""
    file = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, kind)
    return file.getvalue()


def mutate_zip(rng: random.Random, members: Mapping[str, bytes]) -> bytes:
    """Return an archive with members gone, renamed, twice, bombs, or lying about their sizes."""
    kind = rng.randrange(8)
    parts = dict(members)
    name = rng.choice(list(parts)) if parts else "x"
    if kind == 0:
        parts.pop(name, None)
    elif kind == 1:
        parts[rng.choice(TEXTS).replace("\0", "") or "x"] = parts.pop(name, b"")
    elif kind == 2:
        parts[name] = mutate_bytes(rng, parts.get(name, b""))
    elif kind == 3:
        # A megabyte in a kilobyte; `bomb` makes larger ones of headers alone.
        parts[name] = parts.get(name, b"") + b"\0" * rng.choice((2**16, 2**20))
    data = zip_bytes(parts, rng.random() < 0.5)
    if kind == 4:
        return lie_about_size(rng, data)
    if kind in (5, 6):
        return mutate_bytes(rng, data)
    return data


def lie_about_size(rng: random.Random, archive: bytes) -> bytes:
    """Overwrite the sizes of one entry in the archive's directory."""
    data = bytearray(archive)
    places = [found.start() for found in re.finditer(b"PK\x01\x02", archive)]
    if places:
        at = rng.choice(places)
        size = rng.choice((0, 1, 2**20, 2**31, 2**32 - 1))
        place = rng.choice((20, 24, 42, 10, 8))
        if place in (8, 10):
            data[at + place : at + place + 2] = struct.pack("<H", rng.choice((0, 1, 8, 12, 14, 99)))
        else:
            data[at + place : at + place + 4] = struct.pack("<I", size)
    return bytes(data)


def put(rng: random.Random, path: Path, data: bytes) -> Path:
    """Write a file; one in fifty is no regular file instead, is empty, or is not there."""
    if rng.random() > 0.02:
        path.write_bytes(data)
        return path
    put_odd(rng.choice(ODD), path)
    return path


ODD = ("folder", "fifo", "loop", "device", "dangling", "empty", "missing")


def put_odd(kind: str, path: Path) -> None:
    """Put what is no readable regular file under a name."""
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        # Without an end.
        path.symlink_to("/dev/zero")
    elif kind == "dangling":
        path.symlink_to(path.with_name("nothing-here"))
    elif kind == "empty":
        path.write_bytes(b"")


def flip_bits(rng: random.Random, path: Path, most: int = 1) -> None:
    """Flip a bit of a file, or up to `most`."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, most)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def cut(rng: random.Random, path: Path) -> None:
    """Shorten a file, or lengthen it without data."""
    size = path.stat().st_size
    os.truncate(path, rng.choice((0, 1, 7, 8, size - 1, size + 1, 2**40, rng.randrange(size))))
