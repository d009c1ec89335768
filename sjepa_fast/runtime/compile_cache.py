# SPDX-License-Identifier: Apache-2.0
"""Keeps what the compiler made for a configuration, so that the next start finds it.

The compiler's own cache lies in a temporary folder, which clusters and containers empty between
jobs. This one is a file per configuration in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import torch

from sjepa_fast.runtime.files import new_file

# Files that stay; each has some megabytes.
_KEPT = 8
_DIGEST = hashlib.sha256().digest_size


def cache_file(description: str, device: torch.device) -> Path:
    """Return the file for what `description` says is compiled, with this torch on this device."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    key = hashlib.sha256(f"{torch.__version__} {where} {description}".encode()).hexdigest()
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        # A container's user may have no home.
        root = Path(tempfile.gettempdir())
    return root / "sjepa_fast" / f"compiled-{key[:16]}.bin"


def load_compiled(file: Path) -> bool:
    """Hand the compiler what an earlier start left; return whether there was something usable."""
    try:
        content = file.read_bytes()
    except OSError:
        return False
    digest, made = content[:_DIGEST], content[_DIGEST:]
    if digest != hashlib.sha256(made).digest():
        # The compiler would say so in many lines; what is missing, it makes again.
        return False
    return torch.compiler.load_cache_artifacts(made) is not None


def save_compiled(file: Path) -> None:
    """Keep what the compiler made in this process; a cache that cannot be written is no error."""
    try:
        made = torch.compiler.save_cache_artifacts()
        if made is None:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        with new_file(file) as temporary:
            temporary.write_bytes(hashlib.sha256(made[0]).digest() + made[0])
        kept = sorted(file.parent.glob("compiled-*.bin"), key=lambda path: path.stat().st_mtime)
        for old in kept[:-_KEPT]:
            old.unlink(missing_ok=True)
    except (OSError, RuntimeError):
        return
