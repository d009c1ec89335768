"""The distribution: sdist, wheel and editable install, from neutral folders and beside `kernels`.

A throw-away environment sees the libraries of the running one through a .pth file, so that torch
is not installed again; what is tested comes first on its path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"sjepa_fast": ROOT / "sjepa_fast", "sjepa_kernels": ROOT / "kernels" / "sjepa_kernels"}
NOT_IN_SOURCES = shutil.ignore_patterns(
    ".git",
    ".venv*",
    "*.egg-info",
    "*.so",
    "__pycache__",
    "build",
    "dist",
    "runs",
    "stores",
    ".*_cache",
)
IMPORT_BOTH = """
import sys, sjepa_fast, sjepa_kernels
print(sjepa_fast.__version__, sjepa_fast.__file__, sjepa_kernels.__file__)
"""


def run(
    *command: str | Path, cwd: Path, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def copy_sources(target: Path) -> Path:
    """A copy to build in, so that nothing is left in the working tree."""
    shutil.copytree(ROOT, target, ignore=NOT_IN_SOURCES)
    return target


def make_environment(folder: Path, *first: Path) -> Path:
    """A virtual environment that also sees `first` and then the running one; returns its python."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    site = next((folder / "lib").glob("python*")) / "site-packages"
    running = Path(pytest.__file__).parents[1]
    # Plain paths, not .pth files of the running environment: its editable install stays out.
    site.joinpath("libraries.pth").write_text("".join(f"{path}\n" for path in [*first, running]))
    return folder / "bin" / "python"


def can_compile(folder: Path) -> bool:
    """Whether the compiler that an extension would be built with is there."""
    probe = folder / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        return False
    return run(compiler, probe, "-o", folder / "probe", cwd=folder, check=False).returncode == 0


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel built from the sdist alone."""
    folder = tmp_path_factory.mktemp("built")
    source = copy_sources(folder / "source")
    build = (sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check")
    run(*build, "--sdist", "--outdir", folder, source, cwd=folder)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    run(*build, "--wheel", "--outdir", folder, unpacked, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_sdist_has_what_building_and_testing_need(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").glob("*.*")}
    for folder in ("sjepa_fast", "kernels", "tests", "benchmarks", "examples"):
        wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py")}
    wanted |= {
        "setup.py",
        "pyproject.toml",
        "constraints.txt",
        "Makefile",
        "LICENSE",
        "CITATION.cff",
    }
    for folder in ("docs", "examples"):
        wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob("*.*")}
    wanted |= {"README.md", "CHANGELOG.md", ".ci/run", ".pre-commit-config.yaml"}
    assert wanted - names == set()
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


@pytest.mark.slow
def test_wheel_has_both_packages_and_nothing_else(built: tuple[Path, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        head = archive.read(metadata).decode()
    assert "\nLicense-Expression: Apache-2.0\n" in head
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
    for package, folder in PACKAGES.items():
        wanted = {
            f"{package}/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*.py")
        }
        assert wanted | {f"{package}/py.typed"} <= names
    libraries = [name for name in names if name.endswith((".so", ".pyd"))]
    assert len(libraries) == can_compile(tmp_path)
    assert all(name.startswith("sjepa_kernels/_csrc.") for name in libraries)


@pytest.mark.slow
def test_wheel_runs_from_a_neutral_folder(built: tuple[Path, Path], tmp_path: Path) -> None:
    """Import, the compiled library, the console scripts; and no `kernels` of ours anywhere."""
    target = tmp_path / "installed"
    install = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    run(*install, "--target", target, built[1], cwd=tmp_path)
    python = make_environment(tmp_path / "env", target)
    neutral = tmp_path / "neutral"
    neutral.mkdir()
    version, *files = run(python, "-c", IMPORT_BOTH, cwd=neutral).stdout.split()
    assert f"-{version}-" in built[1].name
    assert [Path(file).parents[1] for file in files] == [target, target]
    loaded = run(
        python, "-c", "from sjepa_kernels.native import LIBRARY; print(LIBRARY)", cwd=neutral
    ).stdout
    assert loaded.startswith("<CDLL" if can_compile(tmp_path) else "None")
    spec = "import importlib.util as u; s = u.find_spec('kernels'); print(s and s.origin)"
    assert str(target) not in run(python, "-c", spec, cwd=neutral).stdout
    for script in ("sjepa-train", "sjepa-evaluate", "sjepa-prepare"):
        shown = run(python, target / "bin" / script, "--help", cwd=neutral).stdout
        assert "usage" in shown.lower(), script


@pytest.mark.slow
def test_missing_kernels_package_is_said_clearly(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "sjepa_fast", tmp_path / "sjepa_fast")
    python = make_environment(tmp_path / "env", tmp_path)
    failed = run(python, "-c", "import sjepa_fast", cwd=tmp_path, check=False)
    assert failed.returncode == 1
    assert "ImportError: sjepa_fast needs its second package, sjepa_kernels" in failed.stderr


@pytest.mark.slow
def test_installs_without_a_compiler(tmp_path: Path) -> None:
    source = copy_sources(tmp_path / "source")
    target = tmp_path / "installed"
    install = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation")
    run(*install, "--target", target, source, cwd=tmp_path, CC="/bin/false", CXX="/bin/false")
    assert not list(target.rglob("_csrc*.so"))
    python = make_environment(tmp_path / "env", target)
    called = run(
        python,
        "-c",
        "import torch, sjepa_kernels as k; x = torch.ones(2, 3); y = torch.zeros(2, 3)\n"
        "k.ema_update_([x], [y], 0.25); print(x.unique().tolist())",
        cwd=tmp_path,
    )
    assert called.stdout.strip() == "[0.25]"
    assert called.stderr.count("C++ kernels are not built") <= 1


@pytest.mark.slow
def test_editable_install_beside_the_other_kernels(tmp_path: Path) -> None:
    """`pip install -e . --no-build-isolation` with the distribution called `kernels` installed.

    That distribution hooks into setuptools by its name, so a top-level package `kernels` of ours
    would break the installation, and ours would hide theirs when run from the repository's root.
    """
    source = copy_sources(tmp_path / "source")
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    install = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
    pinned = ("-c", ROOT / "constraints.txt", "kernels", "setuptools", "wheel")
    fetched = run(*install, *pinned, cwd=tmp_path, check=False)
    if fetched.returncode != 0:
        pytest.skip(f"`kernels` cannot be installed here: {fetched.stderr.strip()[-200:]}")
    # Without a compiler: what is tested here is how setuptools finds the packages.
    ours = ("--no-deps", "--no-build-isolation", "-e", source)
    run(*install, *ours, cwd=source, CC="/bin/false", CXX="/bin/false")
    site = next((tmp_path / "env" / "lib").glob("python*")) / "site-packages"
    site.joinpath("zz_libraries.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    for folder in (tmp_path, source):
        files = run(python, "-c", IMPORT_BOTH, cwd=folder).stdout.split()[1:]
        assert [Path(file).is_relative_to(source) for file in files] == [True, True]
        theirs = run(python, "-c", "import kernels; print(kernels.__file__)", cwd=folder).stdout
        assert Path(theirs.strip()).is_relative_to(site), folder
