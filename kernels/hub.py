# SPDX-License-Identifier: Apache-2.0
"""`python kernels/hub.py OUT`: sjepa_kernels as a repository of Hugging Face's Kernel Hub.

OUT/build/torch-cuda and OUT/build/torch-cpu get the package as a kernel of Python and Triton alone
(without the C++, so a CPU runs the reference):

- imports of itself are relative, because the Hub loads it under another name;
- its ops are in a namespace of their own, because several versions may be loaded at once;
- metadata.json names both, and the SHA-256 of every file.

The rules: https://huggingface.co/docs/kernels/kernel-requirements (version 0.17).
"""

import base64
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path
from runpy import run_path

HERE = Path(__file__).resolve().parent
PACKAGE = HERE / "sjepa_kernels"
BACKENDS = ("cuda", "cpu")
CARD = """---
library_name: kernels
license: apache-2.0
---

# sjepa-kernels

Fused Triton operations for training joint-embedding predictive architectures, DINO and LeJEPA, with
a PyTorch reference of each.

```python
from kernels import get_kernel

ops = get_kernel("OWNER/sjepa-kernels", version={version})
ops.ema_update_(targets, sources, momentum)
```
"""


def relative(text: str, path: Path) -> str:
    """Return a file's text, with the package's absolute imports of itself made relative."""
    dots = "." * len(path.parts)
    return re.sub(r"^(\s*from )sjepa_kernels\b\.?", rf"\1{dots}", text, flags=re.MULTILINE)


def package_files() -> dict[str, str]:
    """Return the text of each file of the package by its path, imports relative."""
    paths = [path for kind in ("*.py", "*.json", "py.typed") for path in PACKAGE.rglob(kind)]
    inside = {path: path.relative_to(PACKAGE) for path in sorted(paths)}
    return {at.as_posix(): relative(path.read_text(), at) for path, at in inside.items()}


def write_variant(folder: Path, backend: str) -> None:
    """Write the package for one backend, and its metadata."""
    files = package_files()
    identity = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:8]
    name = f"_sjepa_kernels_{backend}_{identity}"
    library, count = re.subn(
        r'^NAMESPACE = ".*"$', f'NAMESPACE = "{name}"', files["_library.py"], flags=re.MULTILINE
    )
    assert count == 1, "the namespace of the ops is set once, in _library.py"
    files["_library.py"] = library
    digests = {}
    for at, text in files.items():
        path = folder / at
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        digests[at] = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    metadata = {
        "name": "sjepa-kernels",
        "id": name,
        "version": hub_version(),
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": digests},
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n")


def hub_version() -> int:
    """Return the major version, which is all that the Hub counts."""
    version: str = run_path(str(PACKAGE / "_version.py"))["__version__"]
    return int(version.split(".")[0])


def main() -> None:
    """Write the repository anew."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python kernels/hub.py OUT (a folder, which is written anew)")
    out = Path(sys.argv[1])
    shutil.rmtree(out / "build", ignore_errors=True)
    for backend in BACKENDS:
        write_variant(out / "build" / f"torch-{backend}", backend)
    shutil.copy(HERE / "LICENSE", out)
    (out / "README.md").write_text(CARD.format(version=hub_version()))
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
