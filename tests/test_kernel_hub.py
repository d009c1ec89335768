"""`kernels/hub.py`: what it writes follows the rules of Hugging Face's Kernel Hub.

Its own client loads the result in `tests/test_packaging.py`, where that client can be installed.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_house import ROOT

# Loads each variant as the client does, under the name that its metadata say.
LOAD = """
import importlib.util, json, sys
from pathlib import Path
import torch
sys.modules["sjepa_kernels"] = None  # whoever asks for the package by its own name fails
found = []
for folder in map(Path, sys.argv[1:]):
    name = json.loads((folder / "metadata.json").read_text())["id"]
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    x, y = torch.ones(2, 3), torch.zeros(2, 3)
    module.ema_update_([x], [y], 0.25)
    assert x.unique().tolist() == [0.25]
    found.append(name)
registered = {op.split("::")[0] for op in torch._C._dispatch_get_all_op_names() if "sjepa" in op}
assert registered == set(found), registered
print(*found)
"""


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("hub")
    command = [sys.executable, str(ROOT / "kernels" / "hub.py"), str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert {path.name for path in out.iterdir()} == {"build", "LICENSE", "README.md"}
    return sorted((out / "build").iterdir())


def test_there_is_a_variant_for_each_backend(variants: list[Path]) -> None:
    assert [folder.name for folder in variants] == ["torch-cpu", "torch-cuda"]
    package = ROOT / "kernels" / "sjepa_kernels"
    wanted = {
        path.relative_to(package) for kind in ("*.py", "*.json") for path in package.rglob(kind)
    }
    for folder in variants:
        files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        assert files == wanted | {Path("metadata.json"), Path("py.typed")}


def test_imports_are_relative_or_of_torch_and_triton(variants: list[Path]) -> None:
    allowed = {"torch", "triton", *sys.stdlib_module_names}
    for path in (path for folder in variants for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            assert {name.split(".")[0] for name in names} <= allowed, path


def test_metadata_name_the_kernel_and_every_file(variants: list[Path]) -> None:
    found = [json.loads((folder / "metadata.json").read_text()) for folder in variants]
    assert len({metadata["id"] for metadata in found}) == len(variants)
    for folder, metadata in zip(variants, found, strict=True):
        assert metadata["id"].isidentifier() and metadata["name"] == "sjepa-kernels"
        assert metadata["version"] == 0 and metadata["license"] == "Apache-2.0"
        assert metadata["python-depends"] == []
        assert f"torch-{metadata['backend']['type']}" == folder.name
        paths = [path for path in folder.rglob("*") if path.is_file()]
        hashes = {
            path.relative_to(folder).as_posix(): base64.b64encode(
                hashlib.sha256(path.read_bytes()).digest()
            ).decode()
            for path in paths
            if path.name != "metadata.json"
        }
        assert metadata["digest"] == {"algorithm": "sha256", "files": hashes}


def test_variants_load_under_other_names_in_one_process(variants: list[Path]) -> None:
    """Both at once, as two versions would be: neither registers into the other's ops."""
    command = [sys.executable, "-c", LOAD, *map(str, variants)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=variants[0])
    assert done.returncode == 0, done.stderr
    names = done.stdout.split()
    assert [name.rsplit("_", 1)[0] for name in names] == [
        "_sjepa_kernels_cpu",
        "_sjepa_kernels_cuda",
    ]
